"""Files of a run: what is damaged, foreign or of another run is refused by name; nothing is unpickled."""

import json
import os
import pickle
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from domains.text.model import TextConfig, TitansForCausalLM
from domains.text.train import train
from tests.titans_seq.training.small import SMALL, TINY, command, results, start
from titans_seq import UserError
from titans_seq.training.checkpoints import WholeFileCheckpointIO, checkpoints_of, newest_checkpoint, read_checkpoint
from titans_seq.training.metrics import read_metrics

MODEL = TextConfig(titans=SMALL)
CONFIG = replace(TINY, max_steps=6, keep_checkpoints=3)


@pytest.fixture(scope="module")
def finished(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train([texts], folder, MODEL, CONFIG, progress=False)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_what_a_run_leaves(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file() and "tensorboard" not in str(path)}
    checkpoints = {f"checkpoints/step-{step:08d}.ckpt" for step in (4, 5, 6)}
    model = {f"model/{name}" for name in ("config.json", "model.safetensors", "README.md")}
    assert files == {".lock", "config.json", "metrics.csv", *model, *checkpoints}
    config = json.loads((finished / "config.json").read_text())
    assert config["training"] == json.loads(CONFIG.to_json())
    assert config["model"] == MODEL.to_dict()
    assert config["model_type"] == "titans_text"
    assert config["versions"]["torch"] == version("torch")  # of the package: torch.__version__ may have "+cu130" behind it
    assert config["command"]


def test_the_model_is_the_average_of_the_last_checkpoint(finished: Path) -> None:
    checkpoint = read_checkpoint(checkpoints_of(finished / "checkpoints")[-1])
    weights = TitansForCausalLM.from_pretrained(finished / "model").state_dict()
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert all(torch.equal(x, averaged[f"model.{name}"]) for name, x in weights.items())
    assert not all(torch.equal(x, current[f"model.{name}"]) for name, x in weights.items())


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "text":
        path.write_text("not a checkpoint")
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif how == "bomb":
        torch.save({"titans_seq": Bomb()}, path)
    elif how == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    elif how == "list":
        torch.save([1, 2], path)
    elif how == "future":
        torch.save({"titans_seq": {"format": 99}}, path)


SPOILED = ["truncated", "empty", "flipped", "text", "pickle", "bomb", "foreign", "list", "future"]


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_checkpoint_is_refused_by_name(how: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = checkpoints_of(folder / "checkpoints")[-1]
    spoil(path, how)
    with pytest.raises(UserError) as error:
        WholeFileCheckpointIO().load_checkpoint(path, weights_only=False)
    assert str(path) in str(error.value)
    assert not (tmp_path / "exploded").exists()


def compressed(path: Path) -> None:
    """A bomb: what is a few hundred bytes unpacks to a hundred times as many."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))


def test_a_checkpoint_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    compressed(tmp_path / "step-1.ckpt")
    with pytest.raises(UserError, match=r"step-1\.ckpt: damaged \(its parts are larger than the file\)"):
        read_checkpoint(tmp_path / "step-1.ckpt")


LIES: dict[str, tuple[tuple[Any, ...], Callable[[Any], Any], str]] = {
    "weights that are no numbers": (("state_dict", "model.embedding.weight"), lambda x: x * torch.nan, "embedding.weight holds NaN"),
    "weights of another shape": (
        ("current_model_state", "model.embedding.weight"),
        lambda x: x[:9],
        r"is a tensor \(9, 16\).*expected a tensor",
    ),
    "a tensor without memory": (("state_dict", "model.embedding.weight"), lambda x: x[:1, :1].expand(2**30, 2**30), "expected a tensor"),
    "a negative square": (("optimizer_states", 0, "state", 0, "exp_avg_sq"), lambda x: x - 1, "exp_avg_sq is negative"),
    "a moment missing": (("optimizer_states", 0, "state", 0), lambda x: {"step": x["step"]}, "is a dictionary of 1"),
    "another learning rate": (("optimizer_states", 0, "param_groups", 0, "lr"), lambda x: 9.0, "has another lr"),
    "another betas": (("optimizer_states", 0, "param_groups", 0, "betas"), lambda x: (0.0, 0.0), "has another betas"),
    "a scheduler's method": (("lr_schedulers", 0), lambda x: {**x, "step": 1}, "lr_schedulers.0. is a dictionary of"),
    "a state of other rows": (("titans_seq", "carried"), lambda x: [*x, *x], "must be lists of one length"),
    "a state of another kind": (("titans_seq", "carried", 0, "structure", "state"), lambda x: "MemoryState", "expected 'TitansState'"),
    "random numbers from nowhere": (("titans_seq", "random", 0, "numpy"), lambda x: (*x[:2], 10**6, *x[3:]), "no state of a generator"),
    "a loss that is none": (("titans_seq", "window", 0), lambda x: (x[0] + torch.inf, x[1]), "window.0..0. holds NaN or an infinity"),
    "a place outside of the data": (
        ("loops", "fit_loop", "state_dict", "combined_loader", 0, "next"),
        lambda x: 10**6,
        "position in the data is damaged",
    ),
    "no place in the data": (("loops", "fit_loop", "state_dict"), lambda x: {}, "has no combined_loader"),
    "another step": (("global_step",), lambda x: x + 1, "and global_step 7"),
}


def replaced(value: Any, place: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not place:
        return change(value)
    items = value.items() if isinstance(value, dict) else enumerate(value)
    changed = {key: replaced(item, place[1:], change) if key == place[0] else item for key, item in items}
    return changed if isinstance(value, dict) else type(value)(changed.values())


@pytest.mark.parametrize("lie", LIES)
def test_a_whole_checkpoint_that_says_something_else_is_refused(lie: str, folder: Path, texts: Path) -> None:
    """By name and before the run changes, whatever its checksums say."""
    place, change, message = LIES[lie]
    path = checkpoints_of(folder / "checkpoints")[-1]
    torch.save(replaced(read_checkpoint(path), place, change), path)
    for other in checkpoints_of(folder / "checkpoints")[:-1]:
        other.unlink()
    with pytest.raises(UserError, match=message):
        train([texts], folder, MODEL, replace(CONFIG, max_steps=8), resume=True, progress=False)


@pytest.mark.parametrize("version", ["0.1.0", "2", 2.6, None, "2.5.x"])
def test_what_lightning_would_convert_is_refused(version: Any, folder: Path) -> None:
    path = checkpoints_of(folder / "checkpoints")[-1]
    torch.save(read_checkpoint(path) | {"pytorch-lightning_version": version}, path)
    with pytest.raises(UserError, match="does not say what model, settings and version of Lightning"):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.ckpt: no such file"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_changed_byte_is_found_or_changes_nothing(folder: Path) -> None:
    """Anywhere in the file: names, sizes, tensors, padding."""
    path = checkpoints_of(folder / "checkpoints")[-1]
    whole, content = read_checkpoint(path), path.read_bytes()
    found = 0
    for place in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            spoiled = read_checkpoint(path)
        except UserError:
            found += 1
        else:
            assert all(torch.equal(x, spoiled["state_dict"][name]) for name, x in whole["state_dict"].items())
            assert spoiled["loops"] == whole["loops"]
    assert found > 20


def test_resuming_passes_over_what_is_damaged(folder: Path, finished: Path, texts: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The two newest are damaged: the run goes on from the one before and ends the same."""
    older, *newer = checkpoints_of(folder / "checkpoints")
    shutil.rmtree(folder / "model")
    for path, how in zip(newer, ("truncated", "flipped"), strict=True):
        spoil(path, how)
    assert newest_checkpoint(folder / "checkpoints") == older
    assert all(f"Passed over: {path}" in caplog.text for path in newer)
    train([texts], folder, MODEL, CONFIG, resume=True, progress=False)
    (rows, weights), (other_rows, other_weights) = results(folder), results(finished)
    assert rows == other_rows
    assert all(map(torch.equal, weights.values(), other_weights.values()))


def test_a_finished_run_resumes_to_its_model(folder: Path, finished: Path, texts: Path) -> None:
    """As after a kill between the last checkpoint and the model."""
    shutil.rmtree(folder / "model")
    train([texts], folder, MODEL, CONFIG, resume=True, progress=False)
    assert results(folder)[0] == results(finished)[0]
    model, expected = (load_file(run / "model" / "model.safetensors") for run in (folder, finished))
    assert model.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in model.items())


def test_a_finished_run_can_be_made_longer(folder: Path, texts: Path) -> None:
    train([texts], folder, MODEL, replace(CONFIG, max_steps=9), resume=True, progress=False)
    rows = read_metrics(folder / "metrics.csv")
    assert [row["step"] for row in rows if row["learning_rate"]] == ["2", "4", "6", "8", "9"]


def test_a_folder_that_holds_a_run_is_not_written_over(folder: Path, texts: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"run: already holds a run \(metrics.csv, .*Add --resume"):
        train([texts], folder, MODEL, CONFIG, progress=False)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder.parent / "file").write_text("")
    for resume in (False, True):
        with pytest.raises(UserError, match="is a file"):
            train([texts], folder.parent / "file", MODEL, CONFIG, resume=resume, progress=False)


def test_a_run_that_never_began_is_no_run(texts: Path, tmp_path: Path) -> None:
    """What failed before its first step, and left no more than its settings, may be tried again."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    train([texts], tmp_path / "run", MODEL, CONFIG, progress=False)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (replace(MODEL, tie_embeddings=False), CONFIG, "model.tie_embeddings was True, is False"),
        (replace(MODEL, titans=replace(SMALL, dim=32)), CONFIG, "model.titans.dim was 16, is 32"),
        (MODEL, replace(CONFIG, learning_rate=0.5), "training.learning_rate was 0.01, is 0.5"),
        (MODEL, replace(CONFIG, ema_decay=None), "training.ema_decay was 0.9, is None"),
    ],
)
def test_resuming_with_other_settings_is_refused(model: TextConfig, config: Any, message: str, folder: Path, texts: Path) -> None:
    with pytest.raises(UserError, match=message):
        train([texts], folder, model, config, resume=True, progress=False)


def test_resuming_with_other_texts_is_refused_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    before = (folder / "config.json").read_bytes()
    (tmp_path / "other.txt").write_text("another text " * 40)
    with pytest.raises(UserError, match=r"started on other data or other batches: [\d,]+ predictions then and [\d,]+ now"):
        train([tmp_path / "other.txt"], folder, MODEL, replace(CONFIG, max_steps=8), resume=True, progress=False)
    assert (folder / "config.json").read_bytes() == before


def test_resuming_for_fewer_steps_than_were_made_is_refused(folder: Path, texts: Path) -> None:
    with pytest.raises(UserError, match=rf"is at step {CONFIG.max_steps}, beyond max_steps=2"):
        train([texts], folder, MODEL, replace(CONFIG, max_steps=2), resume=True, progress=False)


def test_resuming_nothing_starts(texts: Path, tmp_path: Path, finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a job script wants that always says --resume; and it is said."""
    train([texts], tmp_path / "new", MODEL, CONFIG, resume=True, progress=False)
    assert "no whole checkpoint there; starting from the first step" in caplog.text
    assert results(tmp_path / "new")[0] == results(finished)[0]


def test_a_job_that_is_asked_to_end_saves_first(texts: Path, tmp_path: Path) -> None:
    """SIGTERM, as SLURM and Kubernetes send it before they kill, ends a run after the step; the exit status says that it is not done."""
    config = replace(TINY, max_steps=40, checkpoint_every=1000, validate_every=1000)
    output = tmp_path / "run"
    process = start(command(texts, output, config))
    while process.poll() is None and not ((output / "metrics.csv").exists() and len(read_metrics(output / "metrics.csv")) > 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not (output / "model").exists()
    (saved,) = checkpoints_of(output / "checkpoints")
    assert int(saved.stem.removeprefix("step-")) >= int(read_metrics(output / "metrics.csv")[-1]["step"])
    for folder in (output, tmp_path / "whole"):
        train([texts], folder, MODEL, config, resume=folder == output, progress=False)
    assert results(output)[0] == results(tmp_path / "whole")[0]
