"""titans_seq: sequence modelling with Titans, networks with a memory that keeps learning while they read."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titans_seq.backbone import Titans, TitansState
    from titans_seq.checkpoint import load_model
    from titans_seq.config import AttentionConfig, LocalMemoryConfig, MemoryConfig, TitansConfig
    from titans_seq.decoding import Decoder
    from titans_seq.errors import UserError
    from titans_seq.memory import NeuralMemory
    from titans_seq.packing import cu_seqlens_to_reset, document_ids_to_reset

__all__ = [
    "AttentionConfig",
    "Decoder",
    "LocalMemoryConfig",
    "MemoryConfig",
    "NeuralMemory",
    "Titans",
    "TitansConfig",
    "TitansState",
    "UserError",
    "cu_seqlens_to_reset",
    "document_ids_to_reset",
    "load_model",
]

_MODULES = {
    "backbone": ("Titans", "TitansState"),
    "checkpoint": ("load_model",),
    "config": ("AttentionConfig", "LocalMemoryConfig", "MemoryConfig", "TitansConfig"),
    "decoding": ("Decoder",),
    "errors": ("UserError",),
    "memory": ("NeuralMemory",),
    "packing": ("cu_seqlens_to_reset", "document_ids_to_reset"),
}


def __getattr__(name: str) -> Any:
    """Names of the package, imported when they are asked for: the command line must not wait for torch."""
    for module, names in _MODULES.items():
        if name in names or name == module:
            found = _import(module)
            return getattr(found, name) if name in names else found
    raise AttributeError(f"module 'titans_seq' has no attribute {name!r}")


def _import(module: str) -> Any:
    """A module of the package.

    Raises:
        ImportError: it cannot be had, because torch is missing or too old if that is so.
    """
    try:
        return importlib.import_module(f"titans_seq.{module}")
    except (ImportError, AttributeError) as error:
        from titans_seq.installed import torch_problem

        problem = torch_problem()
        if problem is None:
            raise
        raise ImportError(problem) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])
