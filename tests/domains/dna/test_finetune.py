"""`titans-seq dna finetune` and `evaluate`: a planted motif is learned and scored, killed runs go on, what cannot be used is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from domains.dna.config import DNAConfig
from domains.dna.data.labelled_files import read_task
from domains.dna.evaluate import evaluate, predict
from domains.dna.finetune import finetune_classifier
from domains.dna.head_config import ClassifierConfig, EncoderConfig
from domains.dna.heads import DNAClassifier
from domains.dna.metrics import classification_scores
from domains.dna.model import TitansForDNA
from domains.dna.seen import SEEN_NAME
from domains.dna.strands import reverse_complement
from titans_seq import MemoryConfig, TitansConfig, UserError, presets
from titans_seq.training import TrainingConfig
from titans_seq.training.metrics import read_metrics

Run = Callable[..., None]
QUICK = ("--preset", "debug", "--batch-size", 4, "--validate-every", 2, "--checkpoint-every", 2, "--quiet")
BACKBONE = TitansConfig(dim=32, num_layers=1, variant="lmm", memory=MemoryConfig(num_heads=2, depth=1, expansion=1, chunk_size=16))


def planted(count: int, seed: int, length: tuple[int, int] = (30, 50)) -> list[tuple[str, str]]:
    """Random sequences; every other one holds TGACTCA or its reverse complement somewhere, also those of length[0]."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        text = "".join(random.choice(list("ACGT"), random.integers(*length)))
        if i % 2:
            place = random.integers(0, len(text) - 7)
            text = text[:place] + str(random.choice(["TGACTCA", "TGAGTCA"])) + text[place + 7 :]
        rows.append((text, "motif" if i % 2 else "none"))
    return rows


def write_task(folder: Path, **parts: list[tuple[str, str]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in parts.items():
        pl.DataFrame(rows, schema=["sequence", "label"], orient="row").write_csv(folder / f"{name}.csv")
    return folder


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A task with a planted motif, and the run that learned it."""
    folder = tmp_path_factory.mktemp("planted")
    task = write_task(folder / "task", train=planted(1200, 0), dev=planted(100, 1), test=planted(300, 2))
    training = TrainingConfig(learning_rate=5e-3, batch_size=32, max_steps=150, warmup_steps=20, validate_every=50, choose="best")
    encoder = EncoderConfig(titans=BACKBONE, stem_width=7)
    finetune_classifier(read_task(task), folder / "run", encoder, training, pooling="max", progress=False)
    return task, folder / "run"


def test_a_planted_motif_is_learned_beyond_the_baselines(learned: tuple[Path, Path]) -> None:
    task, run = learned
    found = evaluate(DNAClassifier.from_pretrained(run / "model"), read_task(task))
    scores = found.scores
    assert scores["model"]["auroc"] > 0.95
    assert scores["model"]["auroc"] > scores["4-mers, logistic regression"]["auroc"]
    assert abs(scores["length alone"]["auroc"] - 0.5) < 0.1
    assert list(scores) == ["majority", "length alone", "4-mers, logistic regression", "6-mers, logistic regression", "model"]


def test_the_run_keeps_audit_metrics_and_card(learned: tuple[Path, Path]) -> None:
    task, run = learned
    audit = json.loads((run / "audit.json").read_text())
    assert audit["parts"]["test"]["sequences"] == 300
    assert {leak["part"] for leak in audit["leaks"]} == {"validation", "test"}
    losses = {
        int(row["step"]): float(row["validation_nats_per_sequence"])
        for row in read_metrics(run / "metrics.csv")
        if row["validation_nats_per_sequence"]
    }
    assert list(losses) == [50, 100, 150]
    card = (run / "model" / "README.md").read_text()
    best = min(losses, key=losses.__getitem__)
    assert f"| steps | {best} |" in card
    assert f"| nats per sequence, validation | {losses[best]:.6g} |" in card
    assert "Tells `motif`, `none` apart." in card
    assert "Trained on 1,200 sequences" in card
    model = DNAClassifier.from_pretrained(run / "model")
    part = read_task(task).validation
    loss = -np.log(predict(model, part)[np.arange(len(part)), part.labels]).mean()
    assert loss == pytest.approx(losses[best], rel=1e-4)  # the weights of that step, and of no other


def test_a_batch_is_every_sequence_alone_and_both_strands_are_their_mean(learned: tuple[Path, Path]) -> None:
    task = read_task(learned[0])
    torch.manual_seed(0)
    config = ClassifierConfig(encoder=EncoderConfig(titans=presets.debug("mag"), strands="forward"), classes=task.classes)
    model = DNAClassifier(config).double()
    part = task.test.take(np.arange(7))
    alone = [predict(model, part.take(np.array([i])))[0] for i in range(7)]
    np.testing.assert_allclose(predict(model, part), alone, rtol=1e-9)
    codes = [torch.from_numpy(part.sequence(i).astype(np.int64))[None] for i in range(7)]
    with torch.inference_mode():
        expected = [(model(x).softmax(-1) + model(reverse_complement(x)).softmax(-1))[0] / 2 for x in codes]
    np.testing.assert_allclose(predict(model, part, both_strands=True), torch.stack(expected).numpy(), rtol=1e-9)


def test_evaluate_prints_and_writes(learned: tuple[Path, Path], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, folder = learned
    run("evaluate", folder / "model", task, "--json", "-o", tmp_path / "p.csv", "--both-strands")
    said = json.loads(capsys.readouterr().out)
    rows = pl.read_csv(tmp_path / "p.csv")
    part = read_task(task).test
    assert rows.columns == ["row", "label", "predicted", "p_motif", "p_none"]
    assert rows["label"].to_list() == [("motif", "none")[i] for i in part.labels]
    probabilities = rows.select("p_motif", "p_none").to_numpy()
    assert said["scores"]["model"] == pytest.approx(classification_scores(part.labels, probabilities))
    assert (said["part"], said["sequences"], said["repeats"]["exact"]) == ("test", 300, 0)
    run("evaluate", folder / "model", task)
    shown = capsys.readouterr().out
    assert "test part: 300 sequences" in shown
    assert "6-mers, logistic regression" in shown
    assert "Of the train part 0 equal a sequence" in shown


def test_what_was_trained_on_is_warned_of(learned: tuple[Path, Path], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table itself, and single sequences of it, as reverse complements and in soft mask too; not what training has not read."""
    task, folder = learned
    (row,) = pl.read_csv(task / "train.csv").head(1).rows()
    mirrored = (row[0].translate(str.maketrans("ACGT", "TGCA"))[::-1].lower(), row[1])
    write_task(tmp_path, mixed=[mirrored, *planted(9, 77)])
    expected = {task / "train.csv": 1200, task / "dev.csv": 0, task: 0, tmp_path / "mixed.csv": 1}
    for data, count in expected.items():
        run("evaluate", folder / "model", data, "--json")
        said = capsys.readouterr()
        found = json.loads(said.out)
        assert found["trained_on"] == count
        assert (f"warning: {count:,} of these {found['sequences']:,} sequences are among those that" in said.err) == (count > 0)
    run("evaluate", folder / "model", task / "train.csv", "--quiet")
    said = capsys.readouterr().err
    assert "warning: 1,200 of these 1,200 sequences" in said
    assert "--part validation" not in said  # there is none in this table
    run("evaluate", folder / "model", task, "--part", "train", "--quiet")
    assert "held out are scored with --part validation" in capsys.readouterr().err


def test_a_model_that_does_not_know_what_it_was_trained_on_is_scored_without_a_word_of_it(
    learned: tuple[Path, Path], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(learned[1] / "model", tmp_path / "model")
    (tmp_path / "model" / SEEN_NAME).unlink()
    run("evaluate", tmp_path / "model", learned[0] / "train.csv", "--json")
    said = capsys.readouterr()
    assert json.loads(said.out)["trained_on"] is None
    assert "warning" not in said.err
    for damaged in (b"no array", (learned[1] / "model" / SEEN_NAME).read_bytes()[:-5]):
        (tmp_path / "model" / SEEN_NAME).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{SEEN_NAME}: damaged .*Delete it"):
            run("evaluate", tmp_path / "model", tmp_path / "not read yet.csv")


def test_a_table_by_itself_is_scored_without_baselines(learned: tuple[Path, Path], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    task, folder = learned
    run("evaluate", folder / "model", task / "dev.csv")
    shown = capsys.readouterr().out
    assert "train part: 100 sequences" in shown
    assert "Baselines need a part to train on" in shown
    assert "majority" not in shown


def test_a_run_that_ended_goes_on_to_the_same_weights(run: Run, tmp_path: Path) -> None:
    pretrained = tmp_path / "pretrained"
    TitansForDNA(DNAConfig(titans=presets.debug("mag"))).save_pretrained(pretrained)
    table = write_task(tmp_path / "task", train=planted(40, 3)) / "train.csv"
    steps = ("finetune", table, *QUICK[2:], "--start", pretrained, "--max-steps", 8, "--keep-checkpoints", 9, "--model.strands", "forward")
    run(*steps, "-o", tmp_path / "whole")
    run(*steps, "-o", tmp_path / "stopped")
    for step in (6, 8):
        (tmp_path / "stopped" / "checkpoints" / f"step-{step:08d}.ckpt").unlink()
    run(*steps, "-o", tmp_path / "stopped", "--resume")
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    card = (tmp_path / "whole" / "model" / "README.md").read_text()
    assert "Trained on 36 sequences" in card
    assert "and their reverse complements. Embedding and backbone began as" in card
    assert "\n\nValidated on 4 sequences" in card
    assert "Embedding and backbone began as those of `pretrained`." in card
    audit = json.loads((tmp_path / "whole" / "audit.json").read_text())
    assert audit["baselines"]["evaluated_on"] == "validation"


def test_the_audit_is_printed_first(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_task(tmp_path / "task", train=planted(40, 3), test=planted(10, 4))
    run("finetune", table, *QUICK[:-1], "-o", tmp_path / "run", "--max-steps", 2)
    shown = capsys.readouterr().out
    assert shown.index("Sequences of a part that are in another") < shown.index("step 2")
    assert shown.index("Baselines on the test part") < shown.index("step 2")
    assert f"The model is in {tmp_path / 'run' / 'model'}." in shown
    assert shown.index("test part: 10 sequences") > shown.index("step 2")


def table_of(shown: str, title: str) -> list[str]:
    """The lines of a table that is printed, from its title to its lower edge."""
    lines = shown[shown.rindex(title) :].splitlines()
    return lines[: next(i for i, line in enumerate(lines) if line.startswith("└")) + 1]


def test_what_was_held_out_of_a_table_is_scored_at_the_end_and_again(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Model and baselines on the same sequences, as in the audit; by `evaluate --part validation` the same table."""
    rows = planted(40, 3)
    rows += [(text.translate(str.maketrans("ACGT", "TGCA"))[::-1], label) for text, label in rows[:10]]
    table = write_task(tmp_path / "task", train=rows) / "train.csv"
    run("finetune", table, *QUICK[:-1], "-o", tmp_path / "run", "--max-steps", 2)
    shown = capsys.readouterr().out
    audit = json.loads((tmp_path / "run" / "audit.json").read_text())
    last = table_of(shown, "train.csv, validation part")
    names = [line.split("│")[1].strip() for line in last if line.startswith("│")]
    assert names == [*audit["baselines"]["scores"], "model"]
    run("evaluate", tmp_path / "run" / "model", table, "--part", "validation")
    again = capsys.readouterr()
    assert table_of(again.out, "train.csv, validation part") == last
    assert again.err == ""
    run("evaluate", tmp_path / "run" / "model", table, "--quiet")
    said = capsys.readouterr()
    assert "train.csv, train part: 50 sequences" in said.out
    assert "Those that were held out are scored with --part validation." in said.err
    other = write_task(tmp_path / "other", train=planted(10, 9)) / "train.csv"
    with pytest.raises(UserError, match=r"train\.csv: the model was trained on none of its 10 sequences, so no part of them was held out"):
        run("evaluate", tmp_path / "run" / "model", other, "--part", "validation")


def test_the_columns_have_a_help_each(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "finetune"):
        run(command, "--help")
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "Of tables: the column of sequences. Default:" in shown
        assert "Of tables: the column of labels. Default:" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("finetune", "none.csv"), "none.csv: no such file or folder"),
        (("finetune", "two.csv", "--sequence-column", "dna"), "Name the one that holds the sequences: --sequence-column."),
        (("finetune", "one.csv"), "all sequences are of class 'a'; at least two classes are needed"),
        (("finetune", "two.csv", "--validation-share", 1), "--validation-share must be between 0 and 1, got 1.0"),
        (("finetune", "two.csv", "--model.stem-width", 1), "--model.stem-width must be 0, or from 2 to 1024, got 1"),
        (("finetune", "two.csv", "--start", "nothing"), "nothing"),
        (("finetune", "two.csv", "--start", "pretrained", "--model.titans.dim", 24), "dim is 16 there, 24 here"),
        (("finetune", "two.csv", "--annotation", "a.gff3"), "say with --classes which of its kinds"),
        (("finetune", "two.csv", "--classes", "CDS"), "two.csv"),
        (("evaluate", "pretrained", "two.csv"), "pretrained: is a TitansForDNA, which has no head to be scored. Train one"),
        (("evaluate", "classifier", "two.csv"), "has labels that the model does not know: 'a', 'b'. It knows: 0, 1."),
        (("evaluate", "classifier", "numbers.csv", "--part", "test"), "has no test part. Those it has: train."),
        (("evaluate", "classifier", "numbers.csv", "-o", "p.txt"), "--output p.txt: name a file that ends in .csv or .parquet"),
        (("evaluate", "classifier", "damaged.parquet"), "damaged.parquet: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused(
    arguments: tuple[Any, ...], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.csv").write_text("sequence,label\nACGT,a\n")
    Path("two.csv").write_text("sequence,label\n" + "".join(f"{'ACGT' * n},{'ab'[n % 2]}\n" for n in range(1, 30)))
    Path("numbers.csv").write_text("sequence,label\nACGT,0\nAAAA,1\n")
    Path("damaged.parquet").write_bytes(b"PAR1 nothing")
    TitansForDNA(DNAConfig(titans=presets.debug("mag"))).save_pretrained("pretrained")
    DNAClassifier(ClassifierConfig(encoder=EncoderConfig(titans=presets.debug("mag")))).save_pretrained("classifier")
    output = ("-o", "run", *QUICK[2 * ("--start" in arguments) :]) if arguments[0] == "finetune" else ()
    with pytest.raises(UserError) as error:
        run(*arguments, *output)
    assert message in str(error.value)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "CDS", "--pooling", "max"), "--pooling max: is of labelled sequences, but with --classes a genome is read."),
        (
            ("--profile", "v.bedgraph", "--pooling", "mean"),
            "--pooling mean: is of labelled sequences, but with --profile a genome is read.",
        ),
        (("--classes", "CDS", "--no-augment"), "--no-augment: is of labelled sequences"),
        (("--classes", "CDS", "--validation-share", 0.2), "--validation-share 0.2: is of labelled sequences"),
        (("--classes", "CDS", "--label-column", "y"), "--label-column y: is of labelled sequences"),
        (("--classes", "CDS", "--genome", "g.fa"), "--genome g.fa: is of labelled sequences"),
        (("--classes", "CDS", "--bin-width", 8), "--bin-width 8: is of a profile, with --profile."),
        (("--profile-loss", "mse"), "--profile-loss mse: is of a profile"),
        (("--classes", "CDS", "--guard", 9, "--validation-records", "a"), "--guard 9: lies before the last 5 % of records"),
        (("--guard", 9), "--guard 9: is of a genome, with --classes or --profile"),
        (("--validation-records", "a", "b"), "--validation-records a b: is of a genome"),
        (("--segment-length", 64), "--segment-length 64: sequences are read whole"),
        (("--augment",), "--augment: a model of both strands takes a sequence and its reverse complement for one"),
        (("--no-augment", "--model.strands", "both"), "--no-augment: a model of both strands"),
        (("--length-warmup", 5, 5), "--length-warmup 5 5: is of documents that are read on"),
        (("--classes", "CDS", "--document-length", 64), "--document-length 64: is of documents that are read on"),
        (("--no-carry-state",), "--no-carry-state: is of documents that are read on"),
        (("--start", "somewhere", "--preset", "tiny"), "--preset tiny: the size is that of --start somewhere"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(arguments: tuple[Any, ...], message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run("finetune", tmp_path / "data", *arguments, "-o", tmp_path / "run", "--quiet")
    assert message in str(error.value)
    assert "Leave" in str(error.value)
