"""What is measured and what comes out, as plain dataclasses that go to JSON and back."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

FORWARD, BACKWARD, DECODE = "forward", "forward + backward", "decode"
MODES = (FORWARD, BACKWARD, DECODE)
WIDTH, DEPTH, BATCH = 64, 2, 1  # head width and memory layers of all cells; dim / WIDTH heads
TIMED_RUNS = 5
DECODE_WINDOW = 64  # tokens of one timed run of decoding
SHORT, LONG = 4096, 131_072  # lengths whose times a token are compared, run alternately in one process


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    tokens: length of the sequence; for decoding, the tokens read before the first window.
    expansion, chunk_size: of the memory, None where there is none. layers: of a whole model, None for one layer or the operator.
    """

    subject: str
    mode: str
    tokens: int
    dim: int = 256
    expansion: int | None = None
    chunk_size: int | None = None
    layers: int | None = None

    @property
    def heads(self) -> int:
        return self.dim // WIDTH

    @property
    def label(self) -> str:
        """The subject with its sizes, without mode and tokens."""
        parts = [self.subject]
        parts += [f"dim {self.dim}, {self.layers} layer{'s' if self.layers > 1 else ''}"] if self.layers else []
        parts += [f"E {self.expansion}"] if self.expansion else []
        parts += [f"C {self.chunk_size}"] if self.chunk_size else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Limits:
    """What a cell may take.

    budget_seconds: for its timed runs; twice as much ends it. prefill_seconds: besides, for reaching a position to decode at.
    """

    threads: int = 2
    budget_seconds: float = 45.0
    prefill_seconds: float = 300.0
    device: str = "cpu"


@dataclass(frozen=True)
class Spread:
    """Median, range and quartiles of the timed runs."""

    median: float
    min: float
    max: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, high = values[0], values[0]
        if len(values) > 1:
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), min(values), max(values), low, high)


@dataclass(frozen=True)
class Floor:
    """The time that the matrix products alone would take at the rate torch.bmm reaches on each of their shapes, in the same process.

    reached: floor over measured seconds. products: of each shape its name, operations and rate.
    """

    gflop: float
    gflop_per_second: float
    floor_seconds: float
    reached: float
    products: list[dict[str, Any]]


@dataclass(frozen=True)
class Measurement:
    """memory_mib: growth of the largest resident size (on a GPU: of the largest allocated size) over that before the first run.

    warm_up_seconds: the run that is not counted. setup_seconds: making inputs and, for decoding, reading the prompt.
    cpu_per_wall: seconds of CPU a second of the timed runs; below 1 something else had the processor, and the speed says little.
    state_mib: for decoding, all that is carried from token to token. finite: whether the output was.
    growth: at LONG tokens, the time a token over that at SHORT ones, which ran after each timed run.
    """

    runs: int
    warm_up_seconds: float
    setup_seconds: float
    seconds: Spread
    tokens_per_second: Spread
    memory_mib: float
    finite: bool
    cpu_per_wall: float
    state_mib: float | None = None
    growth: Spread | None = None
    floor: Floor | None = None
    note: str | None = None


@dataclass(frozen=True)
class Result:
    """A cell with its measurement, or with the reason why there is none."""

    cell: Cell
    measurement: Measurement | None = None
    skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.cell), **(asdict(self.measurement) if self.measurement else {"skipped": self.skipped})}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Result":
        """Inverse of `to_dict`."""
        cell = Cell(**_pick(Cell, values))
        if "skipped" in values:
            return cls(cell, skipped=values["skipped"])
        measurement = _pick(Measurement, values)
        for name in ("seconds", "tokens_per_second"):
            measurement[name] = Spread(**measurement[name])
        if measurement.get("growth") is not None:
            measurement["growth"] = Spread(**measurement["growth"])
        if measurement["floor"] is not None:
            measurement["floor"] = Floor(**measurement["floor"])
        return cls(cell, Measurement(**measurement))


def _pick(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
