"""Windows of a genome: which, and what they hold. Shapes: W windows, L bases of a window."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from domains.dna.data.alphabet import BASE_BITS, CODES, SOFT, N
from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from titans_seq.config import Config
from titans_seq.errors import UserError

_ROUNDS = 64


@dataclass(frozen=True, kw_only=True)
class BasePolicy(Config):
    """What unknown and soft-masked (lower-case, mostly repeated) bases count for.

    Attributes:
        unknown: windows with an N are rejected; or N is read, but has no part in the loss (ignore); or it counts as a base (keep).
        soft_masked: soft-masked bases count as others (keep), at soft_weight (down-weight), or not at all (ignore). They are always read.
        soft_weight: weight of a soft-masked base's loss under down-weight.
    """

    unknown: Literal["reject", "ignore", "keep"] = "ignore"
    soft_masked: Literal["keep", "down-weight", "ignore"] = "keep"
    soft_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("soft_weight", 0 <= self.soft_weight <= 1, "between 0 and 1")

    def weights(self) -> np.ndarray:
        """(16,) float32: the weight of each code in the loss, to be looked up by codes."""
        codes = np.arange(CODES)
        soft = {"keep": 1.0, "down-weight": self.soft_weight, "ignore": 0.0}[self.soft_masked]
        unknown = 1.0 if self.unknown == "keep" else 0.0
        weights = np.where(codes & SOFT, soft, 1.0) * np.where(codes & BASE_BITS < N, 1.0, unknown)
        return weights.astype(np.float32)


def whole(genome: Genome) -> Intervals:
    """Every record, from end to end."""
    return Intervals.of(range(len(genome)), [0] * len(genome), genome.lengths)


def tile(spans: Intervals, length: int, stride: int | None = None) -> Intervals:
    """Windows of L = `length` bases, `stride` apart (None: one after the other), inside each span; the last ends where its span does.

    So every base of a span of at least L bases is covered if stride <= L; shorter spans give none.

    Raises:
        ValueError: length or stride is below 1.
        UserError: no span is long enough.
    """
    stride = stride or length
    if min(length, stride) < 1:
        raise ValueError(f"length and stride must be at least 1, got {length} and {stride}")
    room = spans.lengths - length
    counts = np.where(room >= 0, -(-room // stride) + 1, 0)
    _require_some(counts.sum(), spans, length)
    span = np.repeat(np.arange(len(spans)), counts)
    nth = np.arange(len(span)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = spans.start[span] + np.minimum(nth * stride, room[span])
    return Intervals(spans.record[span], start, start + length, spans.strand[span])


def consecutive_windows(spans: Intervals, length: int) -> Intervals:
    """Each span cut into windows of `length` bases, of which the last may be shorter: nothing is left out, nothing comes twice."""
    counts = -(-spans.lengths // length)
    span = np.repeat(np.arange(len(spans)), counts)
    start = spans.start[span] + (np.arange(len(span)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    return Intervals(spans.record[span], start, np.minimum(start + length, spans.stop[span]), spans.strand[span])


def overlapping_windows(spans: Intervals, length: int, unit: int = 1) -> Intervals:
    """`consecutive_windows`, and those that begin half a window later, in whole units, so that the end of one is the middle of another."""
    later = Intervals(spans.record, np.minimum(spans.start + length // (2 * unit) * unit, spans.stop), spans.stop, spans.strand)
    return join([consecutive_windows(spans, length), consecutive_windows(later, length)])


def whole_units(spans: Intervals, genome: Genome, unit: int) -> Intervals:
    """What of the spans is whole units of bases, counted from the begin of the record, or the rest of the record; empty ones left out."""
    start = -(-spans.start // unit) * unit
    stop = np.where(spans.stop == genome.lengths[spans.record], spans.stop, spans.stop // unit * unit)
    return Intervals(spans.record, start, stop, spans.strand)[stop > start]


def sample(genome: Genome, spans: Intervals, length: int, count: int, random: np.random.Generator, without_n: bool = False) -> Intervals:
    """`count` windows of L = `length` bases at random places in the spans, each place as likely as any other.

    Args:
        genome: of the spans.
        spans: where windows may lie, as a whole.
        length, count: of the windows.
        random: the same generator gives the same windows.
        without_n: draw again where a window holds an N.

    Raises:
        UserError: no span is long enough, or (next to) every window holds an N.
    """
    places = np.maximum(spans.lengths - length + 1, 0)
    ends = np.cumsum(places)
    _require_some(int(ends[-1]) if len(ends) else 0, spans, length)
    found, missing = [], count
    for _ in range(_ROUNDS):
        place = random.integers(0, ends[-1], missing)
        span = np.searchsorted(ends, place, side="right")
        start = spans.start[span] + place - (ends[span] - places[span])
        windows = Intervals(spans.record[span], start, start + length, spans.strand[span])
        found.append(drop_n(genome, windows) if without_n else windows)
        missing -= len(found[-1])
        if not missing:
            return join(found)
    raise UserError(
        f"{genome.source}: of more than {_ROUNDS} windows of {length} bases at random places, {count - missing} have no N; {count} are "
        "needed. Take shorter windows, or ignore N in the loss."
    )


def _require_some(count: int, spans: Intervals, length: int) -> None:
    if not count:
        longest = int(spans.lengths.max()) if len(spans) else 0
        raise UserError(f"no window of {length} bases fits: the longest of {len(spans)} spans has {longest}. Take shorter windows.")


def join(parts: Sequence[Intervals]) -> Intervals:
    """One after the other."""
    return Intervals(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("record", "start", "stop", "strand")))


def drop_n(genome: Genome, windows: Intervals) -> Intervals:
    """Those that hold no N and reach beyond no record."""
    inside = windows[(windows.start >= 0) & (windows.stop <= genome.lengths[windows.record])]
    return inside[genome.count_n(inside.record, inside.start, inside.stop) == 0]


def centre(intervals: Intervals, length: int) -> Intervals:
    """A window of L = `length` bases around the middle of each; it may reach beyond the record."""
    start = (intervals.start + intervals.stop - length) // 2
    return Intervals(intervals.record, start, start + length, intervals.strand)


def flank(features: Intervals, upstream: int, downstream: int, anchor: Literal["start", "end"] = "start") -> Intervals:
    """Around the begin or the end of each feature as its strand is read: `upstream` bases before that boundary, `downstream` from it on.

    Around the start of a gene these are its promoter and its first bases. Windows may reach beyond the record.

    Raises:
        ValueError: upstream or downstream is negative.
    """
    if min(upstream, downstream) < 0:
        raise ValueError(f"upstream and downstream must not be negative, got {upstream} and {downstream}")
    forward = features.strand > 0
    boundary = np.where(forward == (anchor == "start"), features.start, features.stop)
    start = boundary - np.where(forward, upstream, downstream)
    return Intervals(features.record, start, start + upstream + downstream, features.strand)


def both_strands(windows: Intervals) -> Intervals:
    """Each window twice, as it is and as its reverse complement: augmentation of which an epoch sees all."""
    return join([windows, Intervals(windows.record, windows.start, windows.stop, -windows.strand)])


class GenomeWindows(Sequence[dict[str, np.ndarray]]):
    """Windows of one length as items for `WindowStream` or a DataLoader, whose workers each map the genome for themselves.

    An item has bases (L,) uint8, 0 to 4, on the window's strand and N beyond the record; and weights (L,) float32, what each counts for.

    Args:
        genome: what is read.
        windows: of one length; under unknown="reject" those with an N are left out.
        policy: what N and soft-masked bases count for.

    Raises:
        UserError: the windows are not of one length, or none is left.
    """

    def __init__(self, genome: Genome, windows: Intervals, policy: BasePolicy) -> None:
        self.genome, self.policy = genome, policy
        self.windows = drop_n(genome, windows) if policy.unknown == "reject" else windows
        if not len(self.windows):
            raise UserError(f"{genome.source}: none of {len(windows)} windows is left" + (" without an N." if len(windows) else "."))
        if (self.windows.lengths != self.windows.lengths[0]).any():
            low, high = self.windows.lengths.min(), self.windows.lengths.max()
            raise UserError(f"the windows have from {low} to {high} bases; a batch needs one length. Take `centre` of them.")
        self._weights = policy.weights()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:  # type: ignore[override]  # one at a time
        w = self.windows
        codes = self.genome.window(int(w.record[i]), int(w.start[i]), int(w.stop[i]), int(w.strand[i]))
        return {"bases": codes & BASE_BITS, "weights": self._weights[codes]}
