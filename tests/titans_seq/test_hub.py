"""Models on the hub, against a real server on this machine that speaks the hub's protocol (tests/hub.py)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hub import TOKEN, Hub
from tests.limits import HANG
from tests.serving import serving
from titans_seq import Titans, UserError, load_model, presets
from titans_seq.card import Card


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving(Hub()) as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Titans:
    """Saved in tmp_path / "model"."""
    model = Titans(presets.debug("mag")).eval()
    model.save_pretrained(tmp_path / "model", card=Card(title="Mine"))
    return model


@pytest.fixture
def options(hub: Hub, tmp_path: Path) -> dict[str, Any]:
    return {"endpoint": hub.address, "cache_dir": tmp_path / "cache", "token": False}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_a_model_comes_from_the_hub_with_its_three_files_and_stays_in_the_cache(
    hub: Hub, model: Titans, tmp_path: Path, options: dict
) -> None:
    hub.put("owner/name", tmp_path / "model", **{"optimizer.pt": b"a pickle", "big.bin": b"0" * 10_000})
    assert same(Titans.from_pretrained("owner/name", **options), model)
    assert same(load_model("owner/name", **options), model)
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if path.parent.parent.name == "snapshots"}
    assert kept == {"config.json", "model.safetensors", "README.md"}
    assert sum(line.startswith("GET /storage") for line in hub.asked) == 1  # downloaded once
    assert not any("optimizer.pt" in line or "big.bin" in line for line in hub.asked)


def test_a_revision_is_named_by_its_commit_and_main_moves_on(hub: Hub, model: Titans, tmp_path: Path, options: dict) -> None:
    first = hub.put("owner/name", tmp_path / "model")
    assert same(Titans.from_pretrained("owner/name", **options), model)
    newer = Titans(presets.debug("lmm"))
    newer.save_pretrained(tmp_path / "newer")
    hub.put("owner/name", tmp_path / "newer")
    assert Titans.from_pretrained("owner/name", **options).config.variant == "lmm"
    assert same(Titans.from_pretrained("owner/name", revision=first, **options), model)
    with pytest.raises(UserError, match=r"owner/name: the model has no revision 'v9'. Name a branch, tag or commit"):
        Titans.from_pretrained("owner/name", revision="v9", **options)


def test_without_a_connection_the_cache_serves(hub: Hub, model: Titans, tmp_path: Path, options: dict) -> None:
    hub.put("owner/name", tmp_path / "model")
    Titans.from_pretrained("owner/name", **options)
    gone = {**options, "endpoint": "http://127.0.0.1:9"}  # nobody listens there
    assert same(Titans.from_pretrained("owner/name", **gone), model)
    assert same(Titans.from_pretrained("owner/name", local_files_only=True, **options), model)
    for others in ({}, {"local_files_only": True}):
        with pytest.raises(UserError, match=r"owner/other: no folder .* not in the cache, .* HF_HUB_OFFLINE"):
            Titans.from_pretrained("owner/other", **gone, **others)


def test_a_private_model_needs_the_token(hub: Hub, model: Titans, tmp_path: Path, options: dict) -> None:
    hub.put("owner/secret", tmp_path / "model")
    hub.private.add("owner/secret")
    for name in ("owner/secret", "owner/nothing"):
        with pytest.raises(UserError, match=rf"{name}: no folder of that name here and no such model on the hub.*hf auth login"):
            Titans.from_pretrained(name, **options)
    assert same(Titans.from_pretrained("owner/secret", **{**options, "token": TOKEN}), model)


def test_a_repository_of_something_else_is_refused(hub: Hub, tmp_path: Path, options: dict) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    hub.put("owner/other", tmp_path / "other")
    with pytest.raises(UserError, match=r"model.safetensors: no such file"):
        Titans.from_pretrained("owner/other", **options)


def test_a_broken_download_is_taken_up_again(hub: Hub, model: Titans, tmp_path: Path, options: dict) -> None:
    """Half a file is never loaded."""
    hub.put("owner/name", tmp_path / "model")
    hub.cut_weights_after = 10_000
    assert same(Titans.from_pretrained("owner/name", **options), model)
    assert sum(line.startswith("GET /storage") for line in hub.asked) == 2


@pytest.mark.parametrize("name", ["./model", "a/b/c", "../x", "nowhere"])
def test_what_is_no_name_asks_no_server(name: str, hub: Hub, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r": no such folder. Give one that"):
        Titans.from_pretrained(name, **options)
    assert hub.asked == []


def test_a_folder_comes_before_the_hub(hub: Hub, model: Titans, tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "model", tmp_path / "owner" / "name")
    assert same(Titans.from_pretrained("owner/name", **options), model)
    assert hub.asked == []


def test_what_is_pushed_can_be_loaded(hub: Hub, model: Titans, options: dict) -> None:
    address = model.push_to_hub("owner/new", card=Card(title="Pushed"), private=True, token=TOKEN, endpoint=hub.address)
    assert address == f"{hub.address}/owner/new"
    assert set(hub.commits["owner/new"][-1]) == {"config.json", "model.safetensors", "README.md"}
    assert b"# Pushed" in hub.commits["owner/new"][-1]["README.md"]
    assert "owner/new" in hub.private
    assert same(load_model("owner/new", **{**options, "token": TOKEN}), model)


def test_pushing_needs_a_name_and_the_right(hub: Hub, model: Titans) -> None:
    with pytest.raises(UserError, match='"owner/name"'):
        model.push_to_hub("just-a-name", token=TOKEN, endpoint=hub.address)
    with pytest.raises(UserError, match=r"owner/new: .*hf auth login"):
        model.push_to_hub("owner/new", token="hf_wrong", endpoint=hub.address)


def test_info_of_a_model_on_the_hub(hub: Hub, model: Titans, tmp_path: Path) -> None:
    """The whole way as a user goes it: a process, the address in HF_ENDPOINT, the cache in HF_HOME."""
    hub.put("owner/name", tmp_path / "model")
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [str(Path(sys.executable).with_name("titans-seq")), "info"]
    done = subprocess.run([*command, "owner/name", "--json"], env=environment, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == sum(x.numel() for x in model.parameters())
    done = subprocess.run([*command, "owner/nothing"], env=environment, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: owner/nothing: no folder of that name here")
    assert "Traceback" not in done.stderr
