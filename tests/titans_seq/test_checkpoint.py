"""Models on disk: what was saved comes back, what is damaged is refused by name, and yesterday's checkpoints still load."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn

from titans_seq import Titans, TitansConfig, UserError, files, load_model, presets
from titans_seq.card import Card
from titans_seq.checkpoint import Pretrained
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
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = Titans.from_pretrained(str(folder))
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    x = torch.randn(1, 9, 16)
    assert torch.equal(loaded(x)[0], model(x)[0])


def test_the_same_model_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    """So that two runs can be compared, and a model named, by a digest."""
    model = Titans.from_pretrained(folder)
    written = (folder / "model.safetensors").read_bytes()
    for i in range(8):
        model.save_pretrained(tmp_path / str(i))
        assert (tmp_path / str(i) / "model.safetensors").read_bytes() == written


def test_the_config_file_says_what_made_it(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == "titans"
    assert values["titans_seq_version"]
    assert values["format"] == 1
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
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: is a file; a model is a folder\. Give one that a training or save_pretrained wrote\."):
        Titans.from_pretrained(tmp_path / "file")
    with pytest.raises(UserError, match=r"nowhere: no such folder\. Give one that a training or save_pretrained"):
        Titans.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', Titans needs 'titans'"),
        ({"model_type": None}, "model_type is None, expected a name"),
        ({"config": {"dim": 16, "num_layers": 2, "num_head": 2}}, "TitansConfig: unknown key 'num_head'"),
        (
            {"config": {"dim": 16, "num_layers": 2, "memory": {"depht": 2}}},
            "TitansConfig.memory: unknown key 'depht'; did you mean 'depth'",
        ),
        ({"config": {"dim": -16, "num_layers": 2}}, "TitansConfig.dim must be at least 1, got -16"),
        ({"config": {"num_layers": 2}}, "dim"),
        ({"config": []}, "expected a dictionary, got list"),
        ({"config": None}, "expected a dictionary, got NoneType"),
        ({"format": 2, "titans_seq_version": "9.9"}, "format 2, written by titans_seq 9.9; .* up to 1. Upgrade: pip install"),
        ({"format": "new"}, "format must be a whole number from 1, got 'new'"),
        ({"model_type": ["titans"]}, "expected a name"),
    ],
    ids=["type", "no-type", "key", "nested-key", "range", "missing-key", "list", "null", "newer", "format", "type-of-type"],
)
def test_a_wrong_config_is_refused(folder: Path, changes: dict, message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=f"{folder / 'config.json'}: .*{message}"):
        Titans.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b"3", b"{}", b"[" * 100_000], ids=lambda x: str(x[:9]))
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


class TiedHead(Pretrained):
    """A model whose output layer is its embedding, with a buffer that is a part of another one and one that is not saved."""

    model_type = "tied_head"
    config_class = TitansConfig

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(5, config.dim)
        self.head = nn.Linear(config.dim, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(6.0))
        self.register_buffer("first_positions", self.positions[:3])
        self.register_buffer("ones", torch.ones(2), persistent=False)


def test_a_shared_tensor_is_stored_once_and_shared_again(tmp_path: Path) -> None:
    """Also in the dtype that it was saved in, and on the meta device."""
    model = TiedHead(presets.debug()).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"embedding.weight", "positions", "first_positions"}
    for loaded in (TiedHead.from_pretrained(tmp_path), load_model(tmp_path)):
        assert loaded.head.weight is loaded.embedding.weight
        assert torch.equal(loaded.head.weight, model.head.weight)
        assert torch.equal(loaded.first_positions, model.first_positions)
        assert torch.equal(loaded.ones.float(), torch.ones(2))
        assert sum(x.numel() for x in loaded.parameters()) == sum(x.numel() for x in model.parameters())
    outline = load_model(tmp_path, device="meta")
    assert outline.head.weight is outline.embedding.weight
    assert outline.head.weight.dtype == torch.bfloat16


def test_a_tie_made_after_construction_comes_back(tmp_path: Path) -> None:
    model = Titans(presets.debug())
    model.blocks[1].mixer_norm.weight = model.blocks[0].mixer_norm.weight
    model.save_pretrained(tmp_path)
    loaded = Titans.from_pretrained(tmp_path)
    assert loaded.blocks[1].mixer_norm.weight is loaded.blocks[0].mixer_norm.weight
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("shared", ["{", "[1]", '{"head.weight": "nowhere"}', '{"head.weight": 3}'])
def test_damaged_names_of_shared_tensors_are_refused(tmp_path: Path, shared: str) -> None:
    TiedHead(presets.debug()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path, metadata={"titans_seq_shared": shared})
    with pytest.raises(UserError, match=f"{path}: damaged"):
        TiedHead.from_pretrained(tmp_path)


def test_loading_leaves_the_random_numbers_alone(folder: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    Titans.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_meta_device_reads_no_values(folder: Path) -> None:
    outline, model = Titans.from_pretrained(folder, device="meta"), Titans.from_pretrained(folder)
    assert all(x.is_meta for x in outline.parameters())
    assert [(x.shape, x.dtype) for x in outline.parameters()] == [(x.shape, x.dtype) for x in model.parameters()]
    assert outline.init_state(1).nbytes == model.init_state(1).nbytes


def test_a_gpu_that_is_not_there_is_said_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for load in (Titans.from_pretrained, load_model):
        with pytest.raises(UserError, match=r"device cuda: torch finds no GPU here\. `titans-seq doctor` says .* device='cpu' works"):
            load(folder, device="cuda")


def test_load_model_finds_the_class(folder: Path) -> None:
    """The backbone in a fresh interpreter that has imported nothing, a domain's through its entry point."""
    code = f"import titans_seq; print(type(titans_seq.load_model({str(folder)!r})).__qualname__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "Titans\n"
    assert type(load_model(GOLDEN / "forecaster")).__module__ == "domains.timeseries.model"


def test_a_type_that_nobody_has_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="bert")
    of_dna = "titans_dna, titans_dna_classifier, titans_dna_labeller, titans_dna_profile"
    known = f"titans, titans_autoencoder, {of_dna}, titans_forecaster, titans_text"
    with pytest.raises(UserError, match=rf"no installed package has the model_type 'bert'; known: .*{known}"):
        load_model(folder)


CARD = Card(
    title="Loads of Berlin",
    description="Forecasts of the grid's load.",
    data="Hourly load, 2015 to 2020, CC BY 4.0.",
    metrics={"CRPS": 0.123456789, "windows": 6, "a | b": "x"},
    evaluation="Last six weeks.",
    command="titans-seq forecast load.csv",
    license="mit",
    datasets=("owner/load",),
    tags=("forecasting",),
)


def test_the_card_tells_of_the_run_and_the_hub_can_read_it(tmp_path: Path) -> None:
    Titans(presets.debug()).save_pretrained(tmp_path, card=CARD)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "library_name": "titans_seq",
        "license": "mit",
        "datasets": ["owner/load"],
        "tags": ["titans", "forecasting"],
    }
    for text in (CARD.title, CARD.description, CARD.data, CARD.evaluation, CARD.command, "| CRPS | 0.123457 |", "| windows | 6 |"):
        assert str(text) in card.text
    assert "| a \\| b | x |" in card.text
    assert "11,384 parameters" in card.text


def test_the_code_in_a_card_without_a_run_runs(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER OR NAME ON THE HUB", str(folder)), names)
    assert isinstance(names["model"], Titans)
    assert "None" not in text
    assert "## Data" not in text


@pytest.mark.parametrize("name", ["lmm", "mag", "mal", "format-1"])
def test_golden_checkpoints_load_and_give_their_stored_output(name: str) -> None:
    """If this fails on purpose (another name, other mathematics): tests/titans_seq/golden/make.py, and say so in the change log."""
    model = Titans.from_pretrained(GOLDEN / name)
    example = load_file(GOLDEN / name / "example.safetensors")
    x, expected = example["input"], example["output"]
    with torch.inference_mode():
        y, _ = model(x)
        first, state = model(x[:, :11])
        rest, _ = model(x[:, 11:], state)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), expected, rtol=1e-5, atol=1e-5)
    assert sum(path.stat().st_size for path in (GOLDEN / name).iterdir()) < 150_000


def test_too_long_a_name_is_named() -> None:
    with pytest.raises(UserError, match=r"xxx: is no usable path \(File name too long\)"):
        load_model("x" * 5000)
