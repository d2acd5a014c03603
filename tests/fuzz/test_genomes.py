"""Genomes and tables of regions from strangers: what Biopython reads, or a UserError that names the file; never a wrong base or a crash."""

import gzip
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from Bio import BiopythonWarning, bgzf
from Bio.SeqIO.FastaIO import SimpleFastaParser
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.dna.data.alphabet import decode, encode
from domains.dna.data.cache import Index
from domains.dna.data.features import read_features
from domains.dna.data.genome import Genome, open_genome
from domains.dna.data.labelled_files import read_task
from domains.dna.data.region_files import read_regions, write_bed, write_gff3
from domains.dna.data.regions import locate
from tests.domains.dna.twobit import twobit
from tests.fuzz.strategies import FEWER, VALUES, mutated_bytes, mutated_text
from titans_seq import UserError

RECORDS = {"chr1": "ACGTNacgtnACGTT" * 3, "chr2": "nnnnNNNNacgt", "x": "G"}
FASTA = "".join(f">{name} of a test\n{text[:7]}\n{text[7:]}\n" for name, text in RECORDS.items())
GENBANK = """\
LOCUS       NC_1                     120 bp ss-DNA     circular PHG 09-JUL-2002
DEFINITION  A part of coliphage phiX174.
VERSION     NC_1.1
FEATURES             Location/Qualifiers
     source          1..120
                     /organism="coliphage phiX174"
     CDS             join(100..120,1..30)
                     /gene="A"
                     /note="across the
                     origin"
     CDS             complement(40..60)
                     /product="other"
ORIGIN
        1 gagttttatc gcttccatga cgcagaagtt aacactttcg gatatttctg atgagtcgaa
       61 aaattatctt gataaagcag gaattactac tgcttgttta cgaattaaat cgaagtggac
//
"""


def packed(content: bytes) -> bytes:
    target = io.BytesIO()
    with bgzf.BgzfWriter(fileobj=target, mode="wb") as file:
        file.write(content)
        file.flush()
        return target.getvalue() + bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


VALID = {
    "fasta": FASTA.encode(),
    "gzip": gzip.compress(FASTA.encode()),
    "bgzf": packed(FASTA.encode()),
    "twobit": twobit(RECORDS),
    "swapped": twobit(RECORDS, ">"),
    "genbank": GENBANK.encode(),
}


def opened(path: Path) -> Genome | None:
    """The genome, checked in itself; None where a UserError says what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiopythonWarning)
        try:
            genome = open_genome(path, progress=False)
        except UserError as error:
            assert str(path)[:100] in str(error)
            assert len(str(error)) < 5_000
            return None
    assert len(set(genome.names)) == len(genome) > 0
    assert (genome.lengths > 0).all()
    for record in range(len(genome)):
        text = genome.text(record, 0, int(genome.lengths[record]))
        assert not set(text) - set("ACGTNacgtn")
        counted = genome.count_n(np.array([record]), np.array([0]), genome.lengths[[record]])
        assert counted.tolist() == [text.upper().count("N")]
    assert open_genome(path).sha256 == genome.sha256  # from its cache
    return genome


@pytest.mark.parametrize("kind", VALID)
def test_valid(kind: str, tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(VALID[kind])
    assert opened(tmp_path / "g") is not None


@FEWER
@given(content=st.binary(max_size=80) | st.text(st.sampled_from(">ACGTNacgtn-@;LOCUS \n\r\t\0é"), max_size=60).map(str.encode))
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(content)
    opened(tmp_path / "g")


@FEWER
@given(kind=st.sampled_from(list(VALID)), data=st.data())
def test_damaged_genomes(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(data.draw(mutated_bytes(VALID[kind], head=120)))
    genome = opened(tmp_path / "g")
    if genome is None:
        return
    if kind == "genbank":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BiopythonWarning)
            try:
                table = read_features(tmp_path / "g")
                locate(table, genome, tmp_path / "g")
            except UserError as error:
                assert str(tmp_path / "g") in str(error)


@FEWER
@given(text=mutated_text(FASTA))
def test_damaged_fasta_is_read_as_biopython_reads_it(text: str, tmp_path: Path) -> None:
    content = text.encode("utf-8", "surrogatepass")
    (tmp_path / "g").write_bytes(content)
    genome = opened(tmp_path / "g")
    if genome is None:
        return
    source = io.StringIO(content.decode("utf-8", "surrogateescape"), newline=None)
    expected = {title.split()[0]: decode(encode(sequence)) for title, sequence in SimpleFastaParser(source)}
    assert {name: genome.text(i, 0, int(genome.lengths[i])) for i, name in enumerate(genome.names)} == expected


@given(values=VALUES, data=st.data())
def test_any_index(values: Any, data: st.DataObject, tmp_path: Path) -> None:
    """Of a cache: another JSON, or a valid one with a value replaced, is the same index or none."""
    good = Index(tmp_path / "g", 10, 20, "ab", 1, ("a", "b"), (3, 4)).to_json()
    made: Any = json.loads(good)
    at = data.draw(st.sampled_from([None, "source", "records", "format", "size", "length", "name"]))
    if at is None:
        made = values
    elif at == "size":
        made["source"]["size"] = values
    elif at in ("length", "name"):
        made["records"][0][at == "length"] = values
    else:
        made[at] = values
    text = json.dumps(made)
    try:
        index = Index.from_json(text)
    except ValueError:
        return
    assert Index.from_json(index.to_json()) == index
    assert index.file_size > 0


TABLES = {
    "bed": 'track name="x"\nchr1\t0\t10\tn "1"\t7.5\t-\textra\nchr2\t5\t5\t.\t.\t.\n',
    "gff3": "##gff-version 3\nchr1\tSGD\tgene\t11\t20\t0.5\t-\t.\tID=g1;Name=ab%20c;Note=one,t%2Cwo\nchr%32\t.\texon\t1\t1\t.\t?\t2\t.\n",
    "gtf": 'chr1\thavana\texon\t5\t9\t.\t+\t0\tgene_id "E1"; gene_name "A;B"; tag "x"; tag "y"; level 2;\n',
    "vcf": "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr1\t3\trs1\tGTN\tC,TAA,<DEL>,*\t50\tPASS\tAC=1\n",
}


@FEWER
@given(kind=st.sampled_from(list(TABLES)), data=st.data())
def test_damaged_regions(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    """What is read lies in order, comes back from the files written of it, and is located or refused by line."""
    path = tmp_path / f"a.{kind}"
    content = data.draw(
        mutated_text(TABLES[kind]).map(lambda text: text.encode("utf-8", "surrogatepass")) | mutated_bytes(TABLES[kind].encode())
    )
    path.write_bytes(data.draw(st.sampled_from([content, content, gzip.compress(content)])))
    try:
        table = read_regions(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    assert table.height > 0
    assert table.select((pl.col("start") >= 0) & (pl.col("end") >= pl.col("start"))).to_series().all()
    assert table["chrom"].null_count() == table["strand"].null_count() == 0
    for name, write in (("b.gff3", write_gff3), ("b.bed", write_bed)):
        write(table, tmp_path / name)
    (tmp_path / "g").write_text(FASTA)
    try:
        found = locate(table, open_genome(tmp_path / "g"), path)
    except UserError as error:
        assert f"{path}, line " in str(error)
        return
    assert len(found) == table.height


LABELLED = "sequence,label\nACGT,0\nGGNN,1\nacg,0\n"


@FEWER
@given(data=st.data(), name=st.sampled_from(["a.csv", "a.tsv", "a.csv.gz"]))
def test_damaged_labelled_tables(data: st.DataObject, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    text = data.draw(mutated_text(LABELLED.replace(",", "\t") if name == "a.tsv" else LABELLED))
    content = text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") and data.draw(st.booleans()) else content)
    try:
        task = read_task(path)
    except UserError as error:
        assert name in str(error)
        return
    assert len(task.classes) >= 2
    assert (task.train.lengths > 0).all()
    assert set(task.train.labels.tolist()) == set(range(len(task.classes)))
    assert task.train.codes.max(initial=0) < 16


@settings(max_examples=settings().max_examples // 25)
@given(data=st.data())
def test_damaged_parquet(data: st.DataObject, tmp_path: Path) -> None:
    """Each is read by a process of its own first, which takes a third of a second."""
    buffer = io.BytesIO()
    pl.DataFrame({"sequence": ["AC", "GT"], "label": [0, 1]}).write_parquet(buffer)
    (tmp_path / "a.parquet").write_bytes(data.draw(mutated_bytes(buffer.getvalue())))
    try:
        task = read_task(tmp_path / "a.parquet")
    except UserError as error:
        assert "a.parquet" in str(error)
        return
    assert len(task.train) > 0
