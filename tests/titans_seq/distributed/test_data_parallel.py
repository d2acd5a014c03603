"""DDP and FSDP2 give what one process gives at the same global batch; sharded checkpoints load on any number of ranks, or are refused."""

import importlib.util
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from titans_seq import AttentionConfig, MemoryConfig, Titans, TitansConfig, UserError
from titans_seq.distributed.checkpoint import load_sharded, read_model, save_sharded, whole_folder
from titans_seq.distributed.fully_sharded import shard_model


@pytest.fixture(scope="module")
def ranks_script() -> Any:
    """data_ranks.py as a module, for the part of one process."""
    spec = importlib.util.spec_from_file_location("data_ranks", Path(__file__).with_name("data_ranks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_ranks_give_what_one_process_gives(start_ranks: Callable[..., list[str]], ranks_script: Any, tmp_path: Path) -> None:
    """All variants, state carried, rows shared unevenly: the same losses and, after six steps of AdamW, the same parameters, float64.

    Checkpoints load on another number of ranks, 2 to 1 and 1 to 2, sharded or not, and go on to the losses of a run that was not stopped.
    """
    alone = ranks_script.make("mac", "none")
    ranks_script.train(alone, range(2), 0, 1)
    save_sharded(tmp_path / "of-one", alone.model, alone.optimizer, {"step": 2})
    expected = ranks_script.train(alone, range(2, 4), 0, 1)

    start_ranks("data_ranks.py", 2, tmp_path)
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for report in reports:
        found = report.pop("checkpoints")
        assert found["values"] == {"step": 2}
        assert found["not stopped"] == pytest.approx(expected, abs=1e-9)
        assert found["from one"] == pytest.approx(expected, abs=1e-9)
        assert set(report) == {"lmm", "mac", "mag", "mal"}
        for variant, of_variant in report.items():
            for what in ("ddp losses", "ddp parameters", "fsdp losses", "fsdp parameters", "initial state"):
                assert of_variant[what] < 1e-9, f"{variant} {what}"
            assert of_variant["moved"] > 0.01, variant
            assert 0.3 < of_variant["held"] < 0.7, variant
            assert of_variant["refused"].startswith("init_state of a model sharded by FSDP has no gradient: pass state=None")
    for first, second in zip(*(report.values() for report in reports), strict=True):
        assert first["held"] + second["held"] == pytest.approx(1)

    saved = tmp_path / "of-ranks"
    assert {path.suffix for path in saved.iterdir()} == {".safetensors", ".json"}  # no pickle
    assert len(list(saved.glob("*.safetensors"))) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    run = ranks_script.make("mac", "none", seed=1)
    assert load_sharded(saved, run.model, run.optimizer) == {"step": 2}
    assert ranks_script.train(run, range(2, 4), 0, 1) == pytest.approx(expected, abs=1e-9)


def make(dim: int = 16, seed: int = 0) -> tuple[Titans, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    config = TitansConfig(dim=dim, num_layers=1, memory=MemoryConfig(num_heads=2), attention=AttentionConfig(num_heads=2))
    model = Titans(config)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "name": "decay"}, {"params": others, "name": "no_decay", "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9))


def step(model: Titans, optimizer: torch.optim.Optimizer) -> float:
    x = torch.randn(2, 9, model.config.dim, generator=torch.Generator().manual_seed(3))
    loss = (model(x)[0] - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = make()
    step(model, optimizer)
    save_sharded(tmp_path / "step-1", model, optimizer, {"step": 1, "note": "é"})
    return tmp_path / "step-1"


def test_one_process_without_torch_distributed(saved: Path) -> None:
    """The same bits after loading, settings of the optimizer's groups included."""
    expected, expected_optimizer = make()
    step(expected, expected_optimizer)
    model, optimizer = make(seed=1)
    for group in optimizer.param_groups:
        group.update(lr=1.0, betas=(0.1, 0.2))
    assert load_sharded(saved, model, optimizer) == {"step": 1, "note": "é"}
    weights = read_model(saved)
    assert set(weights) == set(model.state_dict())
    assert all(torch.equal(weights[name], x) for name, x in expected.state_dict().items())
    for _ in range(2):
        assert step(model, optimizer) == step(expected, expected_optimizer)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9)] * 2
    assert [group["name"] for group in optimizer.param_groups] == ["decay", "no_decay"]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def _rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _lie(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> None:
    """Change tensors and offsets of the shard, under the right checksum."""
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        sharding = json.loads(file.metadata()["DCP_SHARDING_INFO"])
    tensors = load_file(path)
    change(tensors, sharding)
    save_file(tensors, path, {"DCP_SHARDING_INFO": json.dumps(sharding), "format": "pt"})
    _rewrite(folder / "checkpoint.json", files={path.name: zlib.crc32(path.read_bytes())})


NORM = "model.norm.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no sharded checkpoint: it has no checkpoint.json"),
    "no index": (lambda f: (f / "checkpoint.json").unlink(), "no sharded checkpoint: it has no checkpoint.json"),
    "index cut": (lambda f: (f / "checkpoint.json").write_text((f / "checkpoint.json").read_text()[:200]), "checkpoint.json: damaged"),
    "index of others": (lambda f: (f / "checkpoint.json").write_text("[1, 2]"), "checkpoint.json: damaged"),
    "index without parts": (lambda f: _rewrite(f / "checkpoint.json", files=3), "checkpoint.json: damaged"),
    "a number that is none": (
        lambda f: _rewrite(f / "checkpoint.json", values={"lr": float("nan")}),
        "damaged, .*NaN is no JSON",
    ),
    "another format": (lambda f: _rewrite(f / "checkpoint.json", format=9), "its format is 9, this version reads 1"),
    "shard missing": (lambda f: next(f.glob("*.safetensors")).unlink(), "safetensors: missing"),
    "shard too many": (lambda f: (f / "shard-00007.safetensors").write_bytes(b""), "shard-00007.safetensors: not part of this checkpoint"),
    "a shard that is not all": (
        lambda f: _lie(f, lambda tensors, sharding: sharding[NORM].update(saved_offsets=[3])),
        "contradict one another .*the shards of model.norm.weight do not lie end to end",
    ),
    "too few offsets": (lambda f: _lie(f, lambda tensors, sharding: sharding[NORM].update(saved_offsets=[])), "do not lie end to end"),
    "offsets that are none": (lambda f: _lie(f, lambda tensors, sharding: sharding[NORM].update(saved_offsets="x")), "contradict one"),
    "no offsets": (lambda f: _lie(f, lambda tensors, sharding: sharding.clear()), "contradict one another .KeyError"),
    "not a number": (lambda f: _lie(f, lambda tensors, sharding: tensors[NORM].fill_(torch.nan)), "model.norm.weight holds NaN"),
    "a bit flipped": (lambda f: _flip(next(f.glob("*.safetensors"))), "damaged .its checksum is wrong"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(saved: Path, damage: str) -> None:
    """By name, and the model keeps what it had."""
    do_damage, message = DAMAGES[damage]
    do_damage(saved)
    model, optimizer = make(seed=1)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_sharded(saved, model, optimizer)
    with pytest.raises(UserError, match=message):
        read_model(saved)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_settings_of_another_type_are_refused(saved: Path) -> None:
    index = json.loads((saved / "checkpoint.json").read_text())
    name = next(name for name in index["settings"] if name.endswith(".lr"))
    _rewrite(saved / "checkpoint.json", settings=index["settings"] | {name: "fast"})
    with pytest.raises(UserError, match=rf"checkpoint.json: {name} is 'fast', expected a value such as 0.01"):
        load_sharded(saved, *make())


def test_tensors_of_another_type_are_refused(saved: Path) -> None:
    _lie(saved, lambda tensors, sharding: tensors.update({NORM: tensors[NORM].double()}))
    with pytest.raises(UserError, match=r"model.norm.weight needs \(16,\) torch.float32, there is \(16,\) torch.float64"):
        load_sharded(saved, *make())


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    model, optimizer = make(dim=32)
    with pytest.raises(UserError, match="does not fit this model and optimizer"):
        load_sharded(saved, model, optimizer)
    deeper = Titans(TitansConfig(dim=16, num_layers=2, memory=MemoryConfig(num_heads=2), attention=AttentionConfig(num_heads=2)))
    with pytest.raises(UserError, match=r"of another model or optimizer: it has no optimizer\.param_groups\.blocks\.1"):
        load_sharded(saved, deeper, torch.optim.AdamW(deeper.parameters()))


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    with whole_folder(folder) as temporary:
        (temporary / "a").write_text("old")
        assert not folder.exists()
    with pytest.raises(UnicodeEncodeError), whole_folder(folder) as temporary:  # an error on the way
        (temporary / "a").write_text("half of the new \udc80", encoding="utf-8")
    assert (folder / "a").read_text() == "old"
    with whole_folder(folder) as temporary:
        assert not (temporary / "a").exists()  # nothing is left of what was not finished
        (temporary / "b").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["step-1", "b"]


def test_only_models_with_blocks_are_sharded() -> None:
    with pytest.raises(ValueError, match=r"Linear has no titans_seq\.blocks\.Block to shard"):
        shard_model(nn.Linear(2, 2), DeviceMesh("cpu", [0], _init_backend=False, _rank=0))
