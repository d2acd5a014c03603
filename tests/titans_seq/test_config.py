"""Configurations: JSON both ways, and nothing unknown or out of range gets in."""

import dataclasses
import pickle
from typing import Any, Literal

import docstring_parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_seq import AttentionConfig, LocalMemoryConfig, MemoryConfig, TitansConfig, presets
from titans_seq.config import ACTIVATIONS, FORGETTING, VARIANTS, Config, ConfigError

COUNT = st.integers(1, 64)
POSITIVE = st.floats(min_value=1e-12, max_value=1e12)
INSIDE = st.floats(0, 1, exclude_min=True, exclude_max=True)
FREE_HEAD_DIM = st.none() | COUNT
HEADS = st.sampled_from([1, 2, 4])  # 16 n is a multiple of 4 times each


@st.composite
def memory_configs(draw: st.DrawFn) -> MemoryConfig:
    token = draw(st.booleans())
    only_token: dict[str, Any] = {"gradient": "token", "depth": 1, "norm": False}
    others = {"depth": draw(COUNT), "norm": draw(st.booleans())}
    return MemoryConfig(
        num_heads=draw(HEADS),
        head_dim=draw(FREE_HEAD_DIM),
        expansion=draw(COUNT),
        chunk_size=draw(COUNT),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        residual=draw(st.booleans()),
        momentum=draw(st.booleans()),
        forgetting=draw(st.sampled_from(FORGETTING)),
        gate_rank=draw(COUNT),
        convolution_width=draw(COUNT),
        surprise_clip=draw(st.none() | POSITIVE),
        max_step=draw(st.floats(0, 1, exclude_min=True)),
        initial_forgetting=draw(INSIDE),
        initial_momentum=draw(INSIDE),
        **(only_token if token else others),
    )


ATTENTION_CONFIGS = st.builds(
    AttentionConfig,
    num_heads=HEADS,
    head_dim=st.none() | COUNT.map(lambda n: 4 * n),
    sliding_window=COUNT,
    segment_length=COUNT,
    persistent_tokens=st.integers(0, 9),
    memory_tokens=st.integers(0, 9),
    rope_base=st.floats(1, 1e9, exclude_min=True),
)
CONFIGS = st.builds(
    TitansConfig,
    dim=COUNT.map(lambda n: 16 * n),
    num_layers=COUNT,
    variant=st.sampled_from(VARIANTS),
    hidden_dim=st.none() | COUNT,
    dropout=st.floats(0, 1, exclude_max=True),
    norm_eps=POSITIVE,
    memory=memory_configs(),
    attention=ATTENTION_CONFIGS,
)


@given(config=CONFIGS)
@settings(max_examples=100, deadline=None)
def test_json_round_trip(config: TitansConfig) -> None:
    assert TitansConfig.from_json(config.to_json()) == config
    assert TitansConfig.from_dict(config.to_dict()) == config
    assert hash(TitansConfig.from_json(config.to_json())) == hash(config)


def test_what_is_left_out_takes_its_default() -> None:
    config = TitansConfig.from_json('{"dim": 32, "num_layers": 2, "memory": {"depth": 3}}')
    assert config == TitansConfig(dim=32, num_layers=2, memory=MemoryConfig(depth=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 16, "num_layer": 1}, r"TitansConfig: unknown key 'num_layer'; did you mean 'num_layers'\?"),
        ({"dim": 16, "num_layers": 1, "memory": {"chunk": 4}}, r"TitansConfig.memory: unknown key 'chunk'"),
        (
            {"dim": 16, "num_layers": 1, "memory": {"chunksize": 4}},
            r"TitansConfig.memory: unknown key 'chunksize'; .* 'chunk_size'\?",
        ),
        ({"dim": 16, "num_layers": 1, "attention": {"window": 4}}, r"TitansConfig.attention: unknown key 'window'"),
        ({"dim": 16, "num_layers": 1, "zzz": 4}, r"TitansConfig: unknown key 'zzz'; known keys: attention, dim, "),
    ],
    ids=["close", "nested", "nested-close", "attention", "far"],
)
def test_unknown_keys_are_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TitansConfig.from_dict(values)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"dim"', "{", ""])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a dictionary|Expecting|line 1"):
        TitansConfig.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"dim": 16, "num_layers": 1, "dim": 32}', "key 'dim' comes twice"),
        ('{"dim": 16, "num_layers": 1, "memory": {"depth": 1, "depth": 2}}', "key 'depth' comes twice"),
        ('{"dim": 16, "num_layers": 1, "dropout": NaN}', "NaN is no JSON"),
        ('{"dim": 16, "num_layers": 1, "dropout": -Infinity}', "-Infinity is no JSON"),
        ('{"dim": 16, "num_layers": 1, "norm_eps": 1e400}', "the number 1e400 is too large"),
        (f'{{"dim": 16, "num_layers": {"9" * 5000}}}', "4300 digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
    ],
    ids=["twice", "nested-twice", "nan", "infinity", "float", "digits", "lists", "dictionaries"],
)
def test_json_that_does_not_mean_one_thing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TitansConfig.from_json(text)


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (MemoryConfig, {"max_step": 10**400}, "MemoryConfig.max_step must be a number that a float holds exactly, got 1000.*0\\.\\."),
        (MemoryConfig, {"surprise_clip": 2**53 + 1}, "MemoryConfig.surprise_clip must be a number that a float holds exactly"),
        (AttentionConfig, {"sliding_window": 2**63}, f"AttentionConfig.sliding_window must be at most {2**63 - 1}, got {2**63}"),
        (LocalMemoryConfig, {"chunk_sizes": (2**63,)}, f"LocalMemoryConfig.chunk_sizes must be at most {2**63 - 1}"),
        (LocalMemoryConfig, {"chunk_sizes": (1,) * 17}, "LocalMemoryConfig.chunk_sizes must be at most 16 chunk sizes"),
        (MemoryConfig, {"depth": 65}, "MemoryConfig.depth must be at most 64, got 65"),
        (TitansConfig, {"dim": 16, "num_layers": 10**9}, "TitansConfig.num_layers must be at most 1024, got 1000000000"),
        (TitansConfig, {"dim": 16, "num_layers": 1, "variant": "x" * 10_000}, "TitansConfig.variant must be one of .*x{100}\\.\\."),
    ],
)
def test_numbers_that_nothing_can_hold_are_refused(config_class: type[Config], values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        config_class.from_dict(values)
    assert len(str(caught.value)) < 500


def test_a_missing_key_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="num_layers"):
        TitansConfig.from_dict({"dim": 16})


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (TitansConfig, {"dim": "16", "num_layers": 1}, r"TitansConfig.dim must be of type int, got '16'"),
        (TitansConfig, {"dim": 16.0, "num_layers": 1}, r"TitansConfig.dim must be of type int, got 16.0"),
        (TitansConfig, {"dim": 16, "num_layers": True}, r"TitansConfig.num_layers must be of type int, got True"),
        (TitansConfig, {"dim": 16, "num_layers": None}, r"TitansConfig.num_layers must be of type int, got None"),
        (TitansConfig, {"dim": 16, "num_layers": 1, "hidden_dim": 2.5}, r"TitansConfig.hidden_dim must be of type int or None"),
        (TitansConfig, {"dim": 16, "num_layers": 1, "dropout": False}, r"TitansConfig.dropout must be of type float, got False"),
        (
            TitansConfig,
            {"dim": 16, "num_layers": 1, "variant": 1},
            r"TitansConfig.variant must be one of 'lmm', .*, got 1",
        ),
        (TitansConfig, {"dim": 16, "num_layers": 1, "memory": "deep"}, r"TitansConfig.memory must be of type MemoryConfig, got 'deep'"),
        (TitansConfig, {"dim": 16, "num_layers": 1, "memory": None}, r"TitansConfig.memory must be of type MemoryConfig, got None"),
        (TitansConfig, {"dim": 16, "num_layers": 1, "memory": {"norm": 1}}, r"TitansConfig.memory.norm must be of type bool, got 1"),
        (MemoryConfig, {"surprise_clip": "1"}, r"MemoryConfig.surprise_clip must be of type float or None, got '1'"),
        (AttentionConfig, {"rope_base": [1.0]}, r"AttentionConfig.rope_base must be of type float, got \[1.0\]"),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_wrong_types_are_refused(config_class: type[Config], values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class.from_dict(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dated(Config):
    """Attributes: order: of a date."""

    order: Literal["day", "month"] | None = None


def test_one_of_some_words_or_none() -> None:
    assert [Dated(order=order).order for order in ("day", None)] == ["day", None]
    for order in ("year", "None", 1):
        with pytest.raises(ValueError, match=r"Dated.order must be one of 'day', 'month', None, got"):
            Dated.from_dict({"order": order})


def test_an_integer_is_a_float_too() -> None:
    assert isinstance(MemoryConfig(max_step=1).max_step, float)
    assert isinstance(MemoryConfig(surprise_clip=2).surprise_clip, float)
    with pytest.raises(ValueError, match=r"TitansConfig.memory must be of type MemoryConfig"):
        TitansConfig(dim=16, num_layers=1, memory={})  # type: ignore[arg-type]


NAN = float("nan")
RANGES: list[tuple[type[Config], str, list[Any], str]] = [
    *((MemoryConfig, name, [0, -1], "at least 1") for name in ("num_heads", "depth", "expansion", "chunk_size", "gate_rank")),
    (MemoryConfig, "convolution_width", [0], "at least 1"),
    (MemoryConfig, "head_dim", [0, -4], "at least 1 or None"),
    (MemoryConfig, "activation", ["relu"], "one of 'gelu', 'silu'"),
    (MemoryConfig, "gradient", ["row"], "one of 'chunk', 'token'"),
    (MemoryConfig, "forgetting", ["Head"], "one of 'head', 'channel', 'none'"),
    (MemoryConfig, "max_step", [0.0, -0.1, 1.01, NAN], r"in \(0, 1\]"),
    (MemoryConfig, "surprise_clip", [0.0, -1.0, NAN], "positive or None"),
    (MemoryConfig, "initial_forgetting", [0.0, 1.0, NAN], "strictly between 0 and 1"),
    (MemoryConfig, "initial_momentum", [0.0, 1.0, NAN], "strictly between 0 and 1"),
    *((AttentionConfig, name, [0], "at least 1") for name in ("num_heads", "sliding_window", "segment_length")),
    *((AttentionConfig, name, [-1], "at least 0") for name in ("persistent_tokens", "memory_tokens")),
    (AttentionConfig, "head_dim", [0, -4, 6], "a multiple of 4 or None"),
    (AttentionConfig, "rope_base", [1.0, 0.0, NAN], "greater than 1"),
    *((TitansConfig, name, [0], "at least 1") for name in ("dim", "num_layers")),
    (TitansConfig, "variant", ["MAC", ""], "one of 'lmm', 'mac', 'mag', 'mal'"),
    (TitansConfig, "hidden_dim", [0], "at least 1 or None"),
    (TitansConfig, "dropout", [-0.1, 1.0, NAN], r"in \[0, 1\)"),
    (TitansConfig, "norm_eps", [0.0, NAN], "positive"),
]


@pytest.mark.parametrize(
    ("config_class", "name", "value", "expected"),
    [
        pytest.param(config_class, name, value, expected, id=f"{name}={value}")
        for config_class, name, values, expected in RANGES
        for value in values
    ],
)
def test_ranges(config_class: type[Config], name: str, value: Any, expected: str) -> None:
    needed = {"dim": 16, "num_layers": 1} if config_class is TitansConfig else {}
    expected = "finite" if value != value else expected
    with pytest.raises(ValueError, match=f"{config_class.__name__}.{name} must be {expected}, got {value!r}"):
        config_class(**(needed | {name: value}))


def test_token_gradients_need_the_plain_linear_memory() -> None:
    MemoryConfig(gradient="token", depth=1, norm=False)
    for values in ({"depth": 2, "norm": False}, {"depth": 1, "norm": True}):
        with pytest.raises(ValueError, match="gradient='token' needs depth=1 and norm=False"):
            MemoryConfig(gradient="token", **values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forgetting_towards='first_state' needs gradient='chunk'"):
        MemoryConfig(gradient="token", depth=1, norm=False, forgetting_towards="first_state")


def test_dim_must_divide_into_heads() -> None:
    with pytest.raises(ValueError, match=r"dim=10 must be a multiple of MemoryConfig.num_heads=4; or set its head_dim"):
        TitansConfig(dim=10, num_layers=1, attention=AttentionConfig(head_dim=4))
    with pytest.raises(ValueError, match=r"dim=24 must be a multiple of AttentionConfig.num_heads=4 times 4; or set its head_dim"):
        TitansConfig(dim=24, num_layers=1)
    TitansConfig(dim=10, num_layers=1, memory=MemoryConfig(head_dim=3), attention=AttentionConfig(head_dim=8))


def test_configurations_are_frozen() -> None:
    config = presets.debug()
    for part, name in ((config, "dim"), (config.memory, "depth"), (config.attention, "rope_base")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, 1)
    assert dataclasses.replace(config, dim=32).dim == 32
    with pytest.raises(ValueError, match="dim must be at least 1"):
        dataclasses.replace(config, dim=0)


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"chunk_size": 0}, ("memory", "chunk_size"), "TitansConfig.memory.chunk_size must be at least 1, got 0"),
        (
            {"local": {"shard_length": 1}},
            ("memory", "local", "shard_length"),
            "memory.local.shard_length must be at least the",
        ),
        ({"local": {"chunk_sizes": [1.5]}}, ("memory", "local", "chunk_sizes"), "must be a tuple of integers, got (1.5,)"),
        ({"local": {"chunk": 2}}, ("memory", "local"), "TitansConfig.memory.local: unknown key 'chunk'"),
        ({"local": 3}, ("memory", "local"), "TitansConfig.memory.local must be of type LocalMemoryConfig or None, got 3"),
        ({"gradient": "token"}, ("memory", "gradient"), "TitansConfig.memory.gradient='token' needs depth=1 and norm=False"),
        ({"max_step": 10**400}, ("memory", "max_step"), "TitansConfig.memory.max_step must be a number that a float holds exactly"),
    ],
    ids=["range", "deep", "tuple", "key", "type", "together", "huge"],
)
def test_an_error_gives_the_path_to_the_field(changes: dict, path: tuple, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TitansConfig.from_dict({"dim": 16, "num_layers": 1, "memory": changes})
    assert message in str(caught.value)
    assert caught.value.path == path
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # from a worker process


@pytest.mark.parametrize("config_class", [TitansConfig, MemoryConfig, AttentionConfig, LocalMemoryConfig])
def test_every_field_is_described(config_class: type[Config]) -> None:
    """The command line shows these lines as its help."""
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(config_class.__doc__ or "").params}
    assert all(described.values())
    assert list(described) == [f.name for f in dataclasses.fields(config_class)]
