"""Triton kernels of the fused form; imported by `titans_seq.memory.fused` when it first runs, never by `import titans_seq`."""
