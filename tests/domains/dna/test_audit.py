"""Audits find what was planted; baselines and scores are scikit-learn's."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import average_precision_score, f1_score, matthews_corrcoef, roc_auc_score

from domains.dna import baselines
from domains.dna.audit import audit_task, print_audit, write_audit
from domains.dna.baselines import baseline_scores, count_kmers
from domains.dna.data.labelled import RawPart, Task, make_task
from domains.dna.data.labelled_files import read_task
from domains.dna.data.stretches import sharing_stretches
from domains.dna.metrics import classification_scores
from titans_seq import UserError


def task_of(**parts: list[tuple]) -> Task:
    """Of (sequence, label) or (sequence, label, chrom, start, end)."""
    made = {}
    for name, rows in parts.items():
        placed = len(rows[0]) > 2
        regions = pl.DataFrame([row[2:] for row in rows], schema=["chrom", "start", "end"], orient="row") if placed else None
        made[name] = RawPart([row[0] for row in rows], [row[1] for row in rows], str, regions)
    return make_task("planted", made)


def texts(count: int, length: int, seed: int, letters: str = "ACGT") -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(letters), length)) for _ in range(count)]


def reverse(text: str) -> str:
    return str(Seq(text).reverse_complement())


def test_repeats_and_leaks_that_were_planted() -> None:
    a, b, c, d, e, f = texts(6, 60, seed=0)
    train = [(a, "0"), (b, "1"), (a.lower(), "1"), (reverse(b), "1"), (c, "0")]
    test = [(a, "0"), (c, "1"), (reverse(c), "0"), (d, "0"), (reverse(b[20:52]) + e, "1"), (f[:32], "1"), (b[:31] + "N" + b[32:], "0")]
    audit = audit_task(task_of(train=train, test=test), kmers=(2,))
    assert audit["parts"]["train"]["repeats"] == {"exact": 1, "reverse_complement": 1, "exact_with_another_label": 1}
    assert audit["parts"]["test"]["repeats"] == {"exact": 0, "reverse_complement": 1, "exact_with_another_label": 0}
    assert audit["parts"]["train"]["per_class"] == [2, 3]
    assert audit["parts"]["test"]["lengths"] == {"min": 32, "median": 60.0, "max": 92}
    (leak,) = audit["leaks"]
    assert leak == {
        **{"part": "test", "in": "train", "exact": 2, "reverse_complement": 1, "exact_with_another_label": 1},
        **{"overlapping": None, "sharing_32_bases": 4},
    }


def test_overlaps_that_were_planted() -> None:
    sequences = texts(5, 40, seed=1)
    train = [(sequences[0], "0", "a", 0, 40), (sequences[1], "1", "b", 100, 140)]
    test = [(sequences[2], "0", "a", 39, 79), (sequences[3], "1", "a", 40, 80), (sequences[4], "1", "b", 60, 101)]
    validation = [(sequences[3], "1", "a", 40, 80)]
    audit = audit_task(task_of(train=train, validation=validation, test=test), kmers=(2,))
    assert [(leak["part"], leak["in"], leak["overlapping"]) for leak in audit["leaks"]] == [
        ("validation", "train", 0),
        ("test", "train", 2),
        ("test", "validation", 2),
    ]


@given(
    part=st.lists(st.text("ACN", min_size=1, max_size=12), min_size=1, max_size=6),
    other=st.lists(st.text("ACGN", min_size=1, max_size=12), min_size=1, max_size=6),
    length=st.integers(1, 6),
)
def test_shared_stretches(part: list[str], other: list[str], length: int) -> None:
    task = task_of(train=[(x, "0") for x in other] + [("T", "1")], test=[(x, "0") for x in part])
    assert task.test is not None
    train = task.train.take(np.arange(len(other)))

    def words(text: str) -> set[str]:
        found = {text[i : i + length] for i in range(len(text) - length + 1)}
        return {word for word in found if "N" not in word}

    known = {word for text in other for word in words(text) | {reverse(word) for word in words(text)}}
    assert sharing_stretches(task.test, train, length).tolist() == [bool(words(text) & known) for text in part]


def test_stretches_in_blocks_and_of_impossible_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = texts(50, 40, seed=2)
    task = task_of(
        train=[(x, str(i % 2)) for i, x in enumerate(sequences)], test=[(x[4:36], "0") for x in sequences[::2]] + [("A" * 40, "0")]
    )
    monkeypatch.setattr("domains.dna.data.stretches._BLOCK", 100)
    assert task.test is not None
    assert sharing_stretches(task.test, task.train).tolist() == [True] * 25 + [False]
    for length in (0, 33):
        with pytest.raises(ValueError, match=f"from 1 to 32, got {length}"):
            sharing_stretches(task.test, task.train, length)


@given(st.lists(st.text("ACGTN", min_size=1, max_size=10), min_size=1, max_size=5), st.integers(1, 4))
def test_kmers_are_counted(sequences: list[str], k: int) -> None:
    task = task_of(train=[(text, "0") for text in sequences] + [("A", "1")])
    counts = count_kmers(task.train.take(np.arange(len(sequences))), k)
    assert counts.shape == (len(sequences), 4**k)
    for row, text in enumerate(sequences):
        expected: dict[int, int] = {}
        for i in range(len(text) - k + 1):
            word = text[i : i + k]
            if "N" not in word:
                number = sum(4 ** (k - 1 - j) * "ACGT".index(base) for j, base in enumerate(word))
                expected[number] = expected.get(number, 0) + 1
        dense = counts.toarray()[row]
        assert {int(i): int(dense[i]) for i in np.flatnonzero(dense)} == expected


def test_baselines_find_what_is_there() -> None:
    """Lengths tell the classes of one set, words those of the other."""
    long = [(x, "0") for x in texts(60, 30, 0)] + [(x, "1") for x in texts(60, 40, 1)]
    rich = [(x, "0") for x in texts(60, 40, 0, "ACGTGC")] + [(x, "1") for x in texts(60, 40, 1, "ACGTAT")]
    scores = {
        name: baseline_scores(task_of(train=rows, test=[(x[0][::-1], x[1]) for x in rows[::7]]), (2,))["scores"]
        for name, rows in (("long", long), ("rich", rich))
    }
    assert scores["long"]["length alone"]["accuracy"] == 1.0
    assert scores["rich"]["length alone"]["accuracy"] == scores["rich"]["majority"]["accuracy"]
    assert scores["rich"]["2-mers, logistic regression"]["auroc"] > 0.95
    assert scores["rich"]["majority"]["mcc"] == 0.0


def test_baselines_without_anything_to_evaluate_on() -> None:
    assert baseline_scores(task_of(train=[("A", "0"), ("C", "1")])) == {"evaluated_on": None, "fitted_on": 0, "scores": {}}
    found = baseline_scores(task_of(train=[("A", "0"), ("C", "1")], validation=[("A", "0"), ("G", "2")]), (1, 5))
    assert (found["evaluated_on"], found["fitted_on"]) == ("validation", 2)
    assert found["scores"]["majority"]["accuracy"] == 0.5


def test_a_large_part_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_BASES", 1000)
    rows = [(x, str(i % 2)) for i, x in enumerate(texts(100, 30, 0))]
    assert baseline_scores(task_of(train=rows, test=rows[:10]), (1,))["fitted_on"] == 33


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, p = random.integers(0, 2, 200), random.random(200)
    scores = classification_scores(labels, np.stack([1 - p, p], 1))
    assert scores == {
        "accuracy": pytest.approx(((p > 0.5) == labels).mean()),
        "mcc": pytest.approx(matthews_corrcoef(labels, p > 0.5)),
        "f1": pytest.approx(f1_score(labels, p > 0.5, average="macro")),
        "auroc": pytest.approx(roc_auc_score(labels, p)),
        "auprc": pytest.approx(average_precision_score(labels, p)),
    }
    labels, three = random.integers(0, 3, 200), random.dirichlet(np.ones(3), 200)
    assert classification_scores(labels, three)["auroc"] == pytest.approx(roc_auc_score(labels, three, multi_class="ovr"))
    one_class = classification_scores(np.zeros(5, int), np.full((5, 2), 0.5))
    assert (one_class["auroc"], one_class["auprc"], one_class["accuracy"]) == (None, None, 1.0)


def test_an_audit_is_printed_and_kept(tmp_path: Path) -> None:
    rows = [(x, str(i % 2), "a", 50 * i, 50 * i + 40) for i, x in enumerate(texts(20, 40, 0))]
    audit = audit_task(task_of(train=rows[:15], test=rows[13:]), kmers=(2,))
    write_audit(audit, tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text()) == audit
    console = Console(width=120, record=True)
    print_audit(audit, console)
    shown = console.export_text()
    for text in ("planted: 2 classes", "test in train", "2 (28.6%)", "share 32 bases", "2-mers, logistic regression", "auroc"):
        assert text in shown
    with pytest.raises(UserError, match="cannot be written"):
        write_audit(audit, tmp_path / "none" / "audit.json")


def test_the_audit_of_gue(data_folder: Path) -> None:
    audit = audit_task(read_task(data_folder / "dna" / "gue" / "prom" / "prom_core_tata"), kmers=(4,))
    leak = next(leak for leak in audit["leaks"] if (leak["part"], leak["in"]) == ("test", "train"))
    assert leak["exact"] == 16
    assert leak["sharing_32_bases"] > 16
    scores = audit["baselines"]["scores"]
    assert all(better["auroc"] >= worse["auroc"] for worse, better in pairwise(scores.values()))
    assert scores["4-mers, logistic regression"]["auroc"] > 0.8
