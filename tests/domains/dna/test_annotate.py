"""Labels of a genome: in segments as in one pass, runs as a loop finds them, and from annotation to model to annotation by the commands."""

from collections.abc import Callable
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.annotate import Labelled, Runs, label_genome
from domains.dna.data.features import label_strands, read_annotation
from domains.dna.data.genome import Genome
from domains.dna.data.region_files import read_regions
from domains.dna.data.regions import Intervals
from domains.dna.data.windows import consecutive_windows, overlapping_windows, whole
from domains.dna.head_config import EncoderConfig, LabellerConfig, ProfileConfig
from domains.dna.heads import DNALabeller, DNAProfile
from domains.dna.labelled_batches import LabelledWindows
from domains.dna.strands import reverse_complement
from titans_seq import UserError, presets
from titans_seq.config import VARIANTS, Variant

Run = Callable[..., None]
GenomeOf = Callable[[dict[str, str]], Genome]
SHIPPED = Path(str(files("domains.dna") / "datasets" / "phix174.gbk"))
RECORDS = {"a": "ACGTTGCANNCATTGACCagtacgattACGGCAT" * 3, "b": "A", "c": "GATTACAC"}


def labeller(variant: Variant, strands: str, classes: tuple[str, ...] = ("CDS", "tRNA")) -> DNALabeller:
    torch.manual_seed(0)
    encoder = EncoderConfig(titans=presets.debug(variant), strands=strands, stem_width=4)
    model = DNALabeller(LabellerConfig(encoder=encoder, classes=classes)).double()
    torch.nn.init.normal_(model.head.linear.weight)
    return model.eval()


def probabilities(model: DNALabeller, genome: Genome, scratch: Path, segment: int, window: int | None = None) -> list[np.ndarray]:
    """Of each record (length, 2, V), in segments."""
    parts: list[list[np.ndarray]] = [[] for _ in genome.names]
    for part in label_genome(model, genome, scratch, segment, window=window):
        assert part.start == sum(map(len, parts[part.record]))
        parts[part.record].append(part.probabilities)
    assert not any(scratch.iterdir())
    return [np.concatenate(found) for found in parts]


@pytest.mark.parametrize("strands", ["forward", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_segments_give_what_one_pass_does(variant: Variant, strands: str, genome_of: GenomeOf, tmp_path: Path) -> None:
    """A record in one stream, and each of its windows by itself, as in training."""
    genome, model, scratch = genome_of(RECORDS), labeller(variant, strands), tmp_path / "scratch"
    scratch.mkdir()
    for window in (None, 1, 12, 33, 1000):
        windows = whole(genome) if window is None else consecutive_windows(whole(genome), window)
        expected: list[list[np.ndarray]] = [[] for _ in genome.names]
        for record, start, stop in zip(windows.record, windows.start, windows.stop, strict=True):
            codes = torch.from_numpy(genome.read(record, start, stop).astype(np.int64))[None]
            logits = model(codes)
            if strands == "forward":
                logits = torch.cat([logits, model(reverse_complement(codes)).flip(1)], dim=2)
            expected[record].append(logits[0].softmax(-1).numpy())
        for segment in (7, 35, 4096) if window else (1, 7, 35, 4096):
            for found, parts in zip(probabilities(model, genome, scratch, segment, window), expected, strict=True):
                np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-6, atol=1e-9)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    cut=st.integers(1, 5),
    min_length=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_runs_are_those_of_a_loop(lengths: list[int], cut: int, min_length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    names = tuple(f"r{i}" for i in range(len(lengths)))
    genome: Any = type("G", (), {"names": names})
    runs, expected = Runs(genome, ("x", "y")), []
    for record, length in enumerate(lengths):
        told = random.dirichlet([0.3] * 3, size=(length, 2))
        for start in range(0, length, cut):
            part = told[start : start + cut]
            runs.add(Labelled(record, start, start + len(part), part))
        for strand in range(2):
            labels = told[:, strand].argmax(-1)
            for label, group in groupby(range(length), key=labels.__getitem__):
                bases = list(group)
                if label and len(bases) >= min_length:
                    mean = told[bases, strand, label].mean()
                    expected.append((names[record], bases[0], bases[-1] + 1, "xy"[label - 1], mean, "+-"[strand]))
    found = runs.table(min_length)
    expected.sort(key=lambda row: (row[0], row[1], row[5]))
    assert found.drop("feature", "score").rows() == [(*row[:4], row[5]) for row in expected]
    np.testing.assert_allclose(found["score"].to_numpy(), [row[4] for row in expected])


def test_labels_of_both_strands(genome_of: GenomeOf) -> None:
    genome = genome_of({"a": "ACGTACGTAC"})
    regions = pl.DataFrame(
        [("a", 1, 4, "+", "CDS"), ("a", 3, 6, "-", "CDS"), ("a", 8, 9, ".", "tRNA")],
        schema=["chrom", "start", "end", "strand", "feature"],
        orient="row",
    )
    (labels,) = label_strands(genome, regions, ["CDS", "tRNA"], "t")
    assert labels.T.tolist() == [[0, 1, 1, 1, 0, 0, 0, 0, 2, 0], [0, 0, 0, 1, 1, 1, 0, 0, 2, 0]]
    items = LabelledWindows(genome, [labels], Intervals.of([0, 0], [2, 2], [6, 6], [1, -1]))
    assert items[0].label.T.tolist() == [[1, 1, 0, 0], [0, 1, 1, 1]]
    assert items[1].label.T.tolist() == [[1, 1, 1, 0], [0, 0, 1, 1]]
    assert items[1].codes.tolist() == [2, 3, 0, 1]


@given(spans=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=4), length=st.integers(1, 12))
def test_windows_leave_nothing_out(spans: list[tuple[int, int]], length: int) -> None:
    intervals = Intervals.of(range(len(spans)), [a for a, _ in spans], [a + n for a, n in spans])
    for made, times in ((consecutive_windows(intervals, length), 1), (overlapping_windows(intervals, length), 2)):
        assert ((made.lengths >= 1) & (made.lengths <= length)).all()
        for i, (start, size) in enumerate(spans):
            counts = np.zeros(start + size, int)
            for a, b in zip(made.start[made.record == i], made.stop[made.record == i], strict=True):
                counts[a:b] += 1
            assert (counts[:start] == 0).all()
            assert (counts[start + length // 2 :] == times).all()
            assert (counts[start:] >= 1).all()


def test_annotation_is_read_from_any_file(tmp_path: Path) -> None:
    assert "CDS" in read_annotation(SHIPPED)["feature"].to_list()
    assert read_annotation("phix174").equals(read_annotation(SHIPPED))
    (tmp_path / "a.bed").write_text("chr1\t2\t5\tpeak\t0\t+\n")
    assert read_annotation(tmp_path / "a.bed")["feature"].to_list() == ["peak"]
    (tmp_path / "a.gff3").write_text("chr1\t.\texon\t3\t5\t.\t+\t.\t.\n")
    assert read_annotation(tmp_path / "a.gff3")["feature"].to_list() == ["exon"]


def test_from_a_genbank_to_a_model_to_intervals(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--preset", "debug", "--max-steps", 2, "--batch-size", 2, "--segment-length", 64, "--validate-every", 1, "--guard", 50)
    run("finetune", SHIPPED, "--classes", "CDS", *sizes, "--cache", tmp_path / "cache", "-o", tmp_path / "run")
    trained, validated, labels, size = capsys.readouterr().out.splitlines()[:4]
    assert trained == "Trained on 5,067 bases of phix174.gbk with phix174.gbk, in windows of 64."
    assert validated == "Validated on the last 5% of each record, not trained on, nor 50 bases before: 269 bases."
    assert labels.startswith("Of the bases and strands of the genome there is CDS on ")
    assert size.startswith("The model has ")
    assert size.endswith(" parameters; 2 steps.")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"Trained on 5,067 bases of `phix174.gbk` with `phix174.gbk`, in windows of 64.\n\n{validated}" in card
    model = tmp_path / "run" / "model"
    run("annotate", model, SHIPPED, "--cache", tmp_path / "cache", "-o", tmp_path / "out", "--bases", "--segment-length", 1000, "--quiet")
    written = capsys.readouterr().out.split()[-3:]
    assert written == [str(tmp_path / "out" / name) for name in ("bases.parquet", "labels.bed", "labels.gff3")]
    bases = pl.read_parquet(written[0])
    assert bases.columns == ["chrom", "position", "CDS+", "CDS-"]
    assert bases["position"].to_list() == list(range(5386))
    bed, gff3 = read_regions(written[1]), read_regions(written[2])
    assert bed.select("chrom", "start", "end", "strand").rows() == gff3.select("chrom", "start", "end", "strand").rows()
    for strand in "+-":
        chosen = gff3.filter(pl.col("strand") == strand)
        said = np.zeros(5386, bool)
        for start, end in chosen.select("start", "end").rows():
            said[start:end] = True
        assert np.array_equal(said, bases[f"CDS{strand}"].to_numpy() > 0.5)
        for start, end, score in chosen.select("start", "end", "score").rows():
            assert score == pytest.approx(bases[f"CDS{strand}"][start:end].mean(), rel=1e-4)
    run("annotate", model, SHIPPED, "--cache", tmp_path / "cache", "-o", tmp_path / "long", "--min-length", 5386, "--quiet")
    assert {path.name for path in (tmp_path / "long").iterdir()} == {"labels.bed", "labels.gff3"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("finetune", SHIPPED, "--classes", "rocket", "-o", "run"), "no region is of class 'rocket'"),
        (("finetune", SHIPPED, "--classes", "CDS", "CDS", "-o", "run"), "different"),
        (("finetune", SHIPPED, "--classes", "CDS", "--validation-records", "chr1", "-o", "run"), "has no record 'chr1'"),
        (("finetune", "g.fa", "--classes", "CDS", "-o", "run"), "g.fa: is no GenBank file"),
        (("annotate", "classifier", SHIPPED, "-o", "run"), "classifier"),
        (("annotate", "labeller", "none.fa", "-o", "run"), "none.fa: no such file"),
        (
            ("annotate", "profile", "g.fa", "--min-length", 5, "-o", "run"),
            "--min-length 5: is of labels, and profile tells values",
        ),
        (("annotate", "profile", "g.fa", "--bases", "-o", "run"), "--bases: is of labels, and profile tells values"),
        (("annotate", "labeller", SHIPPED, "-o", "g.fa"), "--output g.fa"),
    ],
)
def test_what_cannot_be_used_is_refused(
    arguments: tuple[Any, ...], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("g.fa").write_text(">a\nACGT\n")
    labeller("mag", "both").save_pretrained("labeller")
    DNAProfile(ProfileConfig(encoder=EncoderConfig(titans=presets.debug("mag")))).save_pretrained("profile")
    with pytest.raises(UserError) as error:
        run(*arguments, "--cache", tmp_path / "cache", "--quiet")
    assert message in str(error.value)
    assert not Path("run").exists()


@pytest.mark.parametrize("strands", ["forward", "both"])
def test_a_planted_label_is_learned(strands: str, genome_of: GenomeOf, tmp_path: Path) -> None:
    """Stretches of one base's repeats, on either strand: A runs are features of +, T runs of -. Read as it was trained, in windows."""
    from domains.dna.finetune import finetune_labeller
    from titans_seq.training import TrainingConfig

    random = np.random.default_rng(0)
    text, rows = "", []
    for i in range(150):
        text += "".join(random.choice(list("CG"), random.integers(5, 25)))
        start = len(text)
        text += ("A" if i % 3 else "T") * int(random.integers(8, 20))
        rows.append(("a", start, len(text), "+" if i % 3 else "-", "run"))
    genome = genome_of({"a": text})
    regions = pl.DataFrame(rows, schema=["chrom", "start", "end", "strand", "feature"], orient="row")
    training = TrainingConfig(learning_rate=1e-2, max_steps=40, batch_size=8, segment_length=64, warmup_steps=5)
    encoder = EncoderConfig(titans=presets.debug("lmm"), strands=strands)
    folder = finetune_labeller(genome, regions, ["run"], tmp_path / "run", encoder, training, guard=20, progress=False)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (told,) = probabilities(DNALabeller.from_pretrained(folder), genome, scratch, 256, window=64)
    (labels,) = label_strands(genome, regions, ["run"], "t")
    held_out = slice(int(len(text) * 0.95), None)
    assert ((told.argmax(-1) == labels)[held_out]).mean() > 0.95
