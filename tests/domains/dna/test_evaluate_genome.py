"""Models of labels and of values, scored along a genome: as scikit-learn scores all bases at once, and by the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef, r2_score, roc_auc_score

from domains.dna.annotate import label_genome, profile_genome
from domains.dna.data.features import label_strands
from domains.dna.data.genome import Genome
from domains.dna.data.regions import Intervals
from domains.dna.data.values import bin_values
from domains.dna.evaluate_genome import evaluate_labels, evaluate_profile, stretches_of
from domains.dna.head_config import ClassifierConfig, EncoderConfig, LabellerConfig, ProfileConfig
from domains.dna.heads import DNAClassifier, DNALabeller, DNAProfile
from domains.dna.metrics import LabelCounts, profile_scores
from titans_seq import UserError, presets

Run = Callable[..., None]
GenomeOf = Callable[[dict[str, str]], Genome]
ENCODER = EncoderConfig(titans=presets.debug("lmm"))


def random_letters(count: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGTN"), count, p=[0.24, 0.24, 0.24, 0.24, 0.04]))


def labeller() -> DNALabeller:
    torch.manual_seed(0)
    model = DNALabeller(LabellerConfig(encoder=ENCODER, classes=("CDS", "tRNA"))).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    return model


def profile() -> DNAProfile:
    torch.manual_seed(0)
    model = DNAProfile(ProfileConfig(encoder=ENCODER, bin_width=4)).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    return model


def regions() -> pl.DataFrame:
    rows = [("a", 10, 90, "+", "CDS"), ("a", 70, 160, "-", "tRNA"), ("b", 0, 40, ".", "CDS"), ("b", 200, 260, "-", "tRNA")]
    return pl.DataFrame(rows, schema=["chrom", "start", "end", "strand", "feature"], orient="row")


@pytest.mark.parametrize("window", [None, 32])
def test_labels_are_scored_as_all_at_once(window: int | None, genome_of: GenomeOf, tmp_path: Path) -> None:
    genome, model = genome_of({"a": random_letters(300, 1), "skipped": "ACGT", "b": random_letters(260, 2)}), labeller()
    labels = label_strands(genome, regions(), model.config.classes, "t")
    stretches = Intervals.of([0, 0, 2], [5, 150, 30], [100, 290, 260])
    found = evaluate_labels(model, genome, labels, stretches, str(tmp_path), segment_length=50, window=window)
    told = {
        part: np.concatenate([x.probabilities for x in label_genome(model, genome, tmp_path, window=window, records=[part])])
        for part in (0, 2)
    }
    truth, said = [], []
    for record, start, stop in ((0, 5, 100), (0, 150, 290), (2, 30, 260)):
        known = np.array([letter != "N" for letter in genome.text(record, start, stop)])
        truth.append(labels[record][start:stop][known].ravel())
        said.append(told[record][start:stop][known].reshape(-1, 3))
    y, p = np.concatenate(truth), np.concatenate(said)
    assert found.bases == len(y) / 2
    assert found.records == ("a", "b")
    expected = {"accuracy": accuracy_score(y, p.argmax(1)), "mcc": matthews_corrcoef(y, p.argmax(1))}
    assert found.scores["model"] == pytest.approx(expected)
    assert found.scores["majority"] == pytest.approx({"accuracy": np.bincount(y).max() / len(y), "mcc": 0.0})
    for number, name in ((1, "CDS"), (2, "tRNA")):
        of_class = found.of_classes[name]
        assert of_class["f1"] == pytest.approx(f1_score(y == number, p.argmax(1) == number))
        assert of_class["share"] == pytest.approx((y == number).mean())
        assert of_class["auroc"] == pytest.approx(roc_auc_score(y == number, p[:, number]), abs=2e-3)
        assert of_class["auprc"] == pytest.approx(average_precision_score(y == number, p[:, number]), abs=5e-3)
    assert np.array(found.to_dict()["confusion"]).sum() == len(y)


def test_areas_are_exact_where_no_two_chances_are_close() -> None:
    random = np.random.default_rng(0)
    odds = random.permutation(np.linspace(-8, 8, 1000))
    labels, p = (random.random(1000) < 1 / (1 + np.exp(-odds))).astype(int), 1 / (1 + np.exp(-odds))
    counts = LabelCounts(2)
    for part in range(0, 1000, 300):
        counts.add(labels[part : part + 300], np.stack([1 - p, p], axis=1)[part : part + 300])
    scores = counts.class_scores(1)
    assert scores["auroc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-12)
    assert scores["auprc"] == pytest.approx(average_precision_score(labels, p), abs=1e-12)
    certain = LabelCounts(2)
    certain.add(np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert certain.class_scores(1)["auroc"] == 1
    certain = LabelCounts(2)
    certain.add(np.array([0, 0]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert certain.class_scores(1)["auroc"] is None


def test_bins_are_scored_as_all_at_once(genome_of: GenomeOf, tmp_path: Path) -> None:
    genome, model = genome_of({"a": random_letters(203, 1), "b": random_letters(50, 2)}), profile()
    rows = [(i + 1, "a", 7 * i, 7 * i + 7, float(i * i % 7)) for i in range(20)]
    table = pl.DataFrame(rows, schema=["line", "chrom", "start", "end", "value"], orient="row")
    values = bin_values(genome, table, 4, "t")
    stretches = Intervals.of([0], [10], [203])
    found = evaluate_profile(model, genome, values, stretches, str(tmp_path), segment_length=50)
    told = np.concatenate([part.values for part in profile_genome(model, genome, tmp_path, records=[0])])
    chosen = [i for i in range(3, 51) if not np.isnan(values[0][i])]  # bin 2 begins before the stretch
    truth, said = values[0][chosen].astype(float), told[chosen].astype(float)
    assert found.bins == len(chosen) == 32
    expected = (pearsonr(truth, said).statistic, spearmanr(truth, said).statistic, r2_score(truth, said), np.mean((truth - said) ** 2))
    assert list(found.scores["model"].values()) == pytest.approx(expected, rel=1e-5)
    assert found.scores["mean of these bins"] == pytest.approx({"pearson": None, "spearman": None, "r2": 0.0, "mse": truth.var()})
    letters = genome.text(0, 0, 203)
    shares = [sum(x in "GC" for x in letters[4 * i : 4 * i + 4]) / len(letters[4 * i : 4 * i + 4]) for i in chosen]
    assert found.scores["G and C, fitted to these bins"]["r2"] == pytest.approx(pearsonr(shares, truth).statistic ** 2)
    with pytest.raises(UserError, match="0 of the bins that are to be scored have a value"):
        evaluate_profile(model, genome, values, Intervals.of([1], [0], [50]), str(tmp_path))
    assert profile_scores(np.ones(3), np.ones(3))["r2"] is None


def test_what_of_a_genome_is_scored(genome_of: GenomeOf) -> None:
    genome = genome_of({"a": "ACGT" * 1000, "b": "ACGT" * 500})
    assert stretches_of(genome).lengths.tolist() == [4000, 2000]
    assert stretches_of(genome, ["b"]).record.tolist() == [1]
    held_out = stretches_of(genome, part="validation")
    assert list(zip(held_out.start.tolist(), held_out.stop.tolist(), strict=True)) == [(3800, 4000), (1900, 2000)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("g.fa").write_text(f">a\n{random_letters(300, 1)}\n>b\n{random_letters(260, 2)}\n")
    Path("g.bed").write_text("a\t10\t90\tCDS\t0\t+\nb\t0\t40\ttRNA\t0\t-\n")
    Path("g.bedgraph").write_text("a\t0\t100\t3\na\t100\t250\t7\nb\t0\t100\t1\n")
    labeller().save_pretrained("labels")
    profile().save_pretrained("values")
    DNAClassifier(ClassifierConfig(encoder=ENCODER)).save_pretrained("classes")


@pytest.mark.usefixtures("files")
def test_the_command_scores_labels_and_profiles(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate", "labels", "g.fa", "--annotation", "g.bed", "--records", "a", "--window", 64, "--json", "--quiet")
    said = json.loads(capsys.readouterr().out)
    assert said["records"] == ["a"]
    assert said["classes"]["CDS"]["share"] == pytest.approx(80 / (2 * said["bases"]), rel=0.2)
    assert said["classes"]["tRNA"]["auroc"] is None
    run("evaluate", "labels", "g.fa", "--annotation", "g.bed")
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("majority", "mcc", "CDS", "tRNA", "auprc", "both strands"))
    Path("more.bed").write_text(Path("g.bed").read_text() + "c\t0\t9\tCDS\t0\t+\n")
    run("evaluate", "labels", "g.fa", "--annotation", "more.bed", "--records", "a", "--window", 64, "--json", "--skip-other-records")
    assert json.loads(capsys.readouterr().out) == said
    with pytest.raises(UserError, match=r"more.bed, line 3: chrom 'c' is no record of .*g.fa, .* leave such lines out with --skip-other"):
        run("evaluate", "labels", "g.fa", "--annotation", "more.bed")
    Path("other.bed").write_text("c\t0\t9\tCDS\t0\t+\n")
    with pytest.raises(UserError, match=r"other.bed: no line of it is of a record of .*g.fa"):
        run("evaluate", "labels", "g.fa", "--annotation", "other.bed", "--skip-other-records")
    run("evaluate", "values", "g.fa", "--profile", "g.bedgraph")
    shown = capsys.readouterr().out
    run("evaluate", "values", "g.fa", "--profile", "g.bedgraph", "--quiet")
    assert capsys.readouterr().out == shown
    assert all(word in shown for word in ("bins of 4 bases", "pearson", "G and C, fitted to these bins", "mean of these bins"))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("labels", "g.fa"), "g.fa: is no GenBank file"),
        (("labels", "g.fa", "--annotation", "g.bed", "--profile", "g.bedgraph"), "--profile g.bedgraph: is of profiles, and labels tells"),
        (("labels", "g.fa", "--annotation", "g.bed", "--part", "test"), "a genome has no test part. Score the validation part"),
        (("labels", "g.fa", "--annotation", "g.bed", "--records", "c"), "has no record 'c'"),
        (("labels", "g.fa", "--annotation", "g.bed", "--part", "validation", "--records", "a"), "not both"),
        (("labels", "g.fa", "--annotation", "g.bed", "-o", "p.csv"), "--output p.csv: is of sequences, and labels reads genomes"),
        (("labels", "g.fa", "--annotation", "g.bed", "--both-strands"), "--both-strands: is of sequences"),
        (("values", "g.fa"), "values tells values along a genome. Name with --profile a bedGraph"),
        (("values", "g.fa", "--profile", "g.bedgraph", "--annotation", "g.bed"), "--annotation g.bed: is of labels, and values tells"),
        (("values", "g.fa", "--profile", "g.bedgraph", "--window", 6), "6 is no multiple of 4"),
        (("classes", "t.csv", "--window", 64), "--window 64: is of genomes, and classes tells classes of sequences. Leave it out."),
        (("classes", "t.csv", "--records", "a", "b"), "--records a b: is of genomes"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments: tuple[Any, ...], message: str, run: Run) -> None:
    with pytest.raises(UserError) as error:
        run("evaluate", *arguments, "--quiet")
    assert message in str(error.value)
