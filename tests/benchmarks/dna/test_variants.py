"""The ways of `python -m benchmarks.dna.variants` that need no network: consequences that are known, counts by hand, areas."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.dna import mito
from benchmarks.dna.variants import Scores
from domains.dna.data.alphabet import encode
from domains.dna.data.genome import Genome, open_genome


@pytest.fixture
def genome_of(tmp_path: Path) -> Callable[[str, str], Genome]:
    def genome_of(text: str, name: str) -> Genome:
        (tmp_path / name).write_text(f">one\n{text}\n")
        return open_genome(tmp_path / name)

    return genome_of


def changes(*rows: tuple[int, str, str]) -> pl.DataFrame:
    return pl.DataFrame([(place, ref, [alt]) for place, ref, alt in rows], schema=["start", "ref", "alt"], orient="row")


def test_consequences_are_those_that_are_known(data_folder: Path, tmp_path: Path) -> None:
    """Of well-known variants, on both strands: MELAS, LHON (ND4 R340H, ND1 A52T, ND6 M64V), NARP, and a benign one."""
    folder = data_folder / "dna"
    genome = mito.read_genome(folder, tmp_path)
    genes = mito.read_genes(folder, genome)
    assert len(genes) == 37
    assert [gene.name for gene in genes if gene.strand < 0] == ["MT-ND6"]
    known = changes(
        (3242, "A", "G"), (11777, "G", "A"), (3459, "G", "A"), (14483, "T", "C"), (8992, "T", "G"), (1437, "A", "G"), (262, "A", "G")
    )
    kinds, costs = mito.consequences(genome, genes, known)
    assert kinds.tolist() == ["tRNA", "missense", "missense", "missense", "missense", "rRNA", "outside genes"]
    np.testing.assert_array_equal(costs, [np.nan, 0, 0, -1, 2, np.nan, np.nan])  # R>H, A>T, M>V, L>R in BLOSUM62
    labelled, pathogenic = mito.read_variants(folder)
    assert (pathogenic.sum(), (~pathogenic).sum()) == (255, 1431)
    found, _ = mito.consequences(genome, genes, labelled)
    doubtful = pathogenic & (found == "synonymous")
    in_cyb = labelled["info"].str.contains("GENE=MT-CYB").to_numpy()
    assert (doubtful.sum(), (doubtful & in_cyb).sum()) == (34, 31)  # labels of that submission, not the code's reading


def test_counts_say_what_a_change_costs(genome_of: Callable[[str, str], Genome]) -> None:
    """Order 1, forward: after A comes C 3 of 4 times; and the same read along the other strand."""
    text = "ACACACATGG"
    genome, variants = genome_of(text, "g.fa"), changes((3, "C", "T"))
    found = mito.markov_ratios([encode(text)], genome, variants, 1)

    def chance(word: str, after: str) -> float:
        both = [text, "CCATGTGTGT"]
        pairs = [strand[i : i + 2] for strand in both for i in range(len(strand) - 1)]
        return (pairs.count(word + after) + 1) / (sum(pair[0] == word for pair in pairs) + 4)

    forward = np.log(chance("A", "T") * chance("T", "A") / (chance("A", "C") * chance("C", "A")))
    reverse = np.log(chance("T", "A") * chance("A", "T") / (chance("T", "G") * chance("G", "T")))
    assert found[0] == pytest.approx((forward + reverse) / 2, rel=1e-6)


def test_a_relative_is_aligned_however_its_circle_is_opened(genome_of: Callable[[str, str], Genome]) -> None:
    draw = np.random.default_rng(0)
    text = "".join(draw.choice(list("ACGT"), 300))
    other = text[:100] + "GATTACA" + text[100:]
    changed = other[:50] + {"A": "C", "C": "G", "G": "T", "T": "A"}[text[50]] + other[51:]
    relative = genome_of(changed[40:] + changed[:40], "relative.fa")
    rows = [(50, text[50], changed[50]), (50, text[50], changed[50].translate(str.maketrans("ACGT", "GTAC"))), (200, text[200], "N")]
    found = mito.against_relative(genome_of(text, "g.fa"), relative, changes(*rows), 40)
    assert found[0] == 0
    assert found[1] == 0.5
    assert found[2] == 1


def test_transversions_exchange_purine_and_pyrimidine() -> None:
    found = mito.transversions(changes((0, "A", "G"), (0, "C", "T"), (0, "A", "C"), (0, "T", "G")))
    np.testing.assert_array_equal(found, [0, 0, 1, 1])


def test_areas_are_of_each_part_and_a_missing_score_leaves_its_part_out() -> None:
    labels = np.array([True, True, False, False, True, False] * 20)
    kinds = np.array(["missense", "tRNA"] * 60)
    scores = Scores(labels, np.arange(120), kinds, np.array(["MT-CYB", "MT-ND1", "MT-ND1"] * 40))
    perfect = scores.of(labels.astype(float), 2.0 * labels)
    assert perfect["all"] is not None
    assert perfect["all"]["auroc"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "seeds": [1.0, 1.0]}
    found = scores.of(np.where(kinds == "missense", labels, np.nan))
    assert found["all"] is None
    assert found["missense"] is not None
