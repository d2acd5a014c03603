"""Models on disk: what was saved comes back, what is damaged is refused by name, and yesterday's checkpoints still load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from titans_seq import Titans, UserError, files, presets
from titans_seq.config import VARIANTS

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    Titans(presets.debug("mag")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


def edit_weights(folder: Path, remove: str | None = None, **changes: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in (tensors | changes).items() if name != remove}, folder / "model.safetensors")


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(variant: str, tmp_path: Path) -> None:
    """A nested folder is made; nothing else lies in it; saving again replaces; the output is the same bit for bit."""
    folder = tmp_path / "runs" / "one"
    Titans(presets.debug("lmm")).save_pretrained(folder)
    model = Titans(presets.debug(variant)).eval()
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = Titans.from_pretrained(str(folder))
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    x = torch.randn(1, 9, 16)
    assert torch.equal(loaded(x)[0], model(x)[0])


def test_the_config_file_says_what_made_it(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == "titans"
    assert values["titans_seq_version"]
    assert values["config"] == presets.debug("mag").to_dict()


def test_the_dtype_comes_back(tmp_path: Path) -> None:
    """Weights of a float64 or bf16 model are not rounded or widened behind the user's back."""
    for dtype in (torch.float64, torch.bfloat16):
        Titans(presets.debug()).to(dtype).save_pretrained(tmp_path)
        assert {parameter.dtype for parameter in Titans.from_pretrained(tmp_path).parameters()} == {dtype}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder / name}: no such file"):
        Titans.from_pretrained(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/config.json: no such file.*save_pretrained"):
        Titans.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', Titans needs 'titans'"),
        ({"model_type": None}, "model_type is None, Titans needs 'titans'"),
        ({"config": {"dim": 16, "num_layers": 2, "num_head": 2}}, "TitansConfig: unknown key 'num_head'"),
        ({"config": {"dim": 16, "num_layers": 2, "memory": {"depht": 2}}}, "MemoryConfig: unknown key 'depht'; did you mean 'depth'"),
        ({"config": {"dim": -16, "num_layers": 2}}, "TitansConfig.dim must be at least 1, got -16"),
        ({"config": {"num_layers": 2}}, "dim"),
        ({"config": []}, "expected a dictionary, got list"),
        ({"config": None}, "expected a dictionary, got NoneType"),
    ],
    ids=["type", "no-type", "key", "nested-key", "range", "missing-key", "list", "null"],
)
def test_a_wrong_config_is_refused(folder: Path, changes: dict, message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=f"{folder / 'config.json'}: .*{message}"):
        Titans.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b"3", b"{}"], ids=str)
def test_a_damaged_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=f"{folder / 'config.json'}: "):
        Titans.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "header"])
def test_damaged_weights_are_refused(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    damaged = {"empty": b"", "text": b"not tensors", "cut": content[: len(content) // 2], "header": b"\xff" * 8 + content[8:]}
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=f"{path}: damaged or not a safetensors file"):
        Titans.from_pretrained(folder)


def test_weights_that_do_not_fit_are_refused_by_name(folder: Path) -> None:
    path, kept = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    for message, remove, changes in (
        (r"Missing key.*norm\.weight", "norm.weight", {}),
        (r"Unexpected key.*spare", None, {"spare": torch.ones(1)}),
        (r"size mismatch for norm\.weight", None, {"norm.weight": torch.ones(3)}),
    ):
        edit_weights(folder, remove, **changes)
        with pytest.raises(UserError, match=rf"(?s){path} does not fit {folder / 'config.json'}.*{message}"):
            Titans.from_pretrained(folder)
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([float("nan"), *[1.0] * 15]), r"tensor 'norm.weight' holds NaN or an infinity"),
        (torch.tensor([float("-inf"), *[1.0] * 15]), r"tensor 'norm.weight' holds NaN or an infinity"),
        (torch.ones(16, dtype=torch.float64), r"holds tensors of torch.float32, torch.float64; all must be of one dtype"),
        (torch.ones(16, dtype=torch.int64), r"holds tensors of torch.float32, torch.int64; all must be of one dtype"),
        (torch.ones(16).to(torch.float8_e4m3fn), r"holds tensors of torch.float32, torch.float8_e4m3fn; all must be of one dtype"),
    ],
    ids=["nan", "infinity", "mixed", "integer", "float8"],
)
def test_weights_that_cannot_be_computed_with_are_refused(folder: Path, values: torch.Tensor, message: str) -> None:
    edit_weights(folder, **{"norm.weight": values})
    with pytest.raises(UserError, match=f"{folder / 'model.safetensors'}: {message}"):
        Titans.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 2**22, "num_layers": 1000}, "does not fit"),  # 10^17 bytes, were they made
        ({"dim": 2**62, "num_layers": 1}, "a model of these sizes cannot be made"),
    ],
)
def test_a_config_of_any_size_takes_no_memory(folder: Path, config: dict, message: str) -> None:
    edit_config(folder, config=config | {"variant": "lmm"})
    with pytest.raises(UserError, match=message):
        Titans.from_pretrained(folder)


@pytest.mark.parametrize("failing", ["save_file", "os.replace"])
def test_a_failed_save_leaves_the_old_files_whole(folder: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(tensors: Any, path: Any, **_: Any) -> None:
        if failing == "save_file":
            Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "save_file", fail) if failing == "save_file" else monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        Titans(presets.debug("mal")).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_checkpoints_load_and_give_their_stored_output(variant: str) -> None:
    """If this fails on purpose (another name, other mathematics): tests/titans_seq/golden/make.py, and say so in the change log."""
    model = Titans.from_pretrained(GOLDEN / variant)
    example = load_file(GOLDEN / variant / "example.safetensors")
    x, expected = example["input"], example["output"]
    with torch.inference_mode():
        y, _ = model(x)
        first, state = model(x[:, :11])
        rest, _ = model(x[:, 11:], state)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), expected, rtol=1e-5, atol=1e-5)
    assert sum(path.stat().st_size for path in (GOLDEN / variant).iterdir()) < 150_000
