"""What the project wants to reach on a CPU, as ratios within one run: what was reached, and why not where it was not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.cells import BACKWARD, FORWARD, LONG, Measurement, Result

REST = (
    "beside the products of a chunk there are its activations and the passes over weights and momentum that advance them, in the backward "
    "those of a segment once more; around the operator torch packs its arguments and applies the output's norm (profile)"
)
LAYER = "memory layer"
PER_TOKEN, COARSE = "titans-pytorch per token", "titans-pytorch coarse"


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be at least, or at most, `bound`; `reached` gives it of each pair of cells that was measured."""

    text: str
    bound: float
    at_least: bool
    reached: Callable[["Found"], dict[str, float]]
    why_missed: str

    def judged(self, found: "Found") -> dict[str, Any]:
        values = {name: round(value, 3) for name, value in self.reached(found).items()}
        met = all(value >= self.bound if self.at_least else value <= self.bound for value in values.values()) if values else None
        wanted = f"{'at least' if self.at_least else 'at most'} {self.bound:g}"
        return {"goal": self.text, "wanted": wanted, "reached": values, "met": met, **({} if met else {"why": self.why_missed})}


class Found:
    """Measurements by subject, sizes and mode."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.by_key = {(r.cell.label, r.cell.mode, r.cell.tokens): r.measurement for r in results if r.measurement}

    def labels(self, subject: str) -> list[str]:
        return list(dict.fromkeys(label for label, _, _ in self.by_key if label.startswith(subject)))

    @property
    def operator(self) -> str:
        """The form that `impl="auto"` takes: fused, where it was measured."""
        return "fused" if self.labels("fused") else "chunkwise"

    def get(self, label: str, mode: str, tokens: int) -> Measurement | None:
        return self.by_key.get((label, mode, tokens))

    def named(self, cells: Sequence[tuple[str, str, int]]) -> dict[str, Measurement]:
        """Of these cells (label, mode, tokens) the ones that were measured, by name."""
        measured = {f"{label}, {mode}, T {T:,}": self.get(label, mode, T) for label, mode, T in cells}
        return {name: m for name, m in measured.items() if m}

    def ratios(
        self, pairs: Sequence[tuple[tuple[str, str, int], tuple[str, str, int]]], of: Callable[[Measurement, Measurement], float]
    ) -> dict[str, float]:
        """`of` each pair of which both were measured, by the name of the first."""
        made = {}
        for first, second in pairs:
            a, b = self.get(*first), self.get(*second)
            if a is not None and b is not None:
                made[f"{first[0]}, {first[1]}, T {first[2]:,}"] = of(a, b)
        return made


def seconds(a: Measurement, b: Measurement) -> float:
    return a.seconds.median / b.seconds.median


def speed(a: Measurement, b: Measurement) -> float:
    return a.tokens_per_second.median / b.tokens_per_second.median


def share_of_floor(found: Found) -> dict[str, float]:
    measured = found.named([(label, FORWARD, T) for label in found.labels(found.operator) for T in (1024, 4096)])
    return {name: m.floor.reached for name, m in measured.items() if m.floor}


def both_to_forward(found: Found) -> dict[str, float]:
    pairs = [((label, BACKWARD, T), (label, FORWARD, T)) for label in found.labels(found.operator) for T in (1024, 4096)]
    return found.ratios(pairs, seconds)


def against(subject: str, of: Callable[[Measurement, Measurement], float], tokens: Sequence[int] = (1024, 4096)) -> Callable[[Found], Any]:
    """Ours at expansion 4 and chunks of 64, as many tokens as the peer takes at once, over a peer or baseline."""
    ours = f"{LAYER}, E 4, C 64"

    def ratio(found: Found) -> dict[str, float]:
        pairs = [((ours, BACKWARD, T), (label, BACKWARD, T)) for label in found.labels(subject) for T in tokens]
        return found.ratios(pairs, of)

    return ratio


def long_to_short(found: Found) -> dict[str, float]:
    measured = found.named([(label, mode, LONG) for label in found.labels(LAYER) for mode in (FORWARD, BACKWARD)])
    return {name: m.growth.median for name, m in measured.items() if m.growth}


GOALS = (
    Goal("the operator's forward over the rate of torch.bmm on its shapes", 0.6, True, share_of_floor, REST),
    Goal("the operator's forward + backward over forward, in time", 4, False, both_to_forward, REST),
    Goal(
        "forward + backward over titans-pytorch with weights of every token",
        100,
        True,
        against(PER_TOKEN, speed, (1024,)),
        REST,
    ),
    Goal(
        "its memory over that of titans-pytorch with weights of every token",
        1 / 20,
        False,
        against(PER_TOKEN, lambda a, b: a.memory_mib / b.memory_mib, (1024,)),
        "",
    ),
    Goal(
        "forward + backward over titans-pytorch in chunks of 64",
        2,
        True,
        against(COARSE, speed),
        "the count of operations allows 2.8; " + REST,
    ),
    Goal(
        "forward + backward over causal attention of the same width",
        1,
        True,
        against("attention layer", speed, (4096,)),
        "one fused call of attention is faster at this length; its cost a token grows with the length, the memory's does not",
    ),
    Goal(
        "time a token at 131,072 tokens over that at 4,096",
        1.1,
        False,
        long_to_short,
        "the work a token is the same; with a gradient all activations of the layer are held, and pass through memory instead of the cache",
    ),
)


def judge(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every goal with what was reached; `met` is None where nothing was measured."""
    found = Found(results)
    return [goal.judged(found) for goal in GOALS]
