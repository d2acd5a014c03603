"""`titans-seq text` tokenizer, score, read and generate, on small files."""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from domains.text.data import read_texts, sources
from domains.text.model import TitansForCausalLM
from domains.text.presets import debug
from domains.text.tokenizers import ByteTokenizer
from tests.domains.text.conftest import word_level
from tests.limits import HANG
from titans_seq import UserError, cli
from titans_seq.training.metrics import read_metrics

SIZES = ("--preset", "debug", "--batch-size", "2", "--segment-length", "16")


def command(*arguments: object) -> None:
    """`titans-seq text`, in this process."""
    cli.build_app()(["text", *map(str, arguments)])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a file to train on, one to score, and an untrained model whose texts differ."""
    (tmp_path / "ships.txt").write_text("the ship went over the sea with the wind. " * 20)
    (tmp_path / "land.txt").write_text("the land was dry, and the wind was from the sea. " * 3)
    (tmp_path / "empty.txt").touch()
    model = TitansForCausalLM(debug())
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    model.save_pretrained(tmp_path / "model")
    return tmp_path


def test_a_tokenizer_is_learned_trained_with_and_scores_bytes(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From files to a model of BPE that carries its tokeniser; its bits per byte are those of its tokens, counted by hand."""
    command("tokenizer", texts / "ships.txt", "-o", texts / "bpe" / "t.json", "--vocab-size", 280, "--quiet")
    sizes = (*SIZES, "--max-steps", 3, "--tokenizer", texts / "bpe" / "t.json", "--model.titans.variant", "lmm")
    command("train", texts / "ships.txt", "-o", texts / "run", "--validation", texts / "land.txt", *sizes, "--quiet")
    model = TitansForCausalLM.from_pretrained(texts / "run" / "model")
    assert 257 < model.config.vocabulary <= 280
    assert "validation_bits_per_token" in read_metrics(texts / "run" / "metrics.csv")[-1]
    capsys.readouterr()
    command("score", texts / "run" / "model", texts / "land.txt", "--json", "--segment-length", 7, "-o", texts / "scores")
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    (ids,) = model.tokenizer.encode_batch([(texts / "land.txt").read_text()])
    tokens = torch.tensor([[model.config.end, *ids.tolist(), model.config.end]])
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0][0], tokens[0, 1:], reduction="sum").item()
    assert found["bytes"] == 147
    assert found["tokens"] == len(ids) < 147
    assert found["perplexity"] == pytest.approx(math.exp(nats / len(ids)), rel=1e-3)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 147, rel=1e-4)
    assert sorted(path.name for path in (texts / "scores").iterdir()) == ["files.csv", "positions.csv", "positions.png"]
    assert (texts / "scores" / "positions.csv").read_text().startswith("start,stop,tokens,bits_per_token\n0,64,64,")
    assert "# Titans language model on tokens" in (texts / "run" / "model" / "README.md").read_text()


def test_documents_from_lines_are_held_out_whole(texts: Path) -> None:
    lines = [json.dumps({"body": f"the ship number {n:02} went over the sea"}) for n in range(40)]
    (texts / "ships.jsonl").write_text("\n".join(lines))
    sizes = (*SIZES, "--max-steps", 2, "--quiet")
    command("train", texts / "ships.jsonl", "-o", texts / "run", *sizes, "--field", "body", "--cache", texts / "cache")
    card = (texts / "run" / "model" / "README.md").read_text()
    assert "Trained on 38 documents" in card
    assert "Validated on documents with 5% of the text, not trained on: 2 documents" in card
    assert list((texts / "cache").glob("*.tokens"))
    assert not (texts / ".titans_seq").exists()


def test_a_text_is_read_once_and_asked_twice(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In another process; the same as with the text before the prompt, and a state that was kept goes on."""
    state = texts / "kept" / "ships.safetensors"
    arguments = ["text", "read", str(texts / "model"), str(texts / "ships.txt"), "--state", str(state)]
    done = subprocess.run([sys.executable, "-m", "titans_seq.cli", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "840 tokens read" in done.stdout
    options = ("--max-tokens", 12, "--temperature", 0, "--json")
    command("generate", texts / "model", "--state", state, "-p", "and ", "-p", "- or ", *options)
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["prompt"] for one in made} == {"and ", "- or "}
    text = (texts / "ships.txt").read_text()
    command("generate", texts / "model", "-p", f"{text}and ", "-p", f"{text}- or ", *options)
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(one["text"] for one in made) == sorted(one["text"] for one in whole)

    command("generate", texts / "model", "--state", state, "-p", "and ", *options, "--keep", texts / "after.safetensors")
    command("generate", texts / "model", "--state", texts / "after.safetensors", "-p", "", *options)
    parts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    command("generate", texts / "model", "--state", state, "-p", "and ", *options[2:], "--max-tokens", 24)
    longer = json.loads(capsys.readouterr().out)
    assert [one["tokens"] for one in (*parts, longer)] == [12, 12, 24]
    assert longer["text"].startswith(parts[0]["text"].rstrip("\ufffd"))


def test_ways_to_generate(texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stream from standard input, with a draft the same text, with beams; and options from a file."""
    TitansForCausalLM(debug("lmm")).save_pretrained(texts / "draft")
    (texts / "run.toml").write_text("temperature = 0\nmax-tokens = 15\nstop = ['zzz']\n")
    options = ("--config", texts / "run.toml")
    monkeypatch.setattr(sys, "stdin", typed := io.TextIOWrapper(io.BytesIO(b"It was")))
    command("generate", texts / "model", *options)
    alone, told = capsys.readouterr()
    assert alone.strip()
    assert "The prompt" not in told
    typed.seek(0)
    monkeypatch.setattr(typed, "isatty", lambda: True)
    command("generate", texts / "model", *options)
    again, told = capsys.readouterr()
    assert again == alone
    assert told.startswith("The prompt (its end: Ctrl-D")
    command("generate", texts / "model", "--prompt", "It was", *options, "--draft", texts / "draft")
    assert capsys.readouterr().out == alone
    command("generate", texts / "model", "-p", "It was", *options, "--beams", 2, "--json")
    assert len(capsys.readouterr().out.splitlines()) == 2
    command("generate", texts / "model", "-p", "It was", *options, "--beams", 1, "--stop", alone[2])
    assert capsys.readouterr().out == f"It was{alone[:2].partition(alone[2])[0]}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of POSIX")
def test_one_end_ends_a_prompt_at_a_terminal(texts: Path) -> None:
    """Ctrl-D once, where a line begins."""
    import pty

    master, terminal = pty.openpty()
    line = (sys.executable, "-m", "titans_seq.cli", "text", "generate", texts / "model", "--max-tokens", "3", "--json")
    with subprocess.Popen(list(map(str, line)), stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"The prompt (its end: Ctrl-D")
        os.write(master, b"It was\n\x04")
        out, _ = process.communicate(timeout=HANG)
    assert json.loads(out)["prompt"] == "It was\n"


def test_standard_input_may_be_of_text_alone(texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("It was"))
    command("generate", texts / "model", "--max-tokens", 3, "--json")
    assert json.loads(capsys.readouterr().out)["prompt"] == "It was"


@pytest.mark.parametrize(
    ("standard_input", "message"),
    [
        (io.TextIOWrapper(io.BytesIO(b"a\xffb")), "^standard input: not UTF-8 at byte 1 "),
        (None, "^there is no standard input. Give a text to go on with: --prompt.$"),
    ],
)
def test_standard_input_must_be_text(
    standard_input: io.TextIOWrapper | None, message: str, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", standard_input)
    with pytest.raises(UserError, match=message):
        command("generate", texts / "model")


def test_reading_goes_on_after_an_earlier_text(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two texts, one after the other, leave the state of both read at once as one."""
    (texts / "both.txt").write_text((texts / "ships.txt").read_text() + (texts / "land.txt").read_text())
    command("read", texts / "model", texts / "ships.txt", "--state", texts / "ships")
    command("read", texts / "model", texts / "land.txt", "--state", texts / "parts", "--after", texts / "ships")
    command("read", texts / "model", texts / "both.txt", "--state", texts / "whole")
    assert [line.split(": ")[1].split(" tokens")[0] for line in capsys.readouterr().out.splitlines()] == ["840", "987", "987"]
    parts, whole = (load_file(texts / name) for name in ("parts", "whole"))
    assert parts.keys() == whole.keys()
    for name, x in whole.items():
        torch.testing.assert_close(parts[name], x)
    TitansForCausalLM(debug("lmm")).save_pretrained(texts / "other")
    with pytest.raises(UserError, match="another model"):
        command("read", texts / "other", texts / "land.txt", "--state", texts / "x", "--after", texts / "ships")


def test_a_file_that_is_written_while_it_is_read_is_refused(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is kept of it."""
    once = sources.seam

    def seam(text: str, limit: int) -> int:
        with (texts / "ships.txt").open("a") as file:
            file.write("more")
        return once(text, limit)

    monkeypatch.setattr(sources, "BLOCK", 200)
    monkeypatch.setattr(sources, "seam", seam)
    needles = ("task", "make", "babilong_qa1", "--books", texts / "ships.txt")
    for arguments in (
        ("read", texts / "model", texts / "ships.txt", "--state", texts / "x"),
        ("tokenizer", texts / "ships.txt", "-o", texts / "x", "--quiet"),
        (*needles, "-o", texts / "x"),
    ):
        with pytest.raises(UserError, match=r"ships\.txt: has changed while it was read\. Read it when it is written, or a copy of it\."):
            command(*arguments)
        assert not (texts / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "model", "-p", "a", "-p", "b", "--draft", "model"), "--draft goes with one prompt"),
        (("generate", "model", "-p", "a", "--keep", "none/x.safetensors"), "there is no folder none"),
        (("generate", "model", "-p", "a", "-p", "b", "--keep", "x"), "--keep goes with one prompt"),
        (("generate", "model", "-p", "a", "--state", "none"), "none: no such file"),
        (("generate", "model", "-p", "a", "--state", "model"), "model: is a folder. Name the file in it."),
        (("score", "model", os.devnull), f"{os.devnull}: is neither a file nor a folder, but a pipe or a device"),
        (("generate", "model", "-p", "a\udcff"), r"--prompt 'a\udcff': is not UTF-8. Give the text in UTF-8."),
        (("generate", "model", "-p", "a", "--stop", "\udcff"), "--stop must be texts in UTF-8, got "),
        (("generate", "model", "-p", "a", "--beams", 2, "--top-p", 0.9), "--top-p 0.9: says how tokens are drawn, and --beams draws none."),
        (
            ("generate", "model", "-p", "a", "--beams", 2, "--repetition-penalty", 1.5),
            "--repetition-penalty 1.5: says how tokens are drawn",
        ),
        (("generate", "model", "-p", "a", "--beams", 2, "--temperature", 0.5), "--temperature 0.5: says how tokens are drawn"),
        (("generate", "model", "-p", "a", "--beams", 2, "--seed", 3), "--seed 3: says how tokens are drawn"),
        (("generate", "model", "-p", "a", "--proposals", 3), "--proposals 3: is of --draft, which was not given."),
        (("read", "model", "empty.txt", "--state", "x"), "empty.txt: is empty. Name files that hold text."),
        (("read", "model", "empty.txt", "empty.txt", "--state", "x"), "empty.txt: is empty, and so are 1 others."),
        (("tokenizer", "empty.txt", "-o", "t.json"), "empty.txt: is empty. Name files that hold text."),
        (("task", "make", "babilong_qa1", "--books", "empty.txt", "-o", "t.json"), "empty.txt: is empty. Name files that hold text."),
        (("task", "make", "babilong_qa1", "-s", "instruction=\udcff", "-o", "t.json"), "must be NAME=VALUE, in UTF-8."),
        (("generate", "model", "-p", "a", "--top-p", 2), "--top-p must be in (0, 1] or None, got 2"),
        (("tokenizer", "none.txt", "-o", "t.json"), "none.txt: no such file or folder"),
        (("tokenizer", "ships.txt", "-o", "."), ".: is a folder. Name a file, such as tokenizer.json."),
        (("read", "none", "ships.txt", "--state", "model"), "--state model: is a folder. Name a file, such as model/state.safetensors."),
        (("generate", "none", "-p", "a", "--keep", "model"), "--keep model: is a folder. Name a file, such as model/state.safetensors."),
        (("read", "none", "ships.txt", "--state", "ships.txt"), "--state ships.txt: is a file that is read, and would be written over."),
        (("read", "model", "ships.txt", "--state", "model/model.safetensors"), "--state model/model.safetensors: is a file that is read"),
        (("generate", "model", "-p", "a", "--keep", "model/model.safetensors"), "--keep model/model.safetensors: is a file that is read"),
        (("tokenizer", ".", "-o", "land.txt"), "--output land.txt: is a file that is read, and would be written over."),
        (("task", "make", "babilong_qa1", "--books", ".", "-o", "land.txt"), "--output land.txt: is a file that is read"),
        (
            ("task", "make", "niah_single_1", "--books", ".", "-o", "t.json"),
            "--books .: niah_single_1 hides nothing in books. Leave it out.",
        ),
        (("task", "make", "facts", "--books", ".", "-o", "t.json"), "--books .: facts hides nothing in books."),
        (("task", "make", "facts", "--tokenizer", "model/config.json", "-o", "model/config.json"), "config.json: "),
        (("task", "make", "mqar", "-s", "length=10000000000000000", "-o", "t.json"), "--set: an example does not fit into memory."),
        (("train", "ships.txt", "-o", "run", "--tokenizer", "none.json"), "none.json: cannot be read as a tokeniser"),
        (("read", "none", "ships.txt", "--state", "x"), "none"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: tuple[Any, ...], message: str, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts)
    with pytest.raises(UserError) as error:
        command(*arguments)
    assert message in str(error.value)
    assert not Path("t.json").exists()
    assert not Path("x").exists()


def test_losses_of_a_tokeniser_are_told(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that knows two words of all; one that knows none of a text makes nothing to train on."""
    (texts / "words.json").write_text(word_level("the", "ship"))
    (texts / "none.json").write_text(Tokenizer(models.BPE()).to_str())
    command("train", texts / "ships.txt", "-o", texts / "run", *SIZES, "--max-steps", 1, "--tokenizer", texts / "words.json", "--quiet")
    assert "warning: " in (said := capsys.readouterr().err)
    assert "words.json: its tokens do not give every text back as it was" in said
    command("score", texts / "run" / "model", texts / "land.txt", "--json", "--quiet")
    assert "model: its tokens do not give every text back" in capsys.readouterr().err
    command("score", texts / "model", texts / "land.txt", "--json", "--quiet")
    assert capsys.readouterr().err == ""
    (texts / "sure.json").write_text(word_level("the", "ship").replace('"unk_token":"the"', '"unk_token":"none"'))
    with pytest.raises(UserError, match=r"the tokeniser has no tokens for a text \(WordLevel error: Missing \[UNK\] token"):
        command("train", texts / "ships.txt", "-o", texts / "other", *SIZES, "--tokenizer", texts / "sure.json", "--quiet")
    (texts / "known.txt").write_text("the ship the ship " * 50)
    command("train", texts / "known.txt", "-o", texts / "known", *SIZES, "--max-steps", 1, "--tokenizer", texts / "sure.json", "--quiet")
    with pytest.raises(UserError, match=r"ships\.txt: the tokeniser makes no token of the text"):
        command("train", texts / "ships.txt", "-o", texts / "other", *SIZES, "--tokenizer", texts / "none.json", "--quiet")


def test_scores_are_not_written_over_what_is_scored(texts: Path) -> None:
    (texts / "files.csv").write_text("a table, read as text")
    with pytest.raises(UserError, match=r"--output \S+: \S+files\.csv is read, and would be written over\. Name another folder\."):
        command("score", texts / "model", texts / "files.csv", "-o", texts)
    assert (texts / "files.csv").read_text() == "a table, read as text"


def test_a_folder_that_was_read_is_scored_from_its_cache(texts: Path) -> None:
    cache = texts / "cache"
    read_texts([texts], ByteTokenizer(), cache=cache, progress=False)
    before = sorted(cache.iterdir())
    command("score", texts / "model", texts, "-o", texts / "scores", "--cache", cache, "--quiet")
    assert sorted(cache.iterdir()) == before


def test_what_was_read_with_another_forgetting_is_gone_on_from_with_it(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, scaled = texts / "state.safetensors", ("--scale-forgetting", "100")
    command("read", texts / "model", texts / "ships.txt", "--state", state, *scaled, "--quiet")
    options = ("--state", state, "-p", "and ", "--temperature", 0, "--max-tokens", 12, "--json")
    command("generate", texts / "model", *options, *scaled)
    assert json.loads(capsys.readouterr().out)["tokens"] == 12
    with pytest.raises(UserError, match="is a state of another model"):
        command("generate", texts / "model", *options)


def test_the_help_shows_what_a_user_sets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for command_name, shown in (("train", "--tokenizer"), ("generate", "--min-p"), ("read", "--state"), ("score", "--output")):
        with contextlib.suppress(SystemExit):
            command(command_name, "--help")
        text = capsys.readouterr().out
        assert shown in text
        assert "--model.vocabulary" not in text
