"""State files that were damaged or made by strangers are refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from titans_seq import LocalMemoryConfig, Titans, TitansConfig, UserError, presets
from titans_seq.attention import SlidingWindowState
from titans_seq.backbone import TitansState
from titans_seq.config import VARIANTS
from titans_seq.memory import Gates, MemoryWeights, neural_memory
from titans_seq.state import _METADATA_KEY

TENSORS = {"state.keys": torch.ones(2, 1, 3, 4), "state.values": torch.ones(2, 1, 3, 4), "state.position": torch.tensor([1, 2])}
FIELDS = {name.partition(".")[2]: {"tensor": name} for name in TENSORS}


def write(path: Path, tensors: dict[str, torch.Tensor], fields: Any, kind: str = "SlidingWindowState") -> Path:
    text = fields if isinstance(fields, str) else json.dumps({"state": kind, "fields": fields})
    save_file(tensors, path, {_METADATA_KEY: text})
    return path


def test_a_whole_file_loads(tmp_path: Path) -> None:
    state = SlidingWindowState.load(write(tmp_path / "x.safetensors", TENSORS, FIELDS))
    assert torch.equal(state.position, TENSORS["state.position"])
    state.save(tmp_path / "y.safetensors")
    assert load_file(tmp_path / "y.safetensors").keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        ({}, FIELDS | {"keys": {"value": 3}}, "SlidingWindowState.keys is not <class 'torch.Tensor'>"),
        ({}, FIELDS | {"keys": {"tuple": [{"tensor": "state.keys"}]}}, "SlidingWindowState.keys is not"),
        ({}, FIELDS | {"keys": {"tensor": "state.values"}}, "damaged"),
        ({}, {"keys": {"tensor": "state.keys"}}, "missing 2 required"),
        ({}, FIELDS | {"more": {"value": 1}}, "'more'"),
        ({}, "[]", "damaged"),
        ({}, "[" * 100_000, "nested too deeply"),
        ({}, '{"tuple": [' * 300 + '{"value": 1}' + "]}" * 300, "holds a tuple, expected a SlidingWindowState"),
        ({}, '{"state": "SlidingWindowState", "state": "X", "fields": {}}', "key 'state' comes twice"),
        ({"spare": torch.ones(2)}, FIELDS, "tensors that are no part of it: spare"),
        ({"state.position": torch.tensor([1, 2, 3])}, FIELDS, r"tensors of batches of \{2, 3\}"),
        ({"state.position": torch.tensor(1)}, FIELDS, "tensors of batches of"),
        ({"state.keys": torch.full((2, 1, 3, 4), float("nan"))}, FIELDS, "tensor 'state.keys' holds NaN or an infinity"),
        ({"state.keys": torch.ones(2, 1, 3, 4, dtype=torch.complex64)}, FIELDS, "no state holds torch.complex64"),
        ({"state.position": torch.tensor([True, False])}, FIELDS, "no state holds torch.bool"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(tmp_path: Path, tensors: dict, fields: Any, message: str) -> None:
    path = write(tmp_path / "x.safetensors", TENSORS | tensors, fields)
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        SlidingWindowState.load(path)


def test_a_state_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", TENSORS, FIELDS)
    with pytest.raises(UserError, match="holds a SlidingWindowState, expected a TitansState"):
        TitansState.load(path)
    with pytest.raises(UserError, match="unknown state 'Nothing'"):
        TitansState.load(write(path, TENSORS, FIELDS, "Nothing"))


def two_levels() -> TitansConfig:
    config = presets.debug("mag")
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, local=LocalMemoryConfig(chunk_sizes=(2,), shard_length=4)))


CONFIGS = {**{variant: presets.debug(variant) for variant in VARIANTS}, "two levels": two_levels()}


def storages(tensors: list[torch.Tensor]) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in tensors if x.numel()}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("length", [0, 1, 3, 40], ids=lambda length: f"{length} tokens")
@pytest.mark.parametrize("name", CONFIGS)
def test_an_optimizer_does_not_change_a_carried_state(name: str, length: int, rows: int) -> None:
    """Truncated back-propagation through time: what was carried, detached or for inference, is what was read, not the weights of now."""
    model = Titans(CONFIGS[name])
    x = torch.randn(rows, max(length, 1), 16)
    y, trained = model(x)
    with torch.no_grad():
        untrained = model.init_state(rows) if length == 0 else model(x)[1]
    carried = [model.init_state(rows).detach() if length == 0 else trained.detach(), untrained]
    assert all(storages(state.tensors()).isdisjoint(storages(list(model.parameters()))) for state in carried)
    before = [[x.clone() for x in state.tensors()] for state in carried]
    y.square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    for state, expected in zip(carried, before, strict=True):
        assert all(map(torch.equal, state.tensors(), expected))


@pytest.mark.parametrize("impl", ["chunkwise", "recurrent", "reference"])
def test_the_operator_returns_no_view_of_its_weights(impl: str) -> None:
    weights = MemoryWeights(layers=[torch.randn(2, 4, 4)])
    q, k, v = torch.randn(3, 1, 2, 3, 4).unbind(0)
    gates = [Gates(*torch.rand(3, 1, 2, 3).unbind(0))]
    for mask in (None, torch.zeros(1, 3, dtype=torch.bool)):
        _, state = neural_memory(q, k, v, gates, weights, impl=impl, mask=mask)
        assert storages(state.tensors()).isdisjoint(storages(list(weights.layers)))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_clone_that_is_written_to_leaves_the_state(name: str) -> None:
    model = Titans(CONFIGS[name]).requires_grad_(False)
    for state in (model.init_state(2), model(torch.randn(2, 3, 16))[1]):
        fork = state.clone()
        assert storages(fork.tensors()).isdisjoint(storages(state.tensors()))
        before = [x.clone() for x in state.tensors()]
        for x in fork.tensors():
            x.fill_(7)
        assert all(map(torch.equal, state.tensors(), before))
        assert all((x == 7).all() for x in fork.tensors())


def test_states_are_put_together_and_taken_apart() -> None:
    model = Titans(presets.debug("mac")).eval()
    with torch.no_grad():
        one, other = (model(torch.randn(rows, length, 16))[1] for rows, length in ((1, 9), (2, 5)))
    both = TitansState.cat([one, other])
    assert both.batch_size == 3
    for index, state in (([0], one), ([1, 2], other)):
        taken = both.select(torch.tensor(index))
        assert all(torch.equal(x, y) for x, y in zip(taken.tensors(), state.tensors(), strict=True))
    with pytest.raises(ValueError, match="states are of different models: number 1"):
        TitansState.cat([one, Titans(presets.debug("mag")).init_state(1)])
    with pytest.raises(ValueError, match="at least one state"):
        TitansState.cat([])


def test_a_state_knows_whose_it_is(tmp_path: Path) -> None:
    model, other = Titans(presets.debug("lmm")), Titans(presets.debug("lmm"))
    path = tmp_path / "state.safetensors"
    model.init_state(1).save(path, model.identity())
    TitansState.load(path)
    TitansState.load(path, owner=model.identity())
    with pytest.raises(UserError, match=rf"is a state of another model \({model.identity()}\), not of this one \({other.identity()}\)"):
        TitansState.load(path, owner=other.identity())
    model.init_state(1).save(path)
    with pytest.raises(UserError, match="is a state of a model that it does not name"):
        TitansState.load(path, owner=model.identity())


def test_the_identity_of_a_model_is_that_of_its_numbers(tmp_path: Path) -> None:
    model = Titans(presets.debug("lmm"))
    model.save_pretrained(tmp_path)
    loaded = Titans.from_pretrained(tmp_path)
    assert loaded.identity() == model.identity()
    with torch.no_grad():
        loaded.norm.weight[3] += 1e-6
    assert loaded.identity() != model.identity()
