"""Presets stay what they are: a changed default shows as a difference to the committed snapshot."""

import dataclasses
import difflib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from domains.dna.config import of_preset as dna_of_preset
from domains.dna.head_config import encoder_of
from domains.text.config import of_preset as text_of_preset
from titans_seq import Titans, UserError, presets
from titans_seq.config import VARIANTS, Config, TitansConfig

SNAPSHOTS = Path(__file__).parent / "snapshots"


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("snapshots_make", SNAPSHOTS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()
PRESETS: dict[str, Callable[..., Config]] = MAKER.all_presets()


def difference(name: str, preset: Callable[..., Config]) -> str:
    """A unified diff from the committed snapshot to what the code says now; empty if they agree."""
    path = SNAPSHOTS / f"{name}.json"
    stored = path.read_text().splitlines() if path.exists() else []
    return "\n".join(difflib.unified_diff(stored, MAKER.text(preset).splitlines(), f"{path.name} (committed)", "the code now", lineterm=""))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_those_of_the_snapshot(name: str) -> None:
    changed = difference(name, PRESETS[name])
    assert not changed, f"{changed}\n\nIf that is meant: python tests/titans_seq/snapshots/make.py, and say so in the change log."


def test_no_snapshot_is_left_over() -> None:
    assert {path.stem for path in SNAPSHOTS.glob("*.json")} == set(PRESETS)


def test_a_changed_default_shows_in_the_difference() -> None:
    def changed(variant: str) -> TitansConfig:
        config = presets.debug(variant)
        return dataclasses.replace(config, memory=dataclasses.replace(config.memory, chunk_size=5))

    lines = difference("debug", changed).splitlines()
    assert [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")] == [
        '-    "chunk_size": 4,',
        '+    "chunk_size": 5,',
    ] * len(VARIANTS)


@pytest.mark.parametrize("name", ["titans_170m", "titans_340m", "titans_760m", "titans_1_3b"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_sizes_of_the_paper(name: str, variant: str) -> None:
    """With an embedding of 32,000 words they are what their docstrings say, and within 40 % of their name."""
    stored = json.loads((SNAPSHOTS / f"{name}.json").read_text())[variant]
    millions = (stored["parameters"] + 32_000 * stored["config"]["dim"]) / 1e6
    text = PRESETS[name].__doc__ or ""
    wanted = f"{millions:,.0f} million parameters as LMM" if variant == "lmm" else f"{millions:,.0f} as MAC, MAG or MAL"
    assert wanted in text
    named = {"titans_170m": 170, "titans_340m": 340, "titans_760m": 760, "titans_1_3b": 1300}[name]
    assert 0.7 < millions / named < 1.41


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_preset_has_a_debug_model_that_runs(variant: str) -> None:
    y, _ = Titans(presets.debug(variant))(torch.randn(1, 9, 16))
    assert y.isfinite().all()
    assert {name for name in PRESETS if name.endswith("debug")} >= {"debug", "text_debug", "timeseries_debug"}


@pytest.mark.parametrize("of_preset", [presets.PRESETS.__getitem__, dna_of_preset, text_of_preset, lambda name: encoder_of(preset=name)])
def test_a_preset_that_is_not_there(of_preset: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match=r"^no preset is called 'huge'\. Those that there are: debug, tiny, 170m, 340m, 760m, 1\.3b\.$"):
        of_preset("huge")


def test_the_command_line_knows_the_presets_by_name() -> None:
    assert list(presets.PRESETS) == list(get_args(presets.Preset))
    functions = {
        name.removeprefix("titans_").replace("_", "."): preset for name, preset in PRESETS.items() if preset.__module__ == presets.__name__
    }
    assert functions == presets.PRESETS
