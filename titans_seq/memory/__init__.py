"""The neural long-term memory: one operator, its forms, and the layer that uses it."""

from titans_seq.memory.functional import Implementation, choose_implementation, neural_memory, read_memory
from titans_seq.memory.layer import MemoryLayerState, NeuralMemory
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights

__all__ = [
    "Gates",
    "Implementation",
    "MemoryLayerState",
    "MemoryState",
    "MemoryWeights",
    "NeuralMemory",
    "choose_implementation",
    "neural_memory",
    "read_memory",
]
