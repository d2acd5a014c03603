"""Configurations on the command line: flags, files and Python mean the same, and what is refused is named by its flag."""

import dataclasses
import importlib
import io
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.docs.pages import blocks
from titans_seq import AttentionConfig, LocalMemoryConfig, MemoryConfig, TitansConfig, UserError, presets
from titans_seq.cli import build_app
from titans_seq.config import Config
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.training import TrainingConfig

BASE = presets.tiny()


@configured(backbone=presets.tiny)
def train(file: Path | None = None, /, *, backbone: TitansConfig, epochs: int = 1, config: ConfigFile = None) -> tuple[TitansConfig, int]:
    """Train a thing."""
    return backbone, epochs


def parse(*tokens: object) -> tuple[TitansConfig, int]:
    app = build_app()
    app.command(train)
    return app(["train", *map(str, tokens)], exit_on_error=False, print_error=False)


def flags(prefix: str, config: Any) -> list[str]:
    """Every field as one would type it."""
    tokens: list[str] = []
    for f in dataclasses.fields(config):
        value, flag = getattr(config, f.name), f"{prefix}.{f.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            tokens += flags(flag, value)
        elif isinstance(value, bool):
            tokens.append(flag if value else f"{prefix}.no-{f.name.replace('_', '-')}")
        elif isinstance(value, tuple):
            tokens += [flag, *map(str, value)]
        else:
            tokens += [flag, str(value).lower() if value is None else str(value)]
    return tokens


MEMORIES = st.builds(
    MemoryConfig,
    head_dim=st.none() | st.integers(1, 64),
    depth=st.integers(1, 4),
    activation=st.sampled_from(["gelu", "silu"]),
    norm=st.booleans(),
    momentum=st.booleans(),
    forgetting=st.sampled_from(["head", "channel", "none"]),
    max_step=st.floats(0, 1, exclude_min=True),
    surprise_clip=st.none() | st.floats(1e-9, 1e9),
    local=st.none() | st.builds(LocalMemoryConfig, chunk_sizes=st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple)),
)
CONFIGS = st.builds(
    TitansConfig,
    dim=st.integers(1, 9).map(lambda n: 16 * n),
    num_layers=st.integers(1, 9),
    variant=st.sampled_from(["lmm", "mac", "mag", "mal"]),
    hidden_dim=st.none() | st.integers(1, 99),
    memory=MEMORIES,
    attention=st.builds(AttentionConfig, rope_base=st.floats(1.5, 1e9)),
)


@given(config=CONFIGS)
@settings(max_examples=25, deadline=None)
def test_every_configuration_can_be_typed(config: TitansConfig) -> None:
    assert parse(*flags("--backbone", config)) == (config, 1)


@given(config=CONFIGS)
@settings(max_examples=25, deadline=None)
def test_every_configuration_can_be_read_from_a_file(config: TitansConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("config") / "run.json"
    path.write_text(json.dumps({"epochs": 4, "backbone": config.to_dict()}))
    assert parse("--config", path) == (config, 4)


def two_levels() -> TitansConfig:
    return TitansConfig(dim=64, num_layers=2, memory=MemoryConfig(local=LocalMemoryConfig()))


@configured(backbone=two_levels)
def train_two_levels(*, backbone: TitansConfig, config: ConfigFile = None) -> TitansConfig:
    """Train a thing."""
    return backbone


@pytest.mark.parametrize("way", ["flags", "file"])
def test_an_optional_part_can_be_left_out(way: str, tmp_path: Path) -> None:
    app = build_app()
    app.command(train_two_levels, name="train")
    (tmp_path / "run.json").write_text('{"backbone": {"memory": {"local": null, "surprise_clip": null}}}')
    typed = ["--backbone.memory.local", "none", "--backbone.memory.surprise-clip", "none"]
    tokens = typed if way == "flags" else ["--config", str(tmp_path / "run.json")]
    assert app(["train"], exit_on_error=False) == two_levels()
    found = app(["train", *tokens], exit_on_error=False)
    assert found == TitansConfig(dim=64, num_layers=2, memory=MemoryConfig(surprise_clip=None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartConfig(Config):
    """A part whose first field takes none too."""

    size: int | None = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeConfig(Config):
    """With a part that may be left out."""

    part: PartConfig | None = dataclasses.field(default_factory=PartConfig)


@configured(whole=WholeConfig)
def use_whole(*, whole: WholeConfig, config: ConfigFile = None) -> WholeConfig:
    """Use a thing."""
    return whole


@pytest.mark.parametrize(
    ("given", "part"), [("null", None), ('{"size": null}', PartConfig(size=None)), ('{"size": 3}', PartConfig(size=3))]
)
def test_a_part_that_is_left_out_is_no_part_whose_first_field_is(given: str, part: PartConfig | None, tmp_path: Path) -> None:
    app = build_app()
    app.command(use_whole, name="use")
    (tmp_path / "run.json").write_text(f'{{"whole": {{"part": {given}}}}}')
    assert app(["use", "--config", str(tmp_path / "run.json")], exit_on_error=False) == WholeConfig(part=part)
    typed = ["--whole.part", "none"] if part is None else ["--whole.part.size", str(part.size).lower()]
    assert app(["use", *typed], exit_on_error=False) == WholeConfig(part=part)
    screen = io.StringIO()
    app.help_print(["use"], console=Console(file=screen, width=80))
    assert "is-none" not in screen.getvalue()


def of_size(size: int) -> TitansConfig:
    return dataclasses.replace(BASE, dim=size)


@configured(backbone=of_size, training=TrainingConfig)
def train_by_size(
    *, size: int = 32, backbone: TitansConfig, training: Annotated[TrainingConfig, TOP_LEVEL], config: ConfigFile = None
) -> tuple[int, TitansConfig, TrainingConfig]:
    """Train a thing."""
    return size, backbone, training


@pytest.mark.parametrize("way", ["flags", "file"])
def test_a_base_may_be_chosen_and_flags_may_stand_at_the_top(way: str, tmp_path: Path) -> None:
    """A preset's name decides what flags and files then change; a configuration at the top level has the fields as flags."""
    app = build_app()
    app.command(train_by_size, name="train")
    assert app(["train"]) == (32, of_size(32), TrainingConfig())
    (tmp_path / "run.json").write_text('{"size": 64, "backbone": {"num_layers": 1}, "max_steps": 7, "gradient-clip": null}')
    typed = ["--size", "64", "--backbone.num-layers", "1", "--max-steps", "7", "--gradient-clip", "none"]
    found = app(["train", *(typed if way == "flags" else ["--config", str(tmp_path / "run.json")])])
    assert found == (64, dataclasses.replace(of_size(64), num_layers=1), TrainingConfig(max_steps=7, gradient_clip=None))
    with pytest.raises(UserError, match=r"^--max-steps must be at least 1, got 0$"):
        app(["train", "--max-steps", "0"])
    with pytest.raises(UserError, match=r"^--backbone: dim=9 must be a multiple"):
        app(["train", "--backbone.dim", "9"])
    screen = io.StringIO()
    app.help_print(["train"], console=Console(file=screen, width=80))
    assert "--backbone.dim INT         width of the model. [default: 32]" in screen.getvalue()
    assert "│ --max-steps INT " in screen.getvalue()


def test_nothing_given_is_the_base() -> None:
    assert parse() == (BASE, 1)


WRITERS: dict[str, Callable[[dict], str]] = {
    "json": json.dumps,
    "yaml": yaml.safe_dump,
    "yml": yaml.safe_dump,
    "toml": lambda values: (
        f"epochs = {values['epochs']}\n[backbone.memory]\n"
        + "".join(f"{name} = {json.dumps(x)}\n" for name, x in values["backbone"]["memory"].items())
    ),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_flags_come_before_the_file_and_the_file_before_the_base(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"run.{suffix}"
    path.write_text(WRITERS[suffix]({"epochs": 5, "backbone": {"memory": {"depth": 3, "norm": False, "chunk_size": 8}}}))
    backbone, epochs = parse("data.csv", "--config", path, "--backbone.memory.chunk-size", 4)
    assert epochs == 5
    assert backbone == dataclasses.replace(BASE, memory=dataclasses.replace(BASE.memory, depth=3, norm=False, chunk_size=4))
    assert parse("--config", path, "--epochs", 2)[1] == 2


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--backbone.memory.chunk-size", "0"], "--backbone.memory.chunk-size must be at least 1, got 0"),
        (["--backbone.memory.local.chunk-sizes", "8", "0"], "--backbone.memory.local.chunk-sizes must be at least one chunk size"),
        (["--backbone.dim", "9"], "--backbone: dim=9 must be a multiple of MemoryConfig.num_heads=4"),
        (["--backbone.memory.gradient", "token"], "--backbone.memory.gradient='token' needs depth=1 and norm=False"),
        (["--backbone", "64"], "--backbone takes no value itself, got '64'; name a field: --backbone.dim"),
        (["--backbone.dropout", "nan"], "--backbone.dropout must be finite, got nan"),
    ],
)
def test_what_a_configuration_refuses_is_named_by_its_flag(tokens: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(*tokens)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": {"memory": {"dpth": 1}}}, "[backbone][memory][dpth]"),
        ({"epochs": 2.5}, "2.5"),
        ({"backbone": {"memory": {"depth": 2.5}}}, "2.5"),
        ({"backbone": {"memory": {"local": {"chunk_sizes": [8, 2.5]}}}}, "2.5"),
        ({"backbone": {"memory": {"depth": "deep"}}}, "deep"),
        ({"backbone": {"variant": "lstm"}}, "lstm"),
        ({"backbone": 3}, "--backbone takes no value itself, got '3'"),
        ({"backbone": {"memory": [1, 2]}}, "--backbone.memory takes no value itself, got '1'"),
        ({"epoch": 3}, "epoch"),
        ([1], "holds a list, expected options by name"),
    ],
)
def test_what_a_file_must_not_say(values: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values))
    with pytest.raises((UserError, cyclopts.CycloptsError)) as caught:
        parse("--config", path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.toml", None, "no such file"),
        ("run.ini", "", "the name must end in .toml, .json, .yaml, .yml"),
        ("run.toml", "[", "run.toml"),
        ("run.json", "{", "run.json"),
        ("run.json", "\0", "run.json"),
        ("run.yaml", "a: [", "run.yaml"),
        ("run.json", "[" * 100_000, "run.json"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((UserError, cyclopts.CycloptsError)) as caught:
        parse("--config", tmp_path / name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"epochs": 1, "epochs": 2}', "key 'epochs' comes twice"),
        ("x.yaml", "epochs: 1\nepochs: 2", "key 'epochs' comes twice"),
        ("x.toml", "epochs = 1\nepochs = 2", "Cannot overwrite a value"),
        ("x.json", '{"backbone": {"dropout": NaN}}', "NaN is no JSON"),
        ("x.json", "[" * 9999, "nested too deeply"),
        ("x.toml", "a." * 30 + "b = 1", "nested more than 16 deep"),
        (
            "x.yaml",
            "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{p: *{a}, q: *{a}}}\n" for a, b in pairwise("abcdefghijklmn")),
            "more than 10000",
        ),
        ("x.yaml", "a: &a {b: *a}", "more than 10000 values|nested more than 16 deep"),
        ("x.yaml", "epochs: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("x.yaml", "1: 2", "the name 1 is no text"),
        ("x.yaml", "- a", "holds a list, expected options by name"),
        ("x.json", '"' + "x" * 70_000 + '"', "larger than 65536 bytes"),
        ("x" * 300 + ".json", "", "File name too long"),
    ],
)
def test_files_from_strangers(name: str, text: str, message: str, tmp_path: Path) -> None:
    if len(name) < 200:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"--config {re.escape(str(tmp_path / name))}: .*({message})"):
        parse("--config", tmp_path / name)


def test_the_documents_command_works() -> None:
    (code,) = (block.text for block in blocks("docs/cli.md", "python") if "configured" in block.text)
    names: dict[str, Any] = {}
    exec(code, names)
    app = build_app()
    app.command(names["train"])
    _, bound, _ = app.parse_args(["train", "data.csv", "--epochs", "2", "--backbone.memory.chunk-size", "8"], exit_on_error=False)
    assert bound.arguments["file"] == Path("data.csv")
    assert bound.arguments["epochs"] == 2
    assert bound.arguments["backbone"].memory.chunk_size == 8
    screen = io.StringIO()
    app.help_print(["train"], console=Console(file=screen, width=80))
    assert "passes over it. [default: 1]" in screen.getvalue()


def test_another_library_may_have_loaded_pydantic() -> None:
    """cyclopts checks values with pydantic where that is imported, as the hub's library does."""
    importlib.import_module("pydantic")
    test_nothing_given_is_the_base()
