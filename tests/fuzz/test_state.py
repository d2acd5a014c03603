"""State files from strangers: a state of the right kind, which a model takes or refuses, or a UserError that names the file."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from tests.fuzz.strategies import FEWER, TOKENS, VALUES, dumps, mutated_bytes, mutated_text, mutated_values
from tests.fuzz.tensors import CHANGES, Changes, change_tensors
from titans_seq import LocalMemoryConfig, Titans, UserError, presets
from titans_seq.backbone import TitansState
from titans_seq.config import VARIANTS, TitansConfig
from titans_seq.state import _METADATA_KEY

LENGTH = 4


def two_level() -> TitansConfig:
    config = presets.debug("lmm")
    local = LocalMemoryConfig(chunk_sizes=(2,), shard_length=4)
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, local=local))


CONFIGS = {**{variant: presets.debug(variant) for variant in VARIANTS}, "two-level": two_level()}


class Subject(NamedTuple):
    """A model, the content of a state file of it, and where to write a damaged one."""

    model: Titans
    content: bytes
    path: Path

    def __repr__(self) -> str:
        """Without the content, which a report of a failing case would print."""
        return f"Subject({self.path.name})"


NAMES = st.sampled_from(sorted(CONFIGS))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    made = {}
    for name, config in CONFIGS.items():
        model = Titans(config).eval()
        with torch.inference_mode():
            model(torch.randn(2, 9, 16))[1].save(path)
        made[name] = Subject(model, path.read_bytes(), path)
    return made


def check(subject: Subject, content: bytes) -> None:
    model, _, path = subject
    path.write_bytes(content)
    try:
        state = TitansState.load(path)
    except UserError as error:
        assert str(path) in str(error)
        str(error).encode()
        return
    assert isinstance(state, TitansState)
    size = max((float(x.double().abs().max()) for x in state.tensors() if x.numel()), default=0.0)
    try:
        with torch.inference_mode():
            y, after = model(torch.randn(state.batch_size, LENGTH, 16), state)
    except ValueError:  # a state, but not of this model
        return
    assert y.shape == (state.batch_size, LENGTH, 16)
    assert size > 1e4 or all(torch.isfinite(x).all() for x in (y, *after.tensors()))


def parts(content: bytes) -> tuple[dict, dict]:
    """The header of a file without its metadata; and the structure of the state."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header, json.loads(header["__metadata__"][_METADATA_KEY])


@FEWER
@given(name=NAMES, data=st.data())
def test_bytes(subjects: dict[str, Subject], name: str, data: st.DataObject) -> None:
    content = subjects[name].content
    head = 8 + int.from_bytes(content[:8], "little")
    check(subjects[name], data.draw(mutated_bytes(content, head)))


@FEWER
@given(name=NAMES, data=st.data())
def test_structure(subjects: dict[str, Subject], name: str, data: st.DataObject) -> None:
    """Whole files whose metadata describe something else."""
    structure = parts(subjects[name].content)[1]
    text = data.draw(
        mutated_values(structure).map(dumps)
        | moved_parts(structure).map(dumps)
        | mutated_text(json.dumps(structure))
        | TOKENS
        | VALUES.map(dumps)
    )
    check(subjects[name], save(load(subjects[name].content), {_METADATA_KEY: text.encode("utf-8", "replace").decode()}))


@st.composite
def moved_parts(draw: st.DrawFn, structure: dict) -> dict:
    """A part of the structure in the place of another."""
    structure = json.loads(json.dumps(structure))
    nodes: list[tuple[dict | list, str | int]] = []

    def collect(node: object) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in items:
            nodes.append((node, key))  # type: ignore[arg-type]
            collect(item)

    collect(structure)
    for _ in range(draw(st.integers(1, 2))):
        (to, key), (source, other) = draw(st.sampled_from(nodes)), draw(st.sampled_from(nodes))
        to[key] = json.loads(json.dumps(source[other]))  # type: ignore[index]
    return structure


@FEWER
@given(name=NAMES, changes=CHANGES)
def test_tensors(subjects: dict[str, Subject], name: str, changes: Changes) -> None:
    """Whole files with tensors of other shapes, dtypes and values."""
    tensors = load(subjects[name].content)
    check(subjects[name], save(change_tensors(tensors, changes), {_METADATA_KEY: json.dumps(parts(subjects[name].content)[1])}))
