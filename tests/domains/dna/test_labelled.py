"""Labelled sequences: files of every layout, numbered classes, what is held out."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.data.alphabet import decode
from domains.dna.data.genome import Genome
from domains.dna.data.labelled import LabelledSequences, RawPart, Task, groups, hold_out, make_task, sort_classes
from domains.dna.data.labelled_files import read_task
from titans_seq import UserError

Write = Callable[..., Path]


def content(part: LabelledSequences | None) -> list[tuple[str, int]]:
    assert part is not None
    return [(decode(part.sequence(i)), int(part.labels[i])) for i in range(len(part))]


def task_of(rows: list[tuple[str, str]], regions: pl.DataFrame | None = None) -> Task:
    return make_task("t", {"train": RawPart([s for s, _ in rows], [y for _, y in rows], lambda i: f"row {i}", regions)})


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz"])
def test_a_table(name: str, write: Write) -> None:
    path = write("id,Sequence,label\n1,ACGt,1\n2, NR ,0\n".replace(",", "\t" if ".tsv" in name else ","), name)
    task = read_task(path)
    assert (task.name, task.classes, list(task.parts)) == (name, ("0", "1"), ["train"])
    assert content(task.train) == [("ACGt", 1), ("NN", 0)]


def test_a_parquet_and_columns_that_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"sequence": ["AC", "GT"], "promoter": ["CC", "TT"], "label": [2, 7], "kind": ["x", "y"]}).write_parquet(path)
    assert (read_task(path).classes, content(read_task(path).train)) == (("2", "7"), [("AC", 0), ("GT", 1)])
    task = read_task(path, sequence="promoter", label="kind")
    assert (task.classes, content(task.train)) == (("x", "y"), [("CC", 0), ("TT", 1)])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_name_is_no_pattern(ending: str, tmp_path: Path) -> None:
    for name, base in (("e[1]", "A"), ("e1", "C")):
        frame = pl.DataFrame({"sequence": [base * n for n in range(5, 15)], "label": [0, 1] * 5})
        frame.write_csv(tmp_path / f"{name}.csv")
        frame.write_parquet(tmp_path / f"{name}.parquet")
    task = read_task(tmp_path / f"e[1].{ending}")
    assert {base for sequence, _ in content(task.train) for base in sequence} == {"A"}


def test_gues_folder(tmp_path: Path) -> None:
    for part, rows in {"train": "AA,0\nCC,10\n", "dev": "GG,9\n", "test": "TT,10\n"}.items():
        (tmp_path / f"{part}.csv").write_text("sequence,label\n" + rows)
    (tmp_path / "README.md").write_text("train")
    task = read_task(tmp_path)
    assert task.classes == ("0", "9", "10")
    assert {name: content(part) for name, part in task.parts.items()} == {
        "train": [("AA", 0), ("CC", 2)],
        "validation": [("GG", 1)],
        "test": [("TT", 2)],
    }


def test_tables_of_the_hub_come_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i, (name, rows) in enumerate(
        [("train-00000-of-00002", ["AA"]), ("train-00001-of-00002", ["CC", "C"]), ("test-00000-of-00001", ["G"])]
    ):
        pl.DataFrame({"seq": rows, "label": [i] * len(rows)}).write_parquet(tmp_path / "data" / f"{name}.parquet")
    task = read_task(tmp_path)
    assert content(task.train) == [("AA", 0), ("CC", 1), ("C", 1)]
    assert content(task.test) == [("G", 2)]


def genomic_benchmark(folder: Path) -> Path:
    for part, label, i, text in [
        ("train", "positive", 1, "ACGT"),
        ("train", "negative", 10, "GG"),
        ("train", "negative", 9, "CC\n"),
        ("test", "positive", 0, "TTTT"),
    ]:
        (folder / part / label).mkdir(parents=True, exist_ok=True)
        (folder / part / label / f"{i}.txt").write_text(text)
    return folder


def test_the_folders_of_genomic_benchmarks(tmp_path: Path) -> None:
    """Labels are those of the names, not of the order in which the folders were made or are listed."""
    task = read_task(genomic_benchmark(tmp_path / "set"))
    assert task.classes == ("negative", "positive")
    assert content(task.train) == [("GG", 0), ("CC", 0), ("ACGT", 1)]
    assert content(task.test) == [("TTTT", 1)]


def test_an_archive_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = genomic_benchmark(tmp_path / "a" / "demo")
    with zipfile.ZipFile(tmp_path / "demo.zip", "w") as archive:
        for file in sorted(folder.rglob("*.txt")):
            archive.write(file, file.relative_to(tmp_path / "a"))
    for _ in range(2):
        task = read_task(tmp_path / "demo.zip")
        assert (task.name, task.classes, len(task.train)) == ("demo.zip", ("negative", "positive"), 3)
        monkeypatch.setattr("domains.dna.data.labelled_files.unpack_archive", None)


def test_interval_lists_are_read_from_their_genome(genome_of: Callable[..., Genome], tmp_path: Path) -> None:
    text = "AACCGGTTACGTNNACGGGT"
    genome = genome_of({"1": text, "MT": "ACACAC"})
    lists = {"train/b": "0,chr1,2,6,+\n1,chr1,7,12,-\n", "train/a": "7,chrM,0,3,+\n", "test/a": "3,chr1,5,8,+\n"}
    (tmp_path / "set" / "train").mkdir(parents=True)
    (tmp_path / "set" / "test").mkdir()
    for name, rows in lists.items():
        (tmp_path / "set" / f"{name}.csv").write_text("id,region,start,end,strand\n" + rows)
    task = read_task(tmp_path / "set", genome)
    assert task.classes == ("a", "b")
    expected = [("ACA", 0), (text[2:6], 1), (str(Seq(text[7:12]).reverse_complement()), 1)]
    assert content(task.train) == expected
    assert task.train.regions is not None
    assert task.train.regions.rows() == [("g.fa:MT", 0, 3, "+"), ("g.fa:1", 2, 6, "+"), ("g.fa:1", 7, 12, "-")]
    assert content(read_task(tmp_path / "set", {"a": genome, "b": genome}).train) == expected
    with pytest.raises(UserError, match=r"a\.csv: is a list of intervals of class 'a'. Give the genome"):
        read_task(tmp_path / "set")
    (tmp_path / "set" / "test" / "a.csv").write_text("id,region,start,end,strand\n1,chr1,5,80,+\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2: end '80' lies beyond 'chr1' of 20 bases"):
        read_task(tmp_path / "set", genome)
    (tmp_path / "set" / "test" / "a.csv").write_text("id,region,start,end,strand\n1,chr1,5,x,+\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2: end 'x' is no whole number"):
        read_task(tmp_path / "set", genome)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequence,label\nAC,0\nAGZ,1\n", r"a\.csv, line 3, position 3 of the sequence: 'Z' is no base"),
        ("sequence,label\nAC,0\nXXX,1\n", r"a\.csv, line 3, position 1 of the sequence: 'X' is no base"),
        ("sequence,label\nAC,0\n,1\n", r"line 3: the sequence is empty"),
        ("sequence,label\nAC,0\nA,\n", r"line 3: the label is empty"),
        ("sequence,label\nAC,0\nA,0\n", "all sequences are of class '0'; at least two"),
        ("text,label\nAC,0\n", "no column is of sequences, called sequence, seq, dna. The columns are: text, label"),
        ("seq,dna,label\nA,C,0\n", "2 columns are of sequences"),
        ("sequence,label\n", "holds no sequence below its header"),
        ("", "is empty"),
    ],
)
def test_tables_that_cannot_be_used(text: str, message: str, write: Write) -> None:
    with pytest.raises(UserError, match=message):
        read_task(write(text, "a.csv"))


def test_what_is_no_set(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_task(tmp_path / "none")
    with pytest.raises(UserError, match=r"unknown kind of file. Labelled sequences are one of \.csv"):
        read_task(write("x", "a.json"))
    with pytest.raises(UserError, match="called 'nothing'"):
        read_task(write("sequence,label\nA,0\n", "a.csv"), label="nothing")
    with pytest.raises(UserError, match="cannot hold both"):
        read_task(tmp_path / "a.csv", label="sequence")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        read_task(write(b"PAR1xxxxPAR1", "a.parquet"))
    (tmp_path / "other" / "x").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no set of labelled sequences\. Expected are tables"):
        read_task(tmp_path / "other")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test.csv").write_text("sequence,label\nA,0\nC,1\n")
    with pytest.raises(UserError, match="has no part to train on; those found: test"):
        read_task(tmp_path / "test")


@pytest.mark.parametrize(
    ("names", "expected"),
    [({"10", "9", "-1"}, ("-1", "9", "10")), ({"b", "10", "9"}, ("10", "9", "b")), ({"1", "01"}, ("01", "1")), ({"²", "1"}, ("1", "²"))],
)
def test_classes_are_sorted(names: set[str], expected: tuple[str, ...]) -> None:
    assert sort_classes(names) == expected


def test_some_of_them() -> None:
    regions = pl.DataFrame({"chrom": ["a", "b", "c"], "start": [1, 2, 3], "end": [4, 5, 6], "strand": ["+"] * 3})
    train = task_of([("AC", "x"), ("G", "y"), ("TTT", "x")], regions).train
    assert content(train.take(np.array([2, 0]))) == [("TTT", 0), ("AC", 0)]
    some = train.take(np.array([False, True, True]))
    assert content(some) == [("G", 1), ("TTT", 0)]
    assert some.regions is not None
    assert some.regions["chrom"].to_list() == ["b", "c"]
    assert len(train.take(np.zeros(3, bool))) == 0


@given(st.lists(st.text("ACGTNacgtn", min_size=1, max_size=9), min_size=1, max_size=6))
def test_keys(texts: list[str]) -> None:
    train = task_of([(text, "0") for text in texts] + [("A", "1")]).train
    assert [decode(np.frombuffer(key, np.uint8)) for key in train.keys[:-1]] == [text.upper() for text in texts]
    reverse = [str(Seq(text.upper()).reverse_complement()) for text in texts]
    assert [decode(np.frombuffer(key, np.uint8)) for key in train.reverse_keys[:-1]] == reverse


def test_groups_join_equal_sequences_reverse_complements_and_overlaps() -> None:
    regions = pl.DataFrame(
        {"chrom": ["a", "a", "b", "b", "b", "c"], "start": [0, 50, 0, 8, 40, 9], "end": [9, 60, 9, 20, 50, 12], "strand": ["+"] * 6}
    )
    rows = [("AACC", "0"), ("GGTT", "1"), ("ACAC", "0"), ("TTTT", "0"), ("aaaa", "0"), ("CCCA", "1")]
    number = groups(task_of(rows, regions).train)
    assert number.tolist() == [0, 0, 1, 1, 1, 2]
    assert groups(task_of(rows).train).tolist() == [0, 0, 1, 2, 2, 3]


@given(
    texts=st.lists(st.text("AC", min_size=1, max_size=3), min_size=3, max_size=40),
    validation=st.floats(0, 0.5),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 5),
)
def test_what_is_held_out_is_in_no_other_part(texts: list[str], validation: float, test: float, seed: int) -> None:
    task = task_of([(text, str(i % 2)) for i, text in enumerate(texts)])
    try:
        made = hold_out(task, validation, seed, test)
    except UserError:  # too many are equal
        return
    known: set[bytes] = set()
    for part in made.parts.values():
        own = {*part.keys, *part.reverse_keys}
        assert not own & known
        known |= own
    assert sorted(row for part in made.parts.values() for row in content(part)) == sorted(content(task.train))
    assert ("validation" in made.parts, "test" in made.parts) == (validation > 0, test > 0)


def test_shares_are_met_and_a_part_is_not_held_out_twice() -> None:
    random = np.random.default_rng(0)
    task = task_of([("".join(random.choice(list("ACGT"), 20)), str(i % 2)) for i in range(200)])
    made = hold_out(task, 0.1, seed=0, test=0.25)
    assert [len(part) for part in made.parts.values()] == [130, 20, 50]
    with pytest.raises(UserError, match="has a validation part of its own"):
        hold_out(made, 0.1, seed=0)
    with pytest.raises(ValueError, match="must be shares"):
        hold_out(task, 1.0, seed=0)
    with pytest.raises(UserError, match="nothing can be held out for validation: too many of 50"):
        hold_out(task_of([("ACG", str(i % 2)) for i in range(50)]), 0.1, seed=0)


def test_gue(data_folder: Path) -> None:
    task = read_task(data_folder / "dna" / "gue" / "prom" / "prom_core_tata")
    assert (task.classes, [len(part) for part in task.parts.values()]) == (("0", "1"), [4904, 613, 613])
    assert (task.train.lengths == 70).all()


def test_test_splits_of_genomic_benchmarks(data_folder: Path) -> None:
    task = read_task(data_folder / "dna" / "genomic_benchmarks" / "drosophila_enhancers_stark_test.csv.gz")
    assert task.classes == ("negative", "positive")
    assert np.bincount(task.train.labels).tolist() == [865, 865]
    assert (task.train.lengths.min(), task.train.lengths.max()) == (258, 3061)
