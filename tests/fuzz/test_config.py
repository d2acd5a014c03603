"""Configurations from JSON: a valid one or a ValueError, never anything else, and what is accepted is what was written."""

import dataclasses
import importlib
import json
import math
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.strategies import TOKENS, VALUES, dumps, mutated_text, mutated_values
from titans_seq.config import Config

ROOT = Path(__file__).parents[2]
for source in (*ROOT.glob("titans_seq/**/*.py"), *ROOT.glob("domains/**/*.py")):
    if "(Config)" in source.read_text():
        importlib.import_module(".".join(source.relative_to(ROOT).with_suffix("").parts))


def configurations(base: type[Config] = Config) -> list[type[Config]]:
    """All configurations of the package and its domains."""
    found = [kind for child in base.__subclasses__() for kind in (child, *configurations(child))]
    return sorted({kind for kind in found if kind.__module__.startswith(("titans_seq.", "domains."))}, key=lambda kind: kind.__name__)


REQUIRED: dict[str, Any] = {str(int): 16, str(str): "D", str(tuple[str, ...]): ["a", "b"]}
"""A value for a field without a default, by its type."""


def example(kind: type[Config]) -> dict[str, Any]:
    """A valid configuration with every part in it."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        options = typing.get_args(hints[field.name]) or (hints[field.name],)
        part = next((option for option in options if isinstance(option, type) and issubclass(option, Config)), None)
        if part is not None:
            values[field.name] = example(part)
        elif field.default is field.default_factory is dataclasses.MISSING:
            values[field.name] = REQUIRED[str(hints[field.name])]
    return kind.from_dict(values).to_dict()


def test_every_configuration_is_found() -> None:
    names = {kind.__name__ for kind in configurations()}
    assert names >= {"TitansConfig", "LocalMemoryConfig", "TrainingConfig", "TextConfig", "ForecasterConfig", "OutputConfig"}


KINDS = st.sampled_from(configurations())


def check(kind: type[Config], text: str) -> None:
    try:
        config = kind.from_json(text)
    except ValueError as error:
        assert 0 < len(str(error)) < 2000, "a message, and a readable one"
        str(error).encode()  # can be printed
        return
    assert_says(config, json.loads(text))
    json.dumps(config.to_dict(), allow_nan=False)
    assert kind.from_json(config.to_json()) == config


def assert_says(config: Config, given: dict[str, Any]) -> None:
    for name, value in given.items():
        taken = getattr(config, name)
        if isinstance(taken, Config):
            assert_says(taken, value)
        elif isinstance(taken, tuple):
            assert list(taken) == value
            assert all(type(x) is type(y) or (type(x), type(y)) == (int, float) for x, y in zip(value, taken, strict=True))
        elif isinstance(taken, float):
            assert type(value) in (int, float)
            assert taken == value
            assert math.isfinite(taken)
        else:
            assert type(taken) is type(value)
            assert taken == value


@given(kind=KINDS, data=st.data())
def test_any_json(kind: type[Config], data: st.DataObject) -> None:
    check(kind, dumps(data.draw(VALUES)))


@given(kind=KINDS, data=st.data())
def test_valid_json_with_other_values(kind: type[Config], data: st.DataObject) -> None:
    check(kind, dumps(data.draw(mutated_values(example(kind)))))


@given(kind=KINDS, data=st.data())
def test_damaged_text(kind: type[Config], data: st.DataObject) -> None:
    check(kind, data.draw(st.lists(TOKENS, max_size=6).map("".join) | st.text(max_size=20) | mutated_text(json.dumps(example(kind)))))


@given(kind=KINDS, data=st.data())
def test_a_key_that_comes_twice_is_refused(kind: type[Config], data: st.DataObject) -> None:
    values = example(kind)
    name = data.draw(st.sampled_from(sorted(values)))
    text = json.dumps(values)[:-1] + f", {json.dumps(name)}: {dumps(data.draw(VALUES | st.just(values[name])))}}}"
    with pytest.raises(ValueError, match=rf"{name}.* twice|JSON|digits"):
        kind.from_json(text)
