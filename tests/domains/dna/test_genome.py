"""The cache of a genome: what Biopython reads, in every form of file, found stale, refused with its place."""

import gzip
import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.data import cache as cache_module
from domains.dna.data import sequences
from domains.dna.data.cache import N_BLOCK
from domains.dna.data.genome import Genome, open_example, open_genome, tell_ambiguous
from tests.domains.dna.twobit import twobit
from titans_seq import UserError
from titans_seq.cache import FOLDER

RECORDS = {"chr1": "ACGTNacgtnACGTT", "chr2": "nnnnNNNNacgt", "x": "G"}
FASTA = "".join(f">{name} of a test\n{text[:7]}\n{text[7:]}\n" for name, text in RECORDS.items())
SHIPPED = Path(cache_module.__file__).parents[1] / "datasets" / "phix174.gbk"


def letters(genome: Genome) -> dict[str, str]:
    return {name: genome.text(i, 0, int(genome.lengths[i])) for i, name in enumerate(genome.names)}


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz", "g.fa.bgz", "no_ending"])
def test_fasta(name: str, write: Callable[..., Path]) -> None:
    assert letters(open_genome(write(FASTA, name))) == RECORDS


@pytest.mark.parametrize(
    "text", [FASTA.replace("\n", "\r\n"), FASTA.replace("\n", "\r"), "\n; a comment\n" + FASTA, FASTA.replace("N", "R")]
)
def test_fasta_of_other_habits(text: str, write: Callable[..., Path]) -> None:
    assert letters(open_genome(write(text))) == RECORDS


@pytest.mark.parametrize("order", ["<", ">"])
def test_twobit(order: str, write: Callable[..., Path]) -> None:
    path = write(twobit(RECORDS, order), "g.2bit")
    assert letters(open_genome(path)) == RECORDS
    with path.open("rb") as file:
        assert {record.id: str(record.seq) for record in SeqIO.parse(file, "twobit")} == RECORDS


@pytest.mark.parametrize("name", ["g.gbk", "g.gbk.gz"])
def test_genbank(name: str, write: Callable[..., Path]) -> None:
    genome = open_genome(write(SHIPPED.read_bytes(), name))
    assert letters(genome) == {"NC_001422.1": str(SeqIO.read(SHIPPED, "genbank").seq)}
    assert genome.lengths.tolist() == [5386]


def test_records_longer_than_a_block(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "BLOCK", 1000)
    monkeypatch.setattr(cache_module, "_COUNTED", N_BLOCK)
    text = "ACGTN" * 777
    for path in (write(f">a\n{text}\n>b\nAC\n"), write(twobit({"a": text, "b": "AC"}), "g.2bit")):
        assert letters(open_genome(path)) == {"a": text, "b": "AC"}
        assert open_genome(path).count_n(np.array([0]), np.array([0]), np.array([len(text)])).tolist() == [text.count("N")]


@given(
    records=st.lists(st.text("ACGTNacgtn", min_size=1, max_size=3000), min_size=1, max_size=4),
    width=st.integers(1, 80),
    windows=st.lists(st.tuples(st.integers(0, 3), st.integers(-10, 3010), st.integers(0, 2100), st.sampled_from([1, -1])), max_size=20),
)
def test_windows_are_biopythons(
    records: list[str], width: int, windows: list[tuple[int, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("g") / "g.fa"
    lines = (f">r{i}\n" + "\n".join(text[a : a + width] for a in range(0, len(text), width)) for i, text in enumerate(records))
    path.write_text("\n".join(lines))
    with path.open() as file:
        expected_records = [record.seq for record in SeqIO.parse(file, "fasta")]
    genome = open_genome(path)
    for record, start, size, strand in windows:
        record = record % len(records)
        sequence, stop = expected_records[record], start + size
        inside = slice(min(max(start, 0), len(sequence)), min(max(stop, 0), len(sequence)))
        expected = "N" * (min(stop, 0) - min(start, 0)) + sequence[inside] + "N" * (max(stop, len(sequence)) - max(start, len(sequence)))
        expected = expected if strand > 0 else expected.reverse_complement()
        window = genome.window(record, start, stop, strand)
        assert "".join("ACGTN___acgtn"[code] for code in window) == str(expected)
        a, b = inside.start, inside.stop
        assert genome.text(record, a, b) == str(sequence[a:b])
        counted = genome.count_n(np.array([record]), np.array([a]), np.array([b]))
        assert counted.tolist() == [sequence[a:b].upper().count("N")]


def test_n_are_counted_across_blocks(genome_of: Callable[..., Genome]) -> None:
    random = np.random.default_rng(0)
    text = "".join(random.choice(list("ACGTN"), size=20 * N_BLOCK + 5, p=[0.2499] * 4 + [0.0004]))
    genome = genome_of({"a": "C", "b": text})
    start, stop = np.sort(random.integers(0, len(text) + 1, (2, 500)), axis=0)
    expected = [text[a:b].count("N") for a, b in zip(start, stop, strict=True)]
    assert genome.count_n(np.ones(500, int), start, stop).tolist() == expected


def test_the_genome_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    genome = open_example()
    assert (genome.names, genome.lengths.tolist(), genome.text(0, 0, 10)) == (("NC_001422.1",), [5386], "GAGTTTTATC")
    assert genome.cache_path.is_relative_to(tmp_path)
    with pytest.raises(UserError, match=r"no example genome is called 'x'\. Those that ship: phix174"):
        open_example("x")
    assert open_genome("phix174").names == genome.names  # wherever a file may be named


def test_a_part_outside_a_record_is_refused(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of(RECORDS)
    for start, stop in [(-1, 3), (0, 16), (3, 2)]:
        with pytest.raises(ValueError, match="not inside record 'chr1' of 15 bases"):
            genome.read(0, start, stop)


def test_what_is_read_cannot_be_written_to(genome_of: Callable[..., Genome]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        genome_of(RECORDS).read(0, 0, 3)[0] = 1


def test_a_name_that_is_not_there(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of(RECORDS)
    assert [genome.record(name) for name in genome.names] == [0, 1, 2]
    with pytest.raises(UserError, match=r"no record 'chr3'. Of its 3 records, close are: chr2, chr1"):
        genome.record("chr3")


def test_a_cache_is_built_once(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(FASTA)
    assert open_genome(path).cache_path.parent == path.parent / FOLDER
    monkeypatch.setattr(cache_module, "read_records", None)
    assert letters(open_genome(path)) == RECORDS
    os.utime(path, ns=(1, 1))  # touched: the same content
    assert letters(open_genome(path)) == RECORDS
    assert json.loads((path.parent / FOLDER / "g.fa.json").read_text())["source"]["mtime_ns"] == 1


def test_letters_that_are_read_as_n_are_counted_and_told(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write(">a\nACRyN\n>b\nnKA\n")
    assert open_genome(path).ambiguous == 3
    monkeypatch.setattr(cache_module, "read_records", None)
    genome = open_genome(path)  # of the cache
    assert tell_ambiguous([genome, genome]) == "6 letters for several bases (such as R and Y) are read as N."
    (tmp_path / "clean").mkdir()
    monkeypatch.undo()
    assert tell_ambiguous([open_genome(write(">a\nACGTNNnn\n", "clean/g.fa"))]) == ""
    assert tell_ambiguous([open_genome(write(">a\nACGTM\n", "clean/h.fa"))]).startswith("1 letter for several bases")


def test_a_genome_is_called_as_it_was_named(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(FASTA)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for name in ("../g.fa", "../below/../g.fa"):
        with pytest.raises(UserError, match=f"^{name}: has no record 'y'"):
            open_genome(name).record("y")
    assert str(open_genome("phix174", tmp_path).source) == "phix174"


def test_a_changed_file_is_read_again(write: Callable[..., Path]) -> None:
    path = write(FASTA)
    before = open_genome(path)
    write(FASTA.replace("G", "C"))  # of the same size
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="Open the genome again"):  # opened, but nothing read of it before its file was replaced
        _ = open_genome(path) and before.read(0, 0, 3)
    assert letters(open_genome(path)) == {name: text.replace("G", "C") for name, text in RECORDS.items()}
    assert len(list((path.parent / FOLDER).glob("*.bases"))) == 1


def test_a_genome_that_is_being_read_stays_as_it_was(write: Callable[..., Path]) -> None:
    path = write(FASTA)
    before = open_genome(path)
    assert before.text(0, 0, 4) == "ACGT"
    write(">chr1\nTTTTTTTTTTTTTTTTTTT\n")
    assert letters(open_genome(path)) == {"chr1": "T" * 19}
    assert letters(before) == RECORDS


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"format": 2, "source": {}, "records": [[1]]}', b"\xff"])
def test_a_damaged_index_is_written_anew(damage: bytes, write: Callable[..., Path]) -> None:
    path = write(FASTA)
    open_genome(path)
    (path.parent / FOLDER / "g.fa.json").write_bytes(damage)
    assert letters(open_genome(path)) == RECORDS


def test_a_cache_that_is_cut_off_or_of_another_format_is_written_anew(write: Callable[..., Path]) -> None:
    path = write(FASTA)
    bases = open_genome(path).cache_path
    bases.write_bytes(bases.read_bytes()[:-1])
    assert letters(open_genome(path)) == RECORDS
    index = path.parent / FOLDER / "g.fa.json"
    index.write_text(index.read_text().replace('"format": 2', '"format": 1').replace('"chr1"', '"old"'))
    assert letters(open_genome(path)) == RECORDS


def test_a_folder_for_caches(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = write(FASTA), write(">chr1\nA\n", "other/g.fa")
    genomes = [open_genome(path, tmp_path / "caches") for path in (first, second)]
    assert [letters(genome) for genome in genomes] == [RECORDS, {"chr1": "A"}]
    assert [open_genome(path, tmp_path / "caches").cache_path for path in (first, second)] == [genome.cache_path for genome in genomes]
    assert not (tmp_path / FOLDER).exists()


def test_where_one_cannot_write_the_users_cache_is_taken(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = write(FASTA)
    (tmp_path / FOLDER).write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    genome = open_genome(path)
    assert letters(genome) == RECORDS
    assert genome.cache_path.is_relative_to(tmp_path / "home" / "titans_seq")
    said = capsys.readouterr().err
    assert f"{tmp_path / FOLDER} (" in said
    assert "cannot be written to" in said
    open_genome(path)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="no cache can be written to"):
        open_genome(path, tmp_path / FOLDER)


def test_a_cache_is_built_by_one_of_many(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, build, built = write(FASTA), cache_module._build, []

    def counted(*arguments: object) -> object:
        built.append(arguments)
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "_build", counted)
    with ThreadPoolExecutor(8) as pool:
        assert [letters(genome) for genome in pool.map(open_genome, [path] * 8)] == [RECORDS] * 8
    assert len(built) == 1


def test_another_working_folder(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(write(FASTA).parent)
    genomes = [open_genome("g.fa"), open_genome("g.fa", "caches")]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert [letters(genome) for genome in genomes] == [RECORDS] * 2


def test_a_genome_goes_to_another_process_as_a_place(genome_of: Callable[..., Genome]) -> None:
    genome = genome_of({"a": "ACGT" * 10_000})
    genome.read(0, 0, 4)
    packed = pickle.dumps(genome)
    assert len(packed) < 2000
    assert letters(pickle.loads(packed)) == letters(genome)


CUT = gzip.compress(b">a\n" + b"ACGTTGCA\n" * 5000, 0)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "g.fa", "is empty"),
        ("\n\n", "g.fa", "holds no record"),
        ("ACGT\n", "g.fa", r"line 1: 'ACGT' begins neither FASTA"),
        ("\nACGT\n>a\nAC\n", "g.fa", r"line 2: 'ACGT' begins neither FASTA"),
        ("@r\nAC\n+\nII\n", "g.fa", "looks like FASTQ"),
        (">a\nAC\n>b\nA\n>a\nC\n", "g.fa", r"line 5: record 3 is called 'a', as record 1 is \(.*line 1\)"),
        (">a\nAC\n>\nA\n", "g.fa", r"line 3: record 2 has no name"),
        (">a\nAC\n>b\n>c\nA\n", "g.fa", r"line 3: record 'b' holds no base"),
        (">a\nAC\n>b\n", "g.fa.gz", r"line 3: record 'b' holds no base"),
        (">a\nAC\n>b\nAC GT\n\nA-\n", "g.fa", r"line 6: record 'b', position 6: '-' is a gap"),
        (">a\nACGT\nAéC\n", "g.fa", r"line 3: record 'a', position 6: 'é' is no base"),
        (b">a\nACGT\nA\xff\n", "g.fa", r"line 3: record 'a', position 6: .* is no base"),
        (">a\nACGT\n>b\nAxXX\n", "g.fa", r"line 4: record 'b', position 2: 'x' is no base: .* Write masked bases as N"),
        (">a\nMKLV\n", "g.fa", r"position 3: 'L' is no base.*proteins"),
        (CUT[:20_000], "cut", r"cut, line \d+: its gzip is cut off or damaged"),
        (CUT[:15], "cut", "its gzip is cut off or damaged near its begin"),
        (twobit(RECORDS)[:-1], "g.2bit", "is cut off, damaged"),
        (twobit(RECORDS)[:18], "g.2bit", "is cut off: 18 bytes for 3 records"),
        (twobit({"a": "ACGT", "b": "C"}).replace(b"\x01b", b"\x01a"), "g.2bit", "two of its 2 records have one name"),
        (SHIPPED.read_bytes()[:-200], "g.gbk", "record 1 is no whole GenBank record"),
        (SHIPPED.read_bytes().replace(b"5386 bp", b"5387 bp"), "g.gbk", "record 1 is no whole GenBank record .*length 5387"),
        (SHIPPED.read_bytes()[: SHIPPED.read_bytes().index(b"ORIGIN")] + b"//\n", "g.gbk", "holds no sequence"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(content: str | bytes, name: str, message: str, write: Callable[..., Path]) -> None:
    path = write(content, name)
    with pytest.raises(UserError, match=message) as caught:
        open_genome(path)
    assert str(path) in str(caught.value)
    assert not list((path.parent / FOLDER).glob("*.json"))


def test_a_block_beyond_its_record_is_refused(write: Callable[..., Path]) -> None:
    """Biopython's C code would write beyond its memory."""
    content = bytearray(twobit({"a": "ACNNGT"}))
    at = content.index((2).to_bytes(4, "little") + (2).to_bytes(4, "little"))
    for start, size in [(2, 5), (7, 2), (5, 2**32 - 1)]:
        content[at : at + 8] = start.to_bytes(4, "little") + size.to_bytes(4, "little")
        with pytest.raises(UserError, match="record 'a' of 6 bases has a block"):
            open_genome(write(bytes(content), "g.2bit"))


def test_a_bgzf_that_is_cut_between_two_blocks(write: Callable[..., Path]) -> None:
    path = write(FASTA, "g.fa.bgz")
    path.write_bytes(path.read_bytes()[:-28])
    with pytest.raises(UserError, match="without the block that ends one"):
        open_genome(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder\. Name one file in it"):
        open_genome(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        open_genome(tmp_path / "none.fa")
    with pytest.raises(UserError, match="cannot be read"):
        open_genome("\0")


@pytest.mark.parametrize(
    "name",
    ["ecoli_k12/GCF_000005845.2_ASM584v2_genomic.fna.gz", "human_chr9_1mb/Homo_sapiens.GRCh38.dna_sm.primary_assembly_chr9_1_1000000.fa"],
)
def test_real_genomes(name: str, data_folder: Path, tmp_path: Path) -> None:
    path = data_folder / "dna" / name
    with gzip.open(path, "rt") if name.endswith(".gz") else path.open() as file:
        expected = {record.id: str(record.seq) for record in SeqIO.parse(file, "fasta")}
    assert letters(open_genome(path, tmp_path)) == expected
