"""`--start`: trainings that begin with a trained model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from domains.dna.config import of_preset
from domains.dna.model import TitansForDNA
from domains.text.model import TitansForCausalLM
from domains.text.presets import debug
from titans_seq import UserError, cli

SIZES = ("--batch-size", "2", "--max-steps", "1", "--quiet")
STILL = ("--learning-rate", "1e-9", "--warmup-steps", "0")


def command(*arguments: object) -> None:
    """`titans-seq text`, in this process."""
    cli.build_app()(["text", *map(str, arguments)])


def read(model: Path) -> TitansForCausalLM:
    return TitansForCausalLM.from_pretrained(model)


def assert_same_weights(model: TitansForCausalLM, other: TitansForCausalLM) -> None:
    for name, x in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], x, rtol=0, atol=1e-7)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with texts, a tokeniser, and models that are unlike new ones: of bytes, of DNA."""
    monkeypatch.chdir(tmp_path)
    Path("ships.txt").write_text("the ship went over the sea with the wind. " * 20)
    command("tokenizer", "ships.txt", "-o", "bpe.json", "--vocab-size", 280, "--quiet")
    model = TitansForCausalLM(debug())
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    model.save_pretrained("bytes")
    TitansForCausalLM(replace(debug(), vocabulary=17, end=0, tokenizer="symbols")).save_pretrained("symbols")
    TitansForDNA(of_preset("debug")).save_pretrained("dna")
    return tmp_path


def test_a_training_goes_on_with_weights_tokeniser_and_settings(folder: Path) -> None:
    sizes = (*SIZES, "--segment-length", "16")
    flags = ("--model.titans.variant", "lmm", "--model.z-loss", "0.01")
    command("train", "ships.txt", "-o", "first", "--tokenizer", "bpe.json", "--preset", "debug", *flags, *sizes)
    first = read(folder / "first" / "model")
    command("train", "ships.txt", "-o", "second", "--start", "first/model", "--model.z-loss", "0.02", *STILL, *sizes)
    second = read(folder / "second" / "model")
    assert_same_weights(second, first)
    assert second.tokenizer.identity == first.tokenizer.identity
    assert (second.config.z_loss, second.config.titans) == (0.02, first.config.titans)
    assert "Its weights began as those of `first/model`." in (folder / "second" / "model" / "README.md").read_text()
    assert "began as" not in (folder / "first" / "model" / "README.md").read_text()


def test_a_run_is_resumed_with_the_weights_that_it_began_with(folder: Path) -> None:
    """Wherever they lie; a model that is not the one is refused, and so is none."""
    run = ("train", "ships.txt", "-o", "run", "--batch-size", "2", "--segment-length", "16", "--quiet")
    command(*run, "--start", "bytes", "--max-steps", "1")
    other = TitansForCausalLM(debug())
    other.save_pretrained("other")
    resumed = (*run, "--max-steps", "3", "--resume")
    for start in (("--start", "other"), ("--preset", "debug")):
        with pytest.raises(UserError, match=r"of a run with other settings: --start was 'weights [0-9a-f]{16}', is "):
            command(*resumed, *start)
    Path("bytes").rename("moved")
    command(*resumed, "--start", "moved")
    assert "Its weights began as those of `moved`." in (folder / "run" / "model" / "README.md").read_text()


def test_a_task_goes_on_with_its_settings_at_another_length(folder: Path) -> None:
    sizes = (*SIZES, "--preset", "debug")
    command("task", "train", "mqar", "-o", "short", "-s", "symbols=64", "-s", "length=32", "-s", "pairs=4", *sizes)
    command("task", "train", "mqar", "-o", "long", "--start", "short/model", "-s", "length=64", *STILL, *SIZES)
    assert_same_weights(read(folder / "long" / "model"), read(folder / "short" / "model"))
    settings = json.loads((folder / "long" / "model" / "task.json").read_text())["settings"]
    assert (settings["symbols"], settings["length"], settings["pairs"]) == (64, 64, 4)
    assert "Its weights began as those of `short/model`." in (folder / "long" / "model" / "README.md").read_text()


def test_a_language_model_is_trained_on_a_task_of_text(folder: Path) -> None:
    command("task", "train", "facts", "-o", "run", "--start", "bytes", "-s", "length=200", *STILL, *SIZES)
    assert_same_weights(read(folder / "run" / "model"), read(folder / "bytes"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "ships.txt", "--start", "none"), "none: no such folder"),
        (("train", "ships.txt", "--start", "dna"), "dna: is a titans_dna, not a language model. Name one that `text train`"),
        (("train", "ships.txt", "--start", "bytes", "--preset", "tiny"), "--preset tiny: the size is that of --start bytes"),
        (("train", "ships.txt", "--start", "bytes", "--tokenizer", "bpe.json"), "bytes: its tokeniser is bytes of 257 tokens, that of the"),
        (
            ("train", "ships.txt", "--start", "bytes", "--model.titans.num-layers", "1"),
            "bytes: its weights do not fit: titans.num_layers is 2 there, 1 here. Leave the sizes as they are there.",
        ),
        (("task", "train", "mqar", "--start", "bytes"), "bytes: its tokeniser is bytes of 257 tokens, that of the training symbols of"),
        (("task", "train", "mqar", "--start", "symbols", "-s", "symbols=64"), "symbols: has 17 tokens, the task 65. It can be trained"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(arguments: tuple[Any, ...], message: str, folder: Path) -> None:
    with pytest.raises(UserError) as error:
        command(*arguments, "-o", "run", "--segment-length", "16", *SIZES)
    assert message in str(error.value)
    assert not Path("run").exists()
