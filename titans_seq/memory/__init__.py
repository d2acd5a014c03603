"""The neural long-term memory: one operator, its forms, and the layer that uses it."""

from titans_seq.memory.functional import Implementation, choose_implementation, neural_memory, read_memory
from titans_seq.memory.layer import MemoryLayerState, NeuralMemory, frozen_memory, scale_forgetting
from titans_seq.memory.state import Gates, LocalMemory, MemoryState, MemoryWeights, TwoLevelState
from titans_seq.memory.trace import MemoryTrace, trace_memory
from titans_seq.memory.two_level import read_two_level, two_level_memory

__all__ = [
    "Gates",
    "Implementation",
    "LocalMemory",
    "MemoryLayerState",
    "MemoryState",
    "MemoryTrace",
    "MemoryWeights",
    "NeuralMemory",
    "TwoLevelState",
    "choose_implementation",
    "frozen_memory",
    "neural_memory",
    "read_memory",
    "read_two_level",
    "scale_forgetting",
    "trace_memory",
    "two_level_memory",
]
