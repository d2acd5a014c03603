"""Write the snapshots of all presets anew, when a preset or a default has changed on purpose:

python tests/titans_seq/snapshots/make.py
"""

import importlib
import importlib.util
import inspect
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import domains
from titans_seq import presets
from titans_seq.backbone import Titans
from titans_seq.config import VARIANTS, Config, TitansConfig

HERE = Path(__file__).parent


def all_presets() -> dict[str, Callable[..., Config]]:
    """The presets of the backbone by name, and those of each domain with the domain's name before theirs."""
    modules = {"": presets}
    for package in pkgutil.iter_modules(domains.__path__):
        if importlib.util.find_spec(f"domains.{package.name}.presets"):
            modules[f"{package.name}_"] = importlib.import_module(f"domains.{package.name}.presets")
    return {
        f"{prefix}{name}": function
        for prefix, module in modules.items()
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == module.__name__
    }


def snapshot(preset: Callable[..., Config]) -> dict[str, Any]:
    """The configuration of each variant, and for a backbone its number of parameters (counted without allocating them)."""
    found = {}
    for variant in VARIANTS:
        config = preset(variant)
        count = {}
        if isinstance(config, TitansConfig):
            with torch.device("meta"):
                count = {"parameters": sum(x.numel() for x in Titans(config).parameters())}
        found[variant] = {**count, "config": config.to_dict()}
    return found


def text(preset: Callable[..., Config]) -> str:
    """A snapshot as the file holds it."""
    return json.dumps(snapshot(preset), indent=1) + "\n"


if __name__ == "__main__":
    for name, preset in all_presets().items():
        (HERE / f"{name}.json").write_text(text(preset))
