"""`titans-seq text` as a user runs it: real processes on real files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from domains.text.model import TitansForCausalLM
from domains.text.presets import debug
from tests.limits import HANG
from titans_seq import UserError, cli, presets
from titans_seq.training.checkpoints import checkpoints_of, step_of
from titans_seq.training.metrics import read_metrics

COMMAND = [str(Path(sys.executable).parent / "titans-seq"), "text"]
ENVIRONMENT = os.environ | {"COLUMNS": "160"}
SIZES = ("--preset", "debug", "--batch-size", "2", "--segment-length", "16")


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a file to train on, and one to validate on."""
    (tmp_path / "ships.txt").write_text("the ship went over the sea with the wind. " * 20)
    (tmp_path / "land.txt").write_text("the land was dry, and the wind was from the sea. " * 3)
    return tmp_path


def test_from_files_to_a_scored_model_with_a_card(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Preset, file and flags in that order; the score of the validation file is the run's last validation; the card tells all of it."""
    (texts / "run.toml").write_text("max-steps = 50\nlog-every = 2\nlearning-rate = 0.02\n[model.titans]\nvariant = 'lmm'\n")
    done = run("train", "ships.txt", "-o", "run", "--validation", "land.txt", *SIZES, "--config", "run.toml", "--max-steps", 5, cwd=texts)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "The model is in run/model."
    parameters = sum(x.numel() for x in TitansForCausalLM.from_pretrained(texts / "run" / "model").parameters())
    assert done.stdout.splitlines()[:3] == [
        "Trained on 1 document, 840 bytes: ships.txt (840).",
        "Validated on 1 document, 147 bytes: land.txt (147).",
        f"The model has {parameters:,} parameters; 5 steps.",
    ]
    settings = json.loads((texts / "run" / "config.json").read_text())
    assert settings["model"] == debug("lmm").to_dict()
    assert {name: settings["training"][name] for name in ("max_steps", "batch_size", "log_every", "learning_rate", "strategy")} == {
        "max_steps": 5,
        "batch_size": 2,
        "log_every": 2,
        "learning_rate": 0.02,
        "strategy": "auto",
    }

    files = [str(texts / name) for name in ("ships.txt", "land.txt")]
    cli.build_app()(["text", "score", str(texts / "run" / "model"), *files, "--segment-length", "50", "--json"])
    ships, land = map(json.loads, capsys.readouterr().out.splitlines())
    assert (ships["file"], ships["bytes"], land["file"], land["bytes"]) == (files[0], 840, files[1], 147)
    reached = float(read_metrics(texts / "run" / "metrics.csv")[-1]["validation_bits_per_byte"])
    assert land["bits_per_byte"] == pytest.approx(reached, rel=1e-4)

    card = (texts / "run" / "model" / "README.md").read_text()
    typed = "titans-seq text train ships.txt -o run --validation land.txt --preset debug --batch-size 2 --segment-length 16"
    for part in (
        "Trained on 1 document, 840 bytes: `ships.txt` (840).",
        "Validated on 1 document, 147 bytes: `land.txt` (147).",
        f"| bits per byte, validation | {reached:.6g} |",
        "| steps | 5 |",
        "| tokens read | 160 |",
        f"```\n{typed} --config run.toml --max-steps 5\n```",
        f"python {sys.version.split()[0]}",
    ):
        assert part in card, card


def test_interrupted_refused_and_resumed(texts: Path) -> None:
    """While a run goes on its folder is refused to others; Ctrl-C ends it quietly, and it goes on to the model of a run that was not."""
    whole = (texts / "ships.txt", *SIZES, "--max-steps", 60, "--checkpoint-every", 5, "--learning-rate", 0.01, "--log-every", 1)
    arguments = list(map(str, (*COMMAND, "train", *whole, "-o", texts / "stopped")))
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not checkpoints_of(texts / "stopped" / "checkpoints"):
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)  # or it would be done before the other has begun
    try:
        with pytest.raises(UserError, match="stopped: another process is training in it"):
            train(*whole, "-o", texts / "stopped", "--resume")
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        errors = process.communicate(timeout=HANG)[1]
    assert process.returncode == 130
    assert not (texts / "stopped" / "model").exists()
    reached = step_of(checkpoints_of(texts / "stopped" / "checkpoints")[-1])
    assert errors.splitlines() == [
        "Ending after this step, with a checkpoint. Ctrl-C again ends at once.",
        f"Stopped at step {reached}. The same command with --resume goes on from step {reached}.",
    ]
    train(*whole, "-o", texts / "stopped", "--resume")
    train(*whole, "-o", texts / "whole")
    first, second = (load_file(texts / name / "model" / "model.safetensors") for name in ("stopped", "whole"))
    assert first.keys() == second.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    rows = [[row[name] for name in ("step", "train_bits_per_byte")] for row in read_metrics(texts / "stopped" / "metrics.csv")]
    assert rows == [[row[name] for name in ("step", "train_bits_per_byte")] for row in read_metrics(texts / "whole" / "metrics.csv")]
    cards = [(texts / name / "model" / "README.md").read_text() for name in ("stopped", "whole")]
    table = [card[card.index("## Data") : card.index("## Training command")] for card in cards]
    assert table[0] == table[1]


def test_a_second_ctrl_c_does_not_wait_for_the_step(texts: Path) -> None:
    """The first asks for a checkpoint after the step, which here takes seconds; the second ends the run without one."""
    (texts / "long.txt").write_text("the ship went over the sea with the wind. " * 4000)
    sizes = ("--preset", "debug", "--batch-size", "32", "--segment-length", "4096", "--log-every", "1", "--checkpoint-every", "1000")
    arguments = list(map(str, (*COMMAND, "train", texts / "long.txt", *sizes, "-o", texts / "run")))
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not ((texts / "run" / "metrics.csv").exists() and read_metrics(texts / "run" / "metrics.csv")):
        time.sleep(0.02)
    time.sleep(0.5)  # from the end of one step, which is where it would end, into the next
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "Ctrl-C again ends at once" not in (said := process.stderr.readline()):
        assert said, "it ended without a word"
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=HANG)[1]
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "starts anew: there is no checkpoint yet" in errors
    assert not checkpoints_of(texts / "run" / "checkpoints")


def train(*arguments: object) -> None:
    """In this process."""
    cli.build_app()(["text", "train", *map(str, arguments), "--quiet"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.txt",), "none.txt: no such file or folder. Check the path; it is looked up from "),
        (("ships.txt", "--validation", "none.txt"), "none.txt: no such file or folder."),
        (("ships.txt", "--max-steps", 0), "--max-steps must be at least 1, got 0"),
        (("ships.txt", "--devices", 3), "--batch-size must be a multiple of devices times nodes, 3, got 8"),
        (("ships.txt", "--model.titans.dim", 9), "dim=9 must be a multiple of MemoryConfig.num_heads=4"),
        (("ships.txt", "-o", "ships.txt"), "ships.txt: is a file; a run needs a folder. Name another with --output."),
        (("ships.txt", "-o", "ships.txt/run"), "ships.txt/run: cannot be written into (Not a directory). Name another folder."),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments: tuple[Any, ...], message: str, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts)
    with pytest.raises(UserError) as error:
        train(*(arguments if "-o" in arguments else (*arguments, "-o", "run")))
    assert message in str(error.value)
    assert not (texts / "run").exists()


def test_other_processes_than_the_settings_name_are_refused(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun each would otherwise train alone, in one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started, but devices=1 times nodes=1 is 1"):
        train(texts / "ships.txt", "-o", texts / "run")


def test_score_refuses_what_is_no_language_model(texts: Path) -> None:
    from titans_seq import Titans

    Titans(presets.debug()).save_pretrained(texts / "backbone")
    for model, message in ((texts / "backbone", "TitansForCausalLM needs 'titans_text'"), (texts / "none", "none")):
        with pytest.raises(UserError, match=message):
            cli.build_app()(["text", "score", str(model), str(texts / "ships.txt")])


def test_scores_of_several_files_end_with_all_of_them(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TitansForCausalLM(debug()).save_pretrained(texts / "model")
    cli.build_app()(["text", "score", str(texts / "model"), str(texts / "ships.txt"), str(texts / "land.txt")])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "bits per byte"
    assert [part.strip() for part in head.split("  ") if part.strip()] == [
        "bits per byte",
        "bytes",
        "perplexity per token",
        "tokens",
        "file",
    ]
    rows = [line.split() for line in lines]
    assert [row[1] for row in rows] == [row[3] for row in rows] == ["840", "147", "987"]
    for row in rows:
        assert float(row[2]) == pytest.approx(2 ** float(row[0]), rel=1e-3)  # of bytes
    one, other, both = (float(row[0]) for row in rows)
    assert both == pytest.approx((840 * one + 147 * other) / 987, abs=1e-4)
    assert 7.5 < both < 8.5  # untrained
