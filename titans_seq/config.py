"""Configuration: one frozen dataclass a part, checked when it is made, JSON both ways."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from titans_seq import strict_json
from titans_seq.display import html_table

Variant = Literal["lmm", "mac", "mag", "mal"]
Forgetting = Literal["head", "channel", "none"]
Activation = Literal["gelu", "silu"]
ForgettingTowards = Literal["zero", "first_state"]
Gradient = Literal["chunk", "token"]

VARIANTS: tuple[Variant, ...] = typing.get_args(Variant)
FORGETTING: tuple[Forgetting, ...] = typing.get_args(Forgetting)
ACTIVATIONS: tuple[Activation, ...] = typing.get_args(Activation)
FORGETTING_TOWARDS: tuple[ForgettingTowards, ...] = typing.get_args(ForgettingTowards)
GRADIENTS: tuple[Gradient, ...] = typing.get_args(Gradient)


class ConfigError(ValueError):
    """A value that a configuration refuses: `path` leads from the outermost configuration to the field, `problem` says what is wrong."""

    def __init__(self, owner: str, path: tuple[str, ...], problem: str) -> None:
        super().__init__(f"{'.'.join((owner, *path))}{problem}")
        self.owner, self.path, self.problem = owner, path, problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.owner, self.path, self.problem)  # another process gets it whole


HIDDEN = "hidden"
"""Key of a field's metadata: true for what no user sets, such as the size of a vocabulary that another option decides; no help shows it."""
LARGEST = 2**63 - 1
"""Of all integers: what a tensor's size can be."""
EXACT = 2**53
"""Of the integers that become floats."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations: to and from plain dictionaries and JSON; unknown keys and wrong types are refused by name."""

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionary, ready for `json.dumps`; an optional part that is None is left out."""
        hints = typing.get_type_hints(type(self))
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            name: value.to_dict() if isinstance(value, Config) else value
            for name, value in values.items()
            if value is not None or config_part(hints[name]) is None
        }

    def to_json(self) -> str:
        """Indented JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def _repr_html_(self) -> str:
        """In a notebook: every value by its dotted name, those that are not the default marked."""
        return html_table(type(self).__name__, _rows(self), note="* is not the default")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: an unknown key (named, with the closest known one), a value of the wrong type or out of range.
        """
        if not isinstance(values, dict):
            raise ConfigError(cls.__name__, (), f": expected a dictionary, got {type(values).__name__}")
        hints = typing.get_type_hints(cls)
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(known))}"
                raise ConfigError(cls.__name__, (), f": unknown key {_short(name)}{hint}")
        for f in dataclasses.fields(cls):
            if f.default is f.default_factory is dataclasses.MISSING and f.name not in values:
                raise ConfigError(cls.__name__, (), f": key {f.name!r} is missing")
        return cls(**{name: cls._restore(name, hints[name], value) for name, value in values.items()})

    @classmethod
    def _restore(cls, name: str, hint: Any, value: Any) -> Any:
        """A nested dictionary becomes the configuration that the field is annotated with; JSON's lists become tuples."""
        part = config_part(hint)
        if part is None or not isinstance(value, dict):
            return tuple(value) if isinstance(value, list) and typing.get_origin(hint) is tuple else value
        try:
            return part.from_dict(value)
        except ConfigError as error:
            raise ConfigError(cls.__name__, (name, *error.path), error.problem) from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`; raises ValueError as `from_dict`, also for text that is not a JSON object or has a key twice."""
        return cls.from_dict(strict_json.loads(text))

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise ConfigError(type(self).__name__, (name,), f" must be {expected}, got {_short(getattr(self, name))}")

    def __post_init__(self) -> None:
        """Check the type of every field; sub-classes add their ranges."""
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value, hint = getattr(self, f.name), hints[f.name]
            if typing.get_origin(hint) is tuple:
                self._check_tuple(f.name, value, typing.get_args(hint)[0])
                continue
            allowed = [word for option in _options(hint) if typing.get_origin(option) is Literal for word in typing.get_args(option)]
            if allowed:
                allowed += [None] if type(None) in _options(hint) else []
                fits = isinstance(value, str | None) and value in allowed
                self._require(f.name, fits, f"one of {', '.join(map(repr, allowed))}")
                continue
            accepted = tuple(option for option in _options(hint) if isinstance(option, type))
            if float in accepted and _is_int(value):
                self._require(f.name, abs(value) <= EXACT, "a number that a float holds exactly")
                object.__setattr__(self, f.name, float(value))
            elif not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
                names = " or ".join("None" if option is type(None) else option.__name__ for option in accepted)
                self._require(f.name, False, f"of type {names}")
            elif isinstance(value, float):
                self._require(f.name, math.isfinite(value), "finite")
            elif isinstance(value, int):
                self._require(f.name, abs(value) <= LARGEST, f"at most {LARGEST}")

    def _check_tuple(self, name: str, value: Any, kind: type) -> None:
        """Integers, texts, or finite numbers that become floats."""
        expected, fits = _ELEMENTS[kind]
        self._require(name, isinstance(value, tuple) and all(map(fits, value)), f"a tuple of {expected}")
        self._require(name, kind is not int or all(abs(x) <= LARGEST for x in value), f"at most {LARGEST}")
        object.__setattr__(self, name, tuple(map(kind, value)))


def _rows(config: Config, prefix: str = "") -> list[tuple[str, str, str]]:
    """Dotted name, value and a mark of what is not the default, of every field."""
    rows: list[tuple[str, str, str]] = []
    for f in dataclasses.fields(config):
        value, default = getattr(config, f.name), f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if isinstance(value, Config):
            rows += _rows(value, f"{prefix}{f.name}.")
        else:
            rows.append((f"{prefix}{f.name}", _short(value), "" if value == default else "*"))
    return rows


def _short(value: Any) -> str:
    """`repr`, cut off where a message would be unreadable."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}.."


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return (_is_int(value) and abs(value) <= EXACT) or (isinstance(value, float) and math.isfinite(value))


_ELEMENTS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    int: ("integers", _is_int),
    float: ("finite numbers", _is_finite),
    str: ("texts", lambda value: isinstance(value, str)),
}


def _head_width(part: "MemoryConfig | AttentionConfig", dim: int, multiple: int) -> int:
    if part.head_dim is not None:
        return part.head_dim
    if dim < 1 or dim % (part.num_heads * multiple):
        needed = f"num_heads={part.num_heads}" + (f" times {multiple}" if multiple > 1 else "")
        raise ValueError(f"dim={dim} must be a multiple of {type(part).__name__}.{needed}; or set its head_dim")
    return dim // part.num_heads


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def config_part(hint: Any) -> type[Config] | None:
    """The configuration that a field is annotated with, alone or as an option."""
    return next((option for option in _options(hint) if isinstance(option, type) and issubclass(option, Config)), None)


@dataclass(frozen=True, kw_only=True)
class LocalMemoryConfig(Config):
    """The local memories beside a global one (TNT, arXiv 2511.07343); networks and gates as of the global one.

    Attributes:
        chunk_sizes: tokens whose gradients are taken at one point, one entry for each local memory.
        shard_length: tokens after which the local memories begin anew; the shards of a sequence run in parallel.
        query_projection: read them with the query as the keys of the shard span it.
    """

    chunk_sizes: tuple[int, ...] = (16,)
    shard_length: int = 2048
    query_projection: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("chunk_sizes", bool(self.chunk_sizes) and min(self.chunk_sizes) >= 1, "at least one chunk size, each at least 1")
        self._require("chunk_sizes", len(self.chunk_sizes) <= 16, "at most 16 chunk sizes")
        self._require("shard_length", self.shard_length >= max(self.chunk_sizes), f"at least the largest of chunk_sizes={self.chunk_sizes}")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Config):
    """The neural long-term memory of a block (arXiv 2501.00663, section 3).

    Attributes:
        num_heads: memories side by side.
        head_dim: width of each memory; None for dim / num_heads.
        depth: layers of the memory network; 1 is the linear memory.
        expansion: hidden width of the memory network, as a multiple of head_dim.
        chunk_size: tokens whose gradients are taken at one point; the same in training and evaluation.
        activation: of the memory network.
        residual: add what the memory network is given to what it makes.
        norm: a layer norm on the memory network's output, before the residual.
        gradient: taken at the state before the "chunk" (the paper), or before the "token" (linear memory without norm only).
        momentum: let steps have momentum, of which each keeps the share eta.
        forgetting: at each token the share alpha of the memory: one per "head", per input "channel" of each memory layer, or "none".
        forgetting_towards: what forgetting draws the memory to: "zero" (the paper), or "first_state", the learned one, which training then
            keeps whatever a stream forgets. For streams that are carried on through training; not with gradient="token".
        gate_rank: rank of the projection to per-channel gates (forgetting="channel" only).
        convolution_width: of the causal depthwise convolution on q, k, v; 1 is none.
        max_step: upper bound of theta, the size of a step on the sum of squares over head_dim; theta starts at a tenth of it. With
            gradient="token" theta is 1 - alpha / 2 at most, which turns over what is stored at a unit key.
        surprise_clip: largest norm of one token's gradient, per head and memory layer; None for none. The default is several times what
            is usual, and bounds the memory whatever it reads. gradient="token" has no clip: with unit keys and without momentum its
            steps let nothing grow that is stored.
        initial_forgetting: the share alpha at the start of training.
        initial_momentum: the share eta at the start of training.
        local: local memories with small chunks beside this one, which is then the global memory and takes a large chunk_size; None for
            none.
    """

    num_heads: int = 4
    head_dim: int | None = None
    depth: int = 2
    expansion: int = 4
    chunk_size: int = 16
    activation: Activation = "gelu"
    residual: bool = True
    norm: bool = True
    gradient: Gradient = "chunk"
    momentum: bool = True
    forgetting: Forgetting = "head"
    forgetting_towards: ForgettingTowards = "zero"
    gate_rank: int = 32
    convolution_width: int = 4
    max_step: float = 0.02
    surprise_clip: float | None = 100.0
    initial_forgetting: float = 0.001
    initial_momentum: float = 0.8
    local: LocalMemoryConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_heads", "depth", "expansion", "chunk_size", "gate_rank", "convolution_width"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("depth", self.depth <= 64, "at most 64")
        self._require("head_dim", self.head_dim is None or self.head_dim >= 1, "at least 1 or None")
        self._require("max_step", 0 < self.max_step <= 1, "in (0, 1]")
        self._require("surprise_clip", self.surprise_clip is None or self.surprise_clip > 0, "positive or None")
        for name in ("initial_forgetting", "initial_momentum"):
            self._require(name, 0 < getattr(self, name) < 1, "strictly between 0 and 1")
        if self.gradient == "token" and (self.depth > 1 or self.norm):
            raise ConfigError(type(self).__name__, ("gradient",), "='token' needs depth=1 and norm=False")
        if self.gradient == "token" and self.forgetting_towards != "zero":
            raise ConfigError(
                type(self).__name__, ("forgetting_towards",), "='first_state' needs gradient='chunk': with gradient='token' it is 'zero'"
            )

    def with_chunk_sizes(self, chunk_size: int | None = None, local: tuple[int, ...] | None = None) -> Self:
        """This memory at other chunk sizes, None for those of now: no parameter's shape depends on them, so a state dict fits both.

        Fine-tuning at smaller chunks is the second stage of TNT (arXiv 2511.07343, section 4.2).

        Raises:
            ValueError: `local` for a memory without local memories, or another number of them; a size out of range.
        """
        now = () if self.local is None else self.local.chunk_sizes
        if local is not None and len(local) != len(now):
            raise ValueError(f"local must have one chunk size for each of {len(now)} local memories, got {local}")
        part = self.local if local is None or self.local is None else dataclasses.replace(self.local, chunk_sizes=local)
        return dataclasses.replace(self, chunk_size=self.chunk_size if chunk_size is None else chunk_size, local=part)

    def head_width(self, dim: int) -> int:
        """head_dim, or dim / num_heads; raises ValueError if that is no integer."""
        return _head_width(self, dim, 1)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Config):
    """The short-term memory of a block: attention over a window or a segment, with persistent memory.

    Attributes:
        num_heads: attention heads side by side.
        head_dim: width of each head, a multiple of 4 (half of it is rotated); None for dim / num_heads.
        sliding_window: tokens that a token sees, itself included (MAG, MAL).
        segment_length: tokens of a segment (MAC).
        persistent_tokens: learned keys and values that every row sees; 0 switches persistent memory off.
        memory_tokens: MAC reads this many learned queries from the memory before each segment; 0 reads one row per token instead.
        rope_base: base of the rotary frequencies.
    """

    num_heads: int = 4
    head_dim: int | None = None
    sliding_window: int = 64
    segment_length: int = 64
    persistent_tokens: int = 4
    memory_tokens: int = 0
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_heads", "sliding_window", "segment_length"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("persistent_tokens", "memory_tokens"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require("head_dim", self.head_dim is None or (self.head_dim > 0 and self.head_dim % 4 == 0), "a multiple of 4 or None")
        self._require("rope_base", self.rope_base > 1, "greater than 1")

    def head_width(self, dim: int) -> int:
        """head_dim, or dim / num_heads; raises ValueError if that is no multiple of 4."""
        return _head_width(self, dim, 4)


@dataclass(frozen=True, kw_only=True)
class TitansConfig(Config):
    """The backbone: `num_layers` blocks of one variant over vectors of width `dim`.

    Attributes:
        dim: width of the model.
        num_layers: blocks, one after the other.
        variant: "lmm" (memory alone), "mac" (memory as context), "mag" (memory as gate) or "mal" (memory as layer).
        hidden_dim: of the SwiGLU feed-forward layer; None for 8/3 dim rounded up to a multiple of 8, as in Llama.
        dropout: on every residual branch, in [0, 1).
        norm_eps: added within the RMS norms, so that none divides by 0.
        memory: the long-term memory of each block.
        attention: the short-term memory of each block.
    """

    dim: int
    num_layers: int
    variant: Variant = "mac"
    hidden_dim: int | None = None
    dropout: float = 0.0
    norm_eps: float = 1e-6
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("dim", self.dim >= 1, "at least 1")
        self._require("num_layers", self.num_layers >= 1, "at least 1")
        self._require("num_layers", self.num_layers <= 1024, "at most 1024")
        self._require("hidden_dim", self.hidden_dim is None or self.hidden_dim >= 1, "at least 1 or None")
        self._require("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self._require("norm_eps", self.norm_eps > 0, "positive")
        self.memory.head_width(self.dim)
        if self.variant != "lmm":
            self.attention.head_width(self.dim)

    def for_carried_state(self) -> Self:
        """The same for training with the state carried on: forgetting draws memories to their first state, not, as in the paper, to zero.

        Else nothing of the first state is left some 1 / alpha tokens into a stream, and training, whose gradients do not reach back to the
        stream's begin, hardly learns it (docs/rule.md, docs/text_benchmark.md).
        """
        return replace(self, memory=replace(self.memory, forgetting_towards="first_state"))


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How a token is drawn. Every filter looks at the chances after the temperature; a token stays that all of them keep.

    Attributes:
        temperature: above 1 unlikely tokens become likelier, below 1 less likely; 0 takes the likeliest token, the first of equal ones.
        top_k: keep so many of the likeliest tokens; None for all.
        top_p: keep the fewest of the likeliest tokens whose chances reach this sum (nucleus sampling, arXiv 1904.09751); None for all.
        min_p: keep tokens of at least this share of the likeliest one's chance (arXiv 2407.01082); None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("temperature", self.temperature >= 0, "at least 0")
        self._require("top_k", self.top_k is None or self.top_k >= 1, "at least 1 or None")
        self._require("top_p", self.top_p is None or 0 < self.top_p <= 1, "in (0, 1] or None")
        self._require("min_p", self.min_p is None or 0 <= self.min_p <= 1, "in [0, 1] or None")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, under dotted names; lists for tuples, as JSON has them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        name = f"{prefix}{name}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: list(value) if isinstance(value, tuple) else value}
    return found
