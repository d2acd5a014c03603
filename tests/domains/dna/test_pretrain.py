"""`titans-seq dna pretrain`, from a FASTA to a model that predicts."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from domains.dna.config import DNAConfig
from domains.dna.model import BEGIN, TitansForDNA
from domains.dna.train import pretrain
from titans_seq import AttentionConfig, MemoryConfig, TitansConfig
from titans_seq.errors import UserError
from titans_seq.training import TrainingConfig, loaders
from titans_seq.training.metrics import read_metrics

BACKBONE = TitansConfig(
    dim=32,
    num_layers=2,
    variant="mag",
    memory=MemoryConfig(num_heads=2, expansion=1, chunk_size=8),
    attention=AttentionConfig(num_heads=2, sliding_window=16),
)
SIZES = ("--preset", "debug", "--batch-size", 2, "--segment-length", 16, "--quiet")
Words = Callable[[int, int], str]
Run = Callable[..., None]


def bits_of_triples(text: str) -> float:
    """Conditional entropy of a base given the two before, of the text itself: no order-2 model can need fewer bits on it."""
    triples, pairs = (Counter(text[i : i + k] for i in range(len(text) - 2)) for k in (3, 2))
    return -sum(n * math.log2(n / pairs[triple[:2]]) for triple, n in triples.items()) / (len(text) - 2)


def test_it_learns_what_order_two_does_not_tell(write: Callable[..., Path], random_words: Words, tmp_path: Path) -> None:
    held_out = random_words(200, 2)
    genome = write(f">training\n{random_words(4000, 1)}\n>held_out\n{held_out}\n")
    config = TrainingConfig(learning_rate=1e-2, max_steps=70, warmup_steps=10, batch_size=8, segment_length=48)
    names = {"validation_records": ["held_out"], "both_strands": False, "progress": False}
    folder = pretrain([genome], tmp_path / "run", DNAConfig(titans=BACKBONE), config, **names)
    (reached,) = (
        float(row["validation_bits_per_base"]) for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["validation_bits_per_base"]
    )
    assert reached < 0.75 * bits_of_triples(held_out)
    assert reached > 0.95 * 3 / 12  # what is random cannot be known
    card = (folder / "README.md").read_text()
    assert "Validated on records that were not trained on: 1 record, 2,400 bases: `held_out` of `g.fa` (2,400)." in card
    assert "Trained on 1 record, 48,000 bases: `training` of `g.fa` (48,000)." in card


def test_it_says_what_it_trains_on(
    write: Callable[..., Path], random_words: Words, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first step, a few records by name; nothing where it is asked to be quiet."""
    genome = write("".join(f">r{n}\n{random_words(20, n)}\n" for n in range(5)))
    arguments = ("pretrain", genome, *SIZES[:-1], "--guard", 0, "--max-steps", 1)
    run(*arguments, "-o", tmp_path / "run")
    trained, validated, model = capsys.readouterr().out.splitlines()[:3]
    named = "r0 of g.fa ({0}), r1 of g.fa ({0}), r2 of g.fa ({0}), and 2 others"
    assert trained == f"Trained on 5 records, 1,140 bases: {named.format(228)}, and their reverse complements."
    assert (
        validated
        == f"Validated on the last 5% of each record, not trained on, nor 0 bases before: 5 records, 60 bases: {named.format(12)}."
    )
    parameters = sum(x.numel() for x in TitansForDNA.from_pretrained(tmp_path / "run" / "model").parameters())
    assert model == f"The model has {parameters:,} parameters; 1 step."
    run(*arguments, "-o", tmp_path / "again", "--quiet")
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "again" / "model")]


def test_it_says_what_is_read_as_n(
    write: Callable[..., Path], random_words: Words, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pretrain", write(f">r\nRRY{random_words(20, 0)}\n"), *SIZES[:-1], "--guard", 0, "--max-steps", 1, "-o", tmp_path / "run")
    said = "3 letters for several bases (such as R and Y) are read as N."
    assert capsys.readouterr().out.splitlines()[2] == said
    assert said in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_run_that_ended_goes_on_to_the_same_weights(write: Callable[..., Path], random_words: Words, tmp_path: Path, run: Run) -> None:
    genome = write(f">one\n{random_words(30, 1)}\n>two\n{random_words(20, 2).lower()}NNN\n", "g.fa.gz")
    steps = ("pretrain", genome, *SIZES, "--guard", 7, "--length-warmup", 2, 3, "--checkpoint-every", 3, "--keep-checkpoints", 9)
    run(*steps, "-o", tmp_path / "whole", "--max-steps", 9)
    run(*steps, "-o", tmp_path / "stopped", "--max-steps", 9)
    checkpoints = tmp_path / "stopped" / "checkpoints"
    for step in (6, 9):
        (checkpoints / f"step-{step:08d}.ckpt").unlink()
    run(*steps, "-o", tmp_path / "stopped", "--max-steps", 9, "--resume")
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("stopped", "whole"))
    assert first.keys() == second.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    card = (tmp_path / "whole" / "model" / "README.md").read_text()
    assert "Trained on 2 records, 559 bases: `one` of `g.fa.gz` (335), `two` of `g.fa.gz` (224), and their reverse complements." in card
    assert "Validated on the last 5% of each record, not trained on, nor 7 bases before: 2 records, 30 bases" in card
    assert TitansForDNA.from_pretrained(tmp_path / "whole" / "model").config.soft_mask_weight == 1


def test_a_trained_model_is_trained_further(write: Callable[..., Path], random_words: Words, tmp_path: Path, run: Run) -> None:
    genome, folder = write(f">one\n{random_words(30, 1)}\n"), tmp_path / "trained"
    trained = TitansForDNA(DNAConfig(titans=BACKBONE, soft_mask_weight=0.5))
    torch.nn.init.normal_(trained.embedding.weight, std=0.5)
    trained.save_pretrained(folder)
    still = ("--max-steps", 1, "--learning-rate", "1e-9", "--warmup-steps", 0)
    run("pretrain", genome, *SIZES[2:], "--guard", 0, "--start", folder, *still, "-o", tmp_path / "run")
    model = TitansForDNA.from_pretrained(tmp_path / "run" / "model")
    assert model.config == trained.config
    for name, x in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], x, rtol=0, atol=1e-7)
    assert f"Its weights began as those of `{folder}`." in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.fa",), "none.fa: no such file"),
        (("g.fa", "--start", "none"), "none: no such folder"),
        (("g.fa", "--start", "none", "--preset", "tiny"), "--preset tiny: the size is that of --start none"),
        (("g.fa",), "Take a smaller guard (--guard), longer records"),
        (("g.fa", "--validation-records", "chr1"), "has no record 'chr1'. Of its 1 records, close are: one"),
        (("g.fa", "--validation-records", "one"), "every record is held out for validation"),
        (("g.fa", "--model.soft-mask-weight", "2"), "--model.soft-mask-weight must be in [0, 1], got 2.0"),
        (("g.fa", "--validation-records", "one", "--guard", 5), "--guard 5: lies before the last 5 % of records, but --validation-records"),
        (("g.fa", "--max-steps", 0), "--max-steps must be at least 1, got 0"),
        (("g.fa", "--segment-length", 6, "--length-warmup", 5, 5), "fewer stages: segment_length=6 is no multiple of 4, got (5, 5)"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    arguments: tuple[Any, ...], message: str, write: Callable[..., Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(">one\nACGTACGTACGT\n").parent)
    with pytest.raises(UserError) as error:
        run("pretrain", *arguments, "-o", "run")
    assert message in str(error.value)
    assert not Path("run").exists()


def test_a_genome_of_nothing_but_n_is_refused(tmp_path: Path) -> None:
    """Nothing is counted in the loss there: it would be 0, the best there is."""
    for name, sequence, does in (("all.fa", "N" * 3000, "train on"), ("end.fa", "ACGT" * 700 + "N" * 200, "validate on")):
        path = tmp_path / name
        path.write_text(f">one\n{sequence}\n")
        with pytest.raises(UserError, match=rf"{name}: every base to {does} is N"):
            pretrain([path], tmp_path / "run", guard=0, progress=False)


def test_the_folder_of_a_run_is_no_model_but_names_it(tmp_path: Path) -> None:
    TitansForDNA(DNAConfig(titans=BACKBONE)).save_pretrained(tmp_path / "run/model")
    with pytest.raises(UserError, match=r"run: is the folder of a run; its model is .*run/model\."):
        TitansForDNA.from_pretrained(tmp_path / "run")


def test_pieces_begin_with_the_begin_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = loaders.document_loaders
    monkeypatch.setattr(loaders, "document_loaders", lambda *given, **named: made.append(make(*given, **named)) or made[-1])
    (tmp_path / "g.fa").write_text(f">one\n{'ACGT' * 100}\n")
    config = TrainingConfig(max_steps=2, batch_size=2, segment_length=8, document_length=8)
    pretrain([tmp_path / "g.fa"], tmp_path / "run", DNAConfig(titans=BACKBONE), config, guard=0, progress=False)
    training, validation = made[0]
    for batch in (*islice(training(0, 1), 3), *validation(0, 1)):
        assert (batch["tokens"][batch["reset"]] == BEGIN).all()
        assert batch["reset"].any()
