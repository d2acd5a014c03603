"""Tables of regions: BED, GFF3, GTF and VCF in and out, names of chromosomes, places in a genome."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from Bio.SeqFeature import SimpleLocation
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.data.genome import Genome, open_genome
from domains.dna.data.region_files import attribute, read_regions, write_bed, write_gff3
from domains.dna.data.regions import Intervals, locate, match_names
from titans_seq import UserError

Write = Callable[..., Path]
GFF = (
    "##gff-version 3\n#!x\nchrI\tSGD\tgene\t11\t20\t0.5\t-\t.\tID=g1;Name=ab%20c;Note=one,t%2Cwo\n"
    "chr%3B2\t.\texon\t1\t1\t.\t?\t2\t.\n##FASTA\n>chrI\nACGT\n"
)
GTF = '1\thavana\texon\t5\t9\t.\t+\t0\tgene_id "E1"; gene_name "A;B"; tag "x"; tag "y"; level 2;\n'
VCF = (
    "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    "MT\t3\trs1\tTA\tC,TAA,<DEL>,*\t50\tPASS\tAC=1\nMT\t9\t.\tG\t.\t.\t.\t.\n"
)


def rows(path: Path, *columns: str) -> list[tuple]:
    return read_regions(path).select(columns).rows()


@pytest.mark.parametrize("name", ["a.bed", "a.bed.gz", "a.bed.bgz", "a.BED"])
def test_bed(name: str, write: Write) -> None:
    path = write('track name="x"\n#c\nchr1\t0\t10\tn "1"\t7.5\t-\textra\n\nbrowser position\n1\t5\t5\t.\t.\t.\n', name)
    expected = [(3, "chr1", 0, 10, 'n "1"', "-", 7.5), (6, "1", 5, 5, None, ".", None)]
    assert rows(path, "line", "chrom", "start", "end", "name", "strand", "score") == expected


def test_bed_of_three_columns_with_blanks_and_crlf(write: Write) -> None:
    path = write("chr1 1  10\r\nX\t3\t4\r\n", "a.bed")
    assert rows(path, "chrom", "start", "end", "name", "strand") == [("chr1", 1, 10, None, "."), ("X", 3, 4, None, ".")]


def test_bed_whose_fifth_column_is_text(write: Write) -> None:
    assert rows(write("a\t0\t1\tn\ttRNA\n", "a.bed"), "name", "score") == [("n", None)]


def test_gff3_is_zero_based_and_decoded(write: Write) -> None:
    table = read_regions(write(GFF, "a.gff3"))
    columns = ["line", "chrom", "start", "end", "name", "strand", "score", "source", "feature", "phase"]
    assert table.select(columns).rows() == [
        (3, "chrI", 10, 20, "ab c", "-", 0.5, "SGD", "gene", None),
        (4, "chr;2", 0, 1, None, ".", None, None, "exon", 2),
    ]
    pairs = [("ID", "g1"), ("Name", "ab c"), ("Note", "one"), ("Note", "t,wo")]
    assert [[(p["key"], p["value"]) for p in row] for row in table["attributes"]] == [pairs, []]
    assert attribute(table, "Note").to_list() == ["one", None]


def test_gtf(write: Write) -> None:
    table = read_regions(write(GTF, "a.gtf"))
    assert table.select("chrom", "start", "end", "name", "phase").rows() == [("1", 4, 9, "A;B", 0)]
    pairs = [("gene_id", "E1"), ("gene_name", "A;B"), ("tag", "x"), ("tag", "y"), ("level", "2")]
    assert [(p["key"], p["value"]) for p in table["attributes"][0]] == pairs


def test_vcf(write: Write) -> None:
    table = read_regions(write(VCF, "a.vcf.gz"))
    assert table.select("line", "chrom", "start", "end", "name", "ref", "alt", "qual", "filter", "info").rows() == [
        (3, "MT", 2, 4, "rs1", "TA", ["C", "TAA", "<DEL>", "*"], 50.0, "PASS", "AC=1"),
        (4, "MT", 8, 9, None, "G", [], None, None, None),
    ]


def test_a_kind_that_is_said_goes_before_the_ending(write: Write) -> None:
    assert read_regions(write("1\t4\t9\n", "a.txt"), kind="bed")["start"].to_list() == [4]


BAD = "chr1\t1\t5\n"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (BAD + "chr1\t5\n", "a.bed", r"a\.bed, line 2: fields .*too few"),
        (">chr1\nACGT\n", "a.vcf", r"a\.vcf: a FASTA, not a vcf"),
        (BAD + "chr1\tx\t5\n", "a.bed", r"line 2: start 'x' is no position"),
        (BAD + "\n\t1\t5\n", "a.bed", r"line 3: chrom an empty value is no name"),
        (BAD + "chr1\t-1\t5\n", "a.bed", r"line 2: start '-1' is no position"),
        (BAD + "chr1\t1\t1e9\n", "a.bed", r"line 2: end '1e9' is no position"),
        (BAD + "chr1\t9\t5\nchr1\t9\t5\n", "a.bed", r"line 2: end '5' lies before the start \(2 such lines"),
        (BAD + "chr1\t1\t5\tn\t0\tx\n", "a.bed", r"line 2: strand 'x' is none of"),
        (GFF.replace("\t11\t", "\t0\t"), "a.gff3", r"line 3: start '0' is no position: a whole number from 1"),
        (GFF.replace("\t0.5\t", "\thigh\t"), "a.gff3", r"line 3: score 'high' is no number"),
        (GFF.replace("\t2\t.\n", "\t3\t.\n"), "a.gff3", r"line 4: phase '3' is none of"),
        (GFF.replace("ID=g1", "ID"), "a.gff3", r"line 3: pair 'ID' is no attribute"),
        (GFF.replace("\texon\t", "\t.\t"), "a.gff3", r"line 4: feature an empty value is missing"),
        (GTF.replace(' "E1"', "=E1"), "a.gtf", r"line 1: pair 'gene_id=E1' is no attribute"),
        (VCF.replace("\tTA\t", "\t-\t"), "a.vcf", r"line 3: ref '-' is no allele"),
        (VCF.replace("<DEL>", "<DEL"), "a.vcf", r"line 3: alt .* is no list of alleles"),
        (VCF.replace("\t50\t", "\tx\t"), "a.vcf", r"line 3: qual 'x' is no number"),
        ("# nothing\n", "a.bed", "holds no region"),
        (BAD, "a.txt", "unknown kind of file"),
        (b"a\xff\t1\t5\n", "a.bed", "Save it with UTF-8"),
        (b"\x1f\x8b\x08\x00\x00", "a.bed", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(content: str | bytes, name: str, message: str, write: Write) -> None:
    with pytest.raises(UserError, match=message):
        read_regions(write(content, name))


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d.bed").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read_regions(tmp_path / "d.bed")
    with pytest.raises(UserError, match="no such file"):
        read_regions(tmp_path / "n.bed")


TEXT = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"], exclude_characters="#>"), min_size=1, max_size=8)
REGIONS = st.lists(
    st.tuples(TEXT, st.integers(0, 10**6), st.integers(0, 10**4), TEXT, st.sampled_from("+-."), st.floats(0, 1000) | st.integers(0, 1000)),
    min_size=1,
    max_size=8,
)


def table_of(regions: list[tuple]) -> pl.DataFrame:
    made = [
        (i, chrom, start, start + size, name, strand, float(score))
        for i, (chrom, start, size, name, strand, score) in enumerate(regions, 1)
    ]
    return pl.DataFrame(made, schema=["line", "chrom", "start", "end", "name", "strand", "score"], orient="row")


@given(
    regions=REGIONS.filter(
        lambda found: not any(name in ".\u2028" or chrom in (".", "track", "browser") for chrom, _, _, name, *_ in found)
    )
)
def test_a_bed_comes_back(regions: list[tuple], tmp_path_factory: pytest.TempPathFactory) -> None:
    path, table = tmp_path_factory.mktemp("bed") / "a.bed", table_of(regions)
    write_bed(table, path)
    assert read_regions(path).drop("line").equals(table.drop("line"))


@given(
    regions=REGIONS,
    attributes=st.lists(st.lists(st.tuples(TEXT, TEXT), max_size=3, unique_by=lambda pair: pair[0]), min_size=8, max_size=8),
)
def test_a_gff3_comes_back(regions: list[tuple], attributes: list[list[tuple]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path, table = tmp_path_factory.mktemp("gff") / "a.gff3", table_of(regions)
    table = table.filter((pl.col("start") < pl.col("end")) & (pl.col("chrom") != "."))  # an empty region has no form in GFF3
    pairs = [[{"key": "ID", "value": "i"}, *({"key": k, "value": v} for k, v in row if k not in ("ID", "Name"))] for row in attributes]
    table = table.with_columns(
        pl.Series("attributes", pairs[: table.height], dtype=pl.List(pl.Struct({"key": pl.String, "value": pl.String})))
    )
    if table.is_empty():
        return
    write_gff3(table, path)
    back = read_regions(path)
    columns = ["chrom", "start", "end", "strand", "score", "attributes"]
    assert back.select(columns).equals(table.select(columns))
    lines = [line.split("\t") for line in path.read_text().split("\n")[1:-1]]
    assert [(int(line[3]) - 1, int(line[4])) for line in lines] == table.select("start", "end").rows()


def test_names_of_written_regions(tmp_path: Path) -> None:
    table = pl.DataFrame({"chrom": ["c"], "start": [4], "end": [9], "name": ["a;b=c"], "strand": ["+"]})
    write_gff3(table, tmp_path / "a.gff3")
    assert rows(tmp_path / "a.gff3", "chrom", "start", "end", "name", "feature", "source") == [("c", 4, 9, "a;b=c", "region", "titans_seq")]
    with pytest.raises(UserError, match="cannot be written"):
        write_bed(table, tmp_path / "none" / "a.bed")


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["1", "chrX"], ["chr1", "X"], {"1": "chr1", "chrX": "X"}),
        (["MT", "M", "chrM", "chrMT"], ["chrM"], dict.fromkeys(["MT", "M", "chrM", "chrMT"], "chrM")),
        (["chrM"], ["MT"], {"chrM": "MT"}),
        (["1"], ["1", "chr1"], {"1": "1"}),
        (["Chr1"], ["1", "chr1"], {}),  # two would do
        (["NC_1", "ENST2.7", "NC_3.1"], ["NC_1.3", "ENST2", "NC_3.2"], {"NC_1": "NC_1.3", "ENST2.7": "ENST2", "NC_3.1": "NC_3.2"}),
        (["1", "I"], ["chr10", "chrI_random"], {}),
    ],
)
def test_names_of_chromosomes(names: list[str], known: list[str], expected: dict[str, str]) -> None:
    assert match_names(names, known) == expected


def test_regions_are_located(genome_of: Callable[..., Genome], write: Write) -> None:
    genome = genome_of({"chr1": "ACGTACGT", "MT": "AC"})
    path = write("chrM\t0\t2\n1\t3\t8\t.\t.\t-\n", "a.bed")
    found = locate(read_regions(path), genome, path)
    assert [x.tolist() for x in (found.record, found.start, found.stop, found.strand)] == [[1, 0], [0, 3], [2, 8], [1, -1]]
    assert found.to_frame(genome).select("chrom", "start", "end", "strand").rows() == [("MT", 0, 2, "+"), ("chr1", 3, 8, "-")]


def test_regions_that_are_not_in_the_genome(genome_of: Callable[..., Genome], write: Write) -> None:
    genome = genome_of({"chr1": "ACGTACGT", "MT": "AC"})
    path = write("#\n1\t3\t9\n", "a.bed")
    with pytest.raises(UserError, match=r"a\.bed, line 2: end '9' lies beyond '1' of 8 bases"):
        locate(read_regions(path), genome, path)
    path = write("1\t3\t8\n2\t0\t1\n", "a.bed")
    with pytest.raises(UserError, match=r"a\.bed, line 2: chrom '2' is no record of .*g\.fa, which has chr1, MT"):
        locate(read_regions(path), genome, path)
    with pytest.raises(UserError, match="the table: a table of regions needs the columns chrom, start and end; missing: end"):
        locate(pl.DataFrame({"chrom": ["1"], "start": [1]}), genome, "the table")


def test_intervals_are_of_one_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        Intervals.of([0], [1, 2], [3, 4])


def test_real_files(data_folder: Path, tmp_path: Path) -> None:
    """Every CDS of E. coli begins with a start codon of its strand and has whole codons, but for the few that RefSeq marks as pseudo."""
    folder = data_folder / "dna" / "ecoli_k12"
    genome = open_genome(folder / "GCF_000005845.2_ASM584v2_genomic.fna.gz", tmp_path)
    path = folder / "GCF_000005845.2_ASM584v2_genomic.gff.gz"
    table = read_regions(path).filter(pl.col("feature") == "CDS")
    table = table.filter(attribute(table, "pseudo").is_null() & attribute(table, "exception").is_null())
    once = table.filter(~attribute(table, "ID").is_duplicated())  # in one piece
    found = locate(once, genome, path)
    assert len(found) > 4000
    first = [
        "".join("ACGT"[c] for c in genome.window(*row)[:3]) for row in zip(found.record, found.start, found.stop, found.strand, strict=True)
    ]
    assert sum(codon in ("ATG", "GTG", "TTG", "CTG", "ATT") for codon in first) == len(first)
    sequence = genome.text(0, 0, int(genome.lengths[0]))
    for i in range(0, len(found), 500):
        location = SimpleLocation(int(found.start[i]), int(found.stop[i]), int(found.strand[i]))
        ours = genome.window(0, int(found.start[i]), int(found.stop[i]), int(found.strand[i]))
        assert "".join("ACGT"[c] for c in ours) == location.extract(sequence)


def test_every_ref_of_clinvar_is_in_the_genome(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "dna" / "mito_variants"
    genome = open_genome(folder / "hs37d5.MT.fa", tmp_path)
    path = folder / "clinvar_chrMT_plp_blb.vcf"
    table = read_regions(path)
    found = locate(table, genome, path)
    assert len(found) == 1686
    assert [genome.text(0, a, b) for a, b in zip(found.start.tolist(), found.stop.tolist(), strict=True)] == table["ref"].to_list()
