"""Genomes as documents of the nucleotide model: each a stretch of a record on one of its strands, after the token BEGIN."""

from collections.abc import Sequence

import numpy as np

from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.data.sources import GenomeDocuments
from domains.dna.data.splits import by_fraction
from domains.dna.data.windows import both_strands, whole
from domains.dna.model import BEGIN
from titans_seq.errors import UserError


class NucleotideDocuments:
    """Stretches of genomes for `DocumentStream`, each BEGIN and then its codes. Only what is asked for is read.

    stretches: of each genome which.
    """

    def __init__(self, stretches: Sequence[tuple[Genome, Intervals]]) -> None:
        self._parts = [GenomeDocuments(genome, spans) for genome, spans in stretches if len(spans)]
        self._first = np.cumsum([0, *(len(part.spans) for part in self._parts)])
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths + 1 for part in self._parts)])

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1 of a document, (stop - start,) uint8."""
        part = int(np.searchsorted(self._first, document, side="right")) - 1
        tokens = np.full(stop - start, BEGIN, dtype=np.uint8)
        first = max(start, 1)
        if first < stop:
            tokens[first - start :] = self._parts[part].read(document - int(self._first[part]), first - 1, stop - 1)
        return tokens

    @property
    def bases(self) -> int:
        """Bases that are not N, over all stretches."""
        return sum(
            int((part.lengths - part.genome.count_n(part.spans.record, part.spans.start, part.spans.stop)).sum()) for part in self._parts
        )

    def describe(self, named: int = 20) -> str:
        """Number of stretches, bases, and the names of the first `named` of them with theirs: for a model card."""
        stretches, mirrored = [], False
        for part in self._parts:
            for record, size, strand in zip(part.spans.record, part.lengths, part.spans.strand, strict=True):
                mirrored |= bool(strand < 0)
                if strand > 0:
                    stretches.append((f"`{part.genome.names[record]}` of `{part.genome.source.name}`", int(size)))
        names = [f"{name} ({size:,})" for name, size in stretches[:named]]
        others = [f"and {len(stretches) - named:,} others"] if len(stretches) > named else []
        bases = sum(size for _, size in stretches)
        strands = ", and their reverse complements" if mirrored else ""
        return f"{len(stretches):,} record{'s'[: len(stretches) != 1]}, {bases:,} bases: {', '.join(names + others)}{strands}."


def record_on(genome: Genome, record: int, strand: int) -> NucleotideDocuments:
    """A record as the only document."""
    return NucleotideDocuments([(genome, Intervals.of([record], [0], [genome.lengths[record]], [strand]))])


def split_ends(genomes: Sequence[Genome], share: float, guard: int, mirrored: bool) -> tuple[NucleotideDocuments, NucleotideDocuments]:
    """To train on, of every record all but its last `share` and `guard` bases before that; and this share, to validate on.

    mirrored: train on the reverse complements as well.

    Raises:
        UserError: no record of a genome is long enough.
    """
    cut = [(genome, by_fraction(whole(genome), share, 0.0, guard)) for genome in genomes]
    return _documents([(genome, split.train, split.validation) for genome, split in cut], mirrored)


def split_records(genomes: Sequence[Genome], names: Sequence[str], mirrored: bool) -> tuple[NucleotideDocuments, NucleotideDocuments]:
    """To train on, the records that are not among `names`; and those that are, to validate on. mirrored: as `split_ends`.

    Raises:
        UserError: no genome has a record of that name, or none is left.
    """
    for name in names:
        if not any(name in genome.names for genome in genomes):
            genomes[0].record(name)  # raises, and names close ones
    if all(name in names for genome in genomes for name in genome.names):
        raise UserError("every record is held out for validation; none is left to train on.")
    made = []
    for genome in genomes:
        spans = whole(genome)
        held_out = np.isin(np.array(genome.names), np.array(names))
        made.append((genome, spans[~held_out], spans[held_out]))
    return _documents(made, mirrored)


def _documents(parts: Sequence[tuple[Genome, Intervals, Intervals]], mirrored: bool) -> tuple[NucleotideDocuments, NucleotideDocuments]:
    training = [(genome, both_strands(train) if mirrored and len(train) else train) for genome, train, _ in parts]
    return NucleotideDocuments(training), NucleotideDocuments([(genome, validation) for genome, _, validation in parts])
