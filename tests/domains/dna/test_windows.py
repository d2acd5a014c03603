"""Windows: where they lie, what they hold and weigh; in many workers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from Bio import SeqIO
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from domains.dna.data.alphabet import decode, encode
from domains.dna.data.genome import Genome, open_genome
from domains.dna.data.regions import Intervals
from domains.dna.data.windows import BasePolicy, GenomeWindows, both_strands, centre, drop_n, flank, join, sample, tile, whole
from titans_seq import UserError
from titans_seq.training.loaders import WindowStream

SPANS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(0, 60)), min_size=1, max_size=5)


def spans_of(made: list[tuple[int, int, int]]) -> Intervals:
    return Intervals.of([r for r, _, _ in made], [a for _, a, _ in made], [a + n for _, a, n in made])


def places(intervals: Intervals) -> list[tuple[int, int, int, int]]:
    return list(zip(*(x.tolist() for x in (intervals.record, intervals.start, intervals.stop, intervals.strand)), strict=True))


@given(made=SPANS, length=st.integers(1, 30), stride=st.integers(1, 30))
def test_tiles_cover_their_spans_and_nothing_else(made: list[tuple[int, int, int]], length: int, stride: int) -> None:
    stride = min(stride, length)
    covered = {(r, i) for r, a, n in made if n >= length for i in range(a, a + n)}
    if not covered:
        with pytest.raises(UserError, match=f"no window of {length} bases fits"):
            tile(spans_of(made), length, stride)
        return
    windows = tile(spans_of(made), length, stride)
    assert (windows.lengths == length).all()
    assert {(r, i) for r, a, b, _ in places(windows) for i in range(a, b)} == covered


def test_tiles_are_a_stride_apart() -> None:
    windows = tile(Intervals.of([0, 1], [3, 0], [13, 4], [1, -1]), 4, 3)
    assert places(windows) == [(0, 3, 7, 1), (0, 6, 10, 1), (0, 9, 13, 1), (1, 0, 4, -1)]
    assert tile(Intervals.of([0], [0], [9]), 4).start.tolist() == [0, 4, 5]
    with pytest.raises(ValueError, match="at least 1, got 4 and -1"):
        tile(windows, 4, -1)


def test_random_windows_lie_in_their_spans_each_place_as_often(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "ACGT" * 30, "b": "A" * 40})
    spans = Intervals.of([0, 1, 1], [7, 0, 30], [20, 12, 33])  # 10, 9 and no places
    windows = sample(genome, spans, 4, 19_000, np.random.default_rng(0))
    counts = dict.fromkeys([(0, i) for i in range(7, 17)] + [(1, i) for i in range(9)], 0)
    for record, start, stop, _ in places(windows):
        assert stop - start == 4
        counts[record, start] += 1
    assert 850 < min(counts.values()) <= max(counts.values()) < 1150
    assert places(sample(genome, spans, 4, 50, np.random.default_rng(3))) == places(sample(genome, spans, 4, 50, np.random.default_rng(3)))


def test_random_windows_without_n(genome_of: Callable[..., Genome]) -> None:
    text = ("ACGT" * 5 + "N" * 20) * 3
    genome = genome_of({"a": text, "n": "N" * 50})
    windows = sample(genome, whole(genome), 5, 200, np.random.default_rng(0), without_n=True)
    assert len(windows) == 200
    assert not any("N" in genome.text(r, a, b) for r, a, b, _ in places(windows))
    with pytest.raises(UserError, match=r"0 have no N; 10 are needed"):
        sample(genome, whole(genome), 21, 10, np.random.default_rng(0), without_n=True)


def test_windows_around_features() -> None:
    features = Intervals.of([0, 0], [100, 200], [130, 260], [1, -1])
    assert places(flank(features, 10, 3)) == [(0, 90, 103, 1), (0, 257, 270, -1)]
    assert places(flank(features, 10, 3, anchor="end")) == [(0, 120, 133, 1), (0, 197, 210, -1)]
    assert places(centre(features, 6)) == [(0, 112, 118, 1), (0, 227, 233, -1)]
    with pytest.raises(ValueError, match="must not be negative, got -1 and 3"):
        flank(features, -1, 3)


def test_upstream_of_a_gene_is_what_is_read_before_it(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "AACCCGGTTTTA"})
    for strand, feature in ((1, (3, 6)), (-1, (5, 9))):
        sequence = Seq("AACCCGGTTTTA")
        whole_strand = sequence if strand > 0 else sequence.reverse_complement()
        gene = sequence[slice(*feature)] if strand > 0 else sequence[slice(*feature)].reverse_complement()
        window = flank(Intervals.of([0], [feature[0]], [feature[1]], [strand]), 2, 3)
        expected = str(whole_strand)[len(sequence) - feature[1] - 2 if strand < 0 else feature[0] - 2 :][:5]
        assert decode(genome.window(*places(window)[0])) == expected
        assert expected[2:] == str(gene)[:3]


def test_windows_with_n_or_beyond_a_record_are_dropped(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "ACGTNACGT"})
    windows = Intervals.of([0] * 5, [0, 1, 5, -1, 6], [4, 5, 9, 3, 10])
    assert places(drop_n(genome, windows)) == [(0, 0, 4, 1), (0, 5, 9, 1)]


def test_both_strands(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "AACG", "b": "TTTC"})
    items = GenomeWindows(genome, both_strands(whole(genome)), BasePolicy())
    assert [decode(item["bases"]) for item in items] == ["AACG", "TTTC", "CGTT", "GAAA"]


@pytest.mark.parametrize(
    ("policy", "weights"),
    [
        (BasePolicy(), [1, 0, 1, 0, 0]),
        (BasePolicy(unknown="keep"), [1, 1, 1, 1, 1]),
        (BasePolicy(soft_masked="down-weight", soft_weight=0.25), [1, 0, 0.25, 0, 0]),
        (BasePolicy(soft_masked="ignore", unknown="keep"), [1, 1, 0, 0, 1]),
    ],
)
def test_what_bases_count_for(policy: BasePolicy, weights: list[float], genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "ANcn"})
    item = GenomeWindows(genome, Intervals.of([0], [0], [5]), policy)[0]  # and one beyond the record
    assert item["bases"].tolist() == encode("ANCNN").tolist()
    assert item["weights"].tolist() == np.float32(weights).tolist()
    assert (item["bases"].dtype, item["weights"].dtype) == (np.uint8, np.float32)


def test_windows_that_cannot_be_items(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "ACGTN", "b": "ACG"})
    with pytest.raises(UserError, match="from 3 to 5 bases; a batch needs one length"):
        GenomeWindows(genome, whole(genome), BasePolicy())
    with pytest.raises(UserError, match="none of 1 windows is left without an N"):
        GenomeWindows(genome, whole(genome)[:1], BasePolicy(unknown="reject"))
    with pytest.raises(ValueError, match="soft_weight must be between 0 and 1"):
        BasePolicy(soft_weight=1.5)
    assert len(GenomeWindows(genome, whole(genome), BasePolicy(unknown="reject"))) == 1


def test_window_stream_takes_them(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "ACGTACGTAC"})
    batch = WindowStream(GenomeWindows(genome, tile(whole(genome), 4, 1), BasePolicy()), batch_size=3).take()
    assert (batch["bases"].shape, batch["bases"].dtype) == ((3, 4), torch.uint8)
    assert batch["weights"].tolist() == [[1.0] * 4] * 3


def random_records(seed: int) -> dict[str, str]:
    random = np.random.default_rng(seed)
    return {f"r{i}": "".join(random.choice(list("ACGTNacgtn"), size)) for i, size in enumerate([70_000, 3_000, 20_011])}


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_windows_of_many_workers_are_biopythons(start_method: str, write: Callable[..., Path]) -> None:
    """The genome is opened, and read from, in the parent: what other readers share with their workers goes wrong here."""
    path = write("".join(f">{name}\n{text}\n" for name, text in random_records(0).items()))
    genome = open_genome(path)
    genome.read(0, 0, 10)
    windows = sample(genome, whole(genome), 100, 4_000, np.random.default_rng(1))
    windows = join([windows[:2000], Intervals(*(getattr(windows[2000:], n) for n in ("record", "start", "stop")), -windows[2000:].strand)])
    items = GenomeWindows(genome, windows, BasePolicy())
    loader = DataLoader(items, batch_size=50, num_workers=2, multiprocessing_context=start_method)
    read = torch.cat([batch["bases"] for batch in loader]).numpy()
    with path.open() as file:
        sequences = [record.seq.upper() for record in SeqIO.parse(file, "fasta")]
    for bases, (record, start, stop, strand) in zip(read, places(windows), strict=True):
        expected = sequences[record][start:stop]
        assert decode(bases) == str(expected if strand > 0 else expected.reverse_complement())
