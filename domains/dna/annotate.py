"""What models say of each base of a genome, in segments through the state: labels of either strand as intervals, and profiles.

A record of any length is read in memory that does not grow with it. The strand that is read backwards comes first; what it says of each
base waits in a file. Shapes: T bases of a segment, S strands that the model reads, V values of a base (1 + classes, or 1).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from domains.dna.data.genome import Genome
from domains.dna.heads import DNALabeller, DNAProfile
from domains.dna.strands import ReaderState
from titans_seq.errors import UserError

Advance = Callable[[int], object]


class Labelled(NamedTuple):
    """Bases `start` to `stop` - 1 of a record: probabilities (T, 2, V) of the labels on the strand of the file and on the other one."""

    record: int
    start: int
    stop: int
    probabilities: np.ndarray


class Profiled(NamedTuple):
    """Bases `start` to `stop` - 1 of a record, the first of them the begin of a bin: values (bins,)."""

    record: int
    start: int
    stop: int
    values: np.ndarray


def label_genome(
    model: DNALabeller,
    genome: Genome,
    scratch: str | Path,
    segment_length: int = 4096,
    advance: Advance = lambda bases: None,
    window: int | None = None,
    records: Sequence[int] | None = None,
) -> Iterator[Labelled]:
    """The labels of all bases, segment by segment in the order of the file. A segment's length changes speed and memory, not the labels.

    Args:
        model: labels them, in its dtype and on its device.
        genome: what is read. Each record is read from a fresh state.
        scratch: folder for a file of 4 S V bytes a base of the record that is read; removed when the record is done.
        segment_length: bases at a time.
        advance: told of each segment, of either strand, how many bases were read.
        window: each `window` bases of a record are read by themselves, from a fresh state, as `finetune_labeller` trains; the last of a
            record may be shorter. None: each record is read in one stream.
        records: which are read; None for all.
    """
    for record, start, stop, values in _read_genome(model, genome, Path(scratch), segment_length, advance, 2, window, records):
        yield Labelled(record, start, stop, values.double().softmax(-1).cpu().numpy())


def profile_genome(
    model: DNAProfile,
    genome: Genome,
    scratch: str | Path,
    segment_length: int = 4096,
    advance: Advance = lambda bases: None,
    window: int | None = None,
    records: Sequence[int] | None = None,
) -> Iterator[Profiled]:
    """The values of all bins, as `label_genome`; segments are rounded up to whole bins.

    Raises:
        UserError: window is no multiple of a bin.
    """
    width = model.config.bin_width
    if window is not None and window % width:
        raise UserError(f"windows must be of whole bins: {window} is no multiple of {width}, the bases of a bin of this model.")
    segment_length = -(-segment_length // width) * width
    strands = model.encoder.strands
    for record, start, stop, values in _read_genome(model, genome, Path(scratch), segment_length, advance, strands, window, records):
        of_bases = values.mean(1).T  # (1, T)
        yield Profiled(record, start, stop, model.binned(of_bases, torch.ones_like(of_bases, dtype=torch.bool))[0].cpu().numpy())


@torch.inference_mode()
def _read_genome(
    model: DNALabeller | DNAProfile,
    genome: Genome,
    scratch: Path,
    segment_length: int,
    advance: Advance,
    strands: int,
    window: int | None,
    records: Sequence[int] | None,
) -> Iterator[tuple[int, int, int, Tensor]]:
    """Record, start, stop, and what the head says of the bases on each of 1 or 2 strands: (T, strands, V)."""
    model.eval()
    for record in range(len(genome)) if records is None else records:
        length, path = int(genome.lengths[record]), scratch / f"record-{record}"
        shape = (length, model.encoder.strands, model.head.linear.out_features)
        waiting = np.memmap(path, dtype=_dtype(model), mode="w+", shape=shape) if strands == 2 else None
        if waiting is not None:
            for start, stop, said in _read_strand(model, genome, record, -1, segment_length, window):
                waiting[length - stop : length - start] = said.flip(0).cpu().numpy()
                advance(stop - start)
        for start, stop, said in _read_strand(model, genome, record, 1, segment_length, window):
            advance(stop - start)
            if waiting is None:
                yield record, start, stop, said
            else:
                other = torch.from_numpy(np.array(waiting[start:stop])).to(said)
                yield record, start, stop, torch.stack([_values(said, other), _values(other, said)], dim=1)
        del waiting
        path.unlink(missing_ok=True)


def _dtype(model: DNALabeller | DNAProfile) -> type[np.floating]:
    return np.float64 if model.head.linear.weight.dtype == torch.float64 else np.float32


def _values(own: Tensor, other: Tensor) -> Tensor:
    """Values (T, V) of a strand from what `StrandHead.parts` made of either strand's features, (T, S, V) each."""
    return own[:, 0] if own.shape[1] == 1 else own[:, 0] + other[:, 1]


def _read_strand(
    model: DNALabeller | DNAProfile, genome: Genome, record: int, strand: int, segment_length: int, window: int | None
) -> Iterator[tuple[int, int, Tensor]]:
    """Along a strand, from its begin: where a segment starts and stops on it, and what its features add to the values, (T, S, V)."""
    length, device = int(genome.lengths[record]), model.head.linear.weight.device
    for first, count, size in _windows(length, strand, segment_length, window):
        state: ReaderState | None = None
        step = size if count > 1 else segment_length
        for offset in range(0, size, step):
            start = first + offset
            stop = start + (count * size if count > 1 else min(step, size - offset))
            begin, end = (start, stop) if strand > 0 else (length - stop, length - start)
            codes = torch.from_numpy(genome.window(record, begin, end, strand).astype(np.int64))
            features, state = model.encoder.reader.read(codes.view(count, -1).to(device), state)
            said = model.head.parts(features.flatten(0, 1))
            yield start, stop, said if said.dtype in (torch.float32, torch.float64) else said.float()


def _windows(length: int, strand: int, segment_length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """Windows along a strand, those of the file: where some that are read side by side begin on it, how many they are, their bases."""
    window = min(window or length, length)
    whole, rest = divmod(length, window)
    together = max(1, segment_length // window)
    batches = [(min(together, whole - done), window) for done in range(0, whole, together)]
    short = [(1, rest)] if rest else []
    start = 0
    for count, size in batches + short if strand > 0 else short + batches:
        yield start, count, size
        start += count * size


class Runs:
    """Runs of bases that have one label, as intervals, from segments in the order of the file.

    genome: whose bases they are. classes: names of the labels from 1 on.
    """

    def __init__(self, genome: Genome, classes: tuple[str, ...]) -> None:
        self._genome, self._classes = genome, classes
        self._done: list[pl.DataFrame] = []
        self._open: dict[int, pl.DataFrame] = {}  # the last run of each strand: the next segment may go on with it

    def add(self, part: Labelled) -> None:
        """Count a segment."""
        for strand in range(2):
            found = _runs(part, strand)
            last = self._open.get(strand)
            if last is not None:
                found = _joined(pl.concat([last, found]))
            self._open[strand] = found.tail(1)
            self._done.append(found.head(-1).filter(pl.col("label") > 0))

    def table(self, min_length: int = 1) -> pl.DataFrame:
        """A table of regions, in the order of their places: chrom, start, end, name and feature (the class), score, strand.

        score: mean probability of the label over the run. min_length: bases that a run has at least.
        """
        runs = pl.concat([_NO_RUN, *self._done, *(run.filter(pl.col("label") > 0) for run in self._open.values())])
        runs = runs.filter(pl.col("end") - pl.col("start") >= min_length).sort("record", "start", "strand")
        name = pl.Series(["", *self._classes], dtype=pl.String).gather(runs["label"])
        return runs.select(
            chrom=pl.Series(self._genome.names, dtype=pl.String).gather(runs["record"]),
            start="start",
            end="end",
            name=name,
            feature=name,
            score=pl.col("total") / (pl.col("end") - pl.col("start")),
            strand=pl.col("strand").replace_strict([0, 1], ["+", "-"], return_dtype=pl.String),
        )


_NO_RUN = pl.DataFrame(
    schema={"record": pl.Int64, "strand": pl.Int64, "start": pl.Int64, "end": pl.Int64, "label": pl.Int64, "total": pl.Float64}
)


def _runs(part: Labelled, strand: int) -> pl.DataFrame:
    """The runs of a segment on a strand, also those of label 0; total is the sum of their probabilities."""
    probabilities = part.probabilities[:, strand]
    labels = probabilities.argmax(-1)
    first = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1])
    columns = {
        "record": np.full(len(first), part.record),
        "strand": np.full(len(first), strand),
        "start": part.start + first,
        "end": part.start + np.append(first[1:], len(labels)),
        "label": labels[first],
        "total": np.add.reduceat(probabilities.max(-1), first),
    }
    return pl.DataFrame(columns, schema=_NO_RUN.schema)


def _joined(runs: pl.DataFrame) -> pl.DataFrame:
    """Runs that go on from the one before made one with it."""
    goes_on = [pl.col(name) == pl.col(before).shift(1) for name, before in (("record", "record"), ("label", "label"), ("start", "end"))]
    numbered = runs.with_columns(run=(~pl.all_horizontal(goes_on).fill_null(False)).cum_sum())
    ends = (pl.col("record", "strand", "start").first(), pl.col("end").last(), pl.col("label").first(), pl.col("total").sum())
    return numbered.group_by("run", maintain_order=True).agg(*ends).drop("run")


def write_bases(parts: Iterator[Labelled], genome: Genome, classes: tuple[str, ...], path: str | Path) -> None:
    """A Parquet with a row a base, written as the segments come: chrom, position (from 0), and for each class its probability on either
    strand, CLASS+ and CLASS-.
    """
    from polars.io.plugins import register_io_source

    columns = [f"{name}{strand}" for name in classes for strand in "+-"]
    schema = {"chrom": pl.String, "position": pl.Int64, **dict.fromkeys(columns, pl.Float32)}

    def frames(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        """All rows: nothing is selected of them."""
        for part in parts:
            size = part.stop - part.start
            places = {"chrom": [genome.names[part.record]] * size, "position": np.arange(part.start, part.stop)}
            values = part.probabilities[:, :, 1:].transpose(2, 1, 0).reshape(len(columns), size)
            yield pl.DataFrame({**places, **dict(zip(columns, values.astype(np.float32), strict=True))}, schema=schema)

    register_io_source(frames, schema=schema).sink_parquet(path)


def write_bedgraph(parts: Iterator[Profiled], genome: Genome, bin_width: int, path: str | Path) -> None:
    """A bedGraph with a line a bin: chrom, start, end, value."""
    with Path(path).open("wb") as file:
        for part in parts:
            start = np.arange(part.start, part.stop, bin_width)
            rows = {"chrom": [genome.names[part.record]] * len(start), "start": start, "end": np.minimum(start + bin_width, part.stop)}
            pl.DataFrame({**rows, "value": part.values.astype(np.float32)}).write_csv(file, include_header=False, separator="\t")
