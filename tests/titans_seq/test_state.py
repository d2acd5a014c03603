"""State files that were damaged or made by strangers are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from titans_seq import UserError
from titans_seq.attention import SlidingWindowState
from titans_seq.backbone import TitansState
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
