"""The dual form in C++ for CPUs: the operator of `titans_seq.memory.chunks` in one call, rows over threads, states in their caches.

The kernels (`memory.cpp` and what it includes) are compiled when first used (`library`) and called through ctypes.
"""

from titans_seq.memory.native.operator import native_memory, unavailable, unsupported

__all__ = ["native_memory", "unavailable", "unsupported"]
