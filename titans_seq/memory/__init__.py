"""The neural long-term memory: one operator, its forms, and the layer that uses it."""

from titans_seq.memory.functional import neural_memory, read_memory
from titans_seq.memory.layer import MemoryLayerState, NeuralMemory
from titans_seq.memory.state import Gates, MemoryState, MemoryWeights

__all__ = ["Gates", "MemoryLayerState", "MemoryState", "MemoryWeights", "NeuralMemory", "neural_memory", "read_memory"]
