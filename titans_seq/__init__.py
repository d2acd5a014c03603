"""titans_seq: sequence modelling with Titans, networks with a memory that keeps learning while they read."""

from titans_seq.backbone import Titans, TitansState
from titans_seq.config import AttentionConfig, LocalMemoryConfig, MemoryConfig, TitansConfig
from titans_seq.errors import UserError
from titans_seq.memory import NeuralMemory
from titans_seq.packing import cu_seqlens_to_reset, document_ids_to_reset

__all__ = [
    "AttentionConfig",
    "LocalMemoryConfig",
    "MemoryConfig",
    "NeuralMemory",
    "Titans",
    "TitansConfig",
    "TitansState",
    "UserError",
    "cu_seqlens_to_reset",
    "document_ids_to_reset",
]
