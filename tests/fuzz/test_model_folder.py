"""Model folders from strangers, of the backbone and of domains: a model that runs, or a UserError that names the file."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from domains.text.model import TextConfig, TitansForCausalLM
from domains.timeseries.config import ForecasterConfig
from domains.timeseries.model import TitansForecaster
from tests.fuzz.strategies import FEWER, TOKENS, VALUES, dumps, mutated_bytes, mutated_text, mutated_values
from tests.fuzz.tensors import SHAPES
from titans_seq import Titans, UserError, presets
from titans_seq.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Pretrained, load_model
from titans_seq.config import Config

DTYPES = [*(torch.float64, torch.float16, torch.bfloat16), torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn]


BACKBONE = presets.debug("mag")
MODELS: dict[str, Callable[[], Pretrained]] = {
    "titans": lambda: Titans(BACKBONE),
    "text": lambda: TitansForCausalLM(TextConfig(titans=presets.debug("mac"))),
    "forecaster": lambda: TitansForecaster(ForecasterConfig(prediction_length=3, context_length=10, titans=BACKBONE, num_channels=2)),
}


@pytest.fixture(scope="module", params=MODELS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    MODELS[request.param]().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy, made anew for each test; each example writes the file that it damages."""
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


def largest(config: Config) -> int:
    """The largest integer in a configuration."""
    values = (getattr(config, field.name) for field in dataclasses.fields(config))
    return max((largest(x) if isinstance(x, Config) else x for x in values if isinstance(x, Config | int)), default=0)


def outputs(model: Pretrained, dtype: torch.dtype) -> list[Tensor]:
    """What a small input gives."""
    if isinstance(model, Titans):
        return [model(torch.randn(1, 5, model.config.dim, dtype=dtype))[0]]
    if isinstance(model, TitansForCausalLM):
        return [model(torch.randint(0, 257, (1, 5)))[0]]
    c = model.config
    past, calendar = torch.randn(1, c.context_length, c.num_channels), torch.zeros(1, c.context_length, c.num_time_features)
    ahead = torch.zeros(1, c.prediction_length, c.num_time_features)
    arguments, loc, scale = model(past.to(dtype), torch.ones_like(past), calendar.to(dtype), ahead.to(dtype))
    return [*arguments, loc, scale]


def check(folder: Path) -> None:
    try:
        model = load_model(folder)
    except UserError as error:
        assert str(folder) in str(error)
        str(error).encode()
        return
    parameters = dict(model.named_parameters())
    (dtype,) = {x.dtype for x in parameters.values()}
    assert dtype.is_floating_point
    assert all(torch.isfinite(x).all() for x in parameters.values())
    assert not any(x.is_meta for x in (*parameters.values(), *model.buffers()))
    size = max(float(x.detach().abs().max()) for x in parameters.values() if x.numel())
    if largest(model.config) > 2**14:
        return  # to run it would take the memory that it asks for
    with torch.inference_mode():
        finite = all(torch.isfinite(y).all() for y in outputs(model, dtype))
    assert finite or size > 100 or dtype == torch.float16, "damage without a trace, which the format cannot tell"


@FEWER
@given(data=st.data())
def test_config_values(folder: Path, original: Path, data: st.DataObject) -> None:
    values = json.loads((original / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(dumps(data.draw(mutated_values(values))))
    check(folder)


@FEWER
@given(data=st.data())
def test_config_text(folder: Path, original: Path, data: st.DataObject) -> None:
    text = data.draw(mutated_text((original / CONFIG_NAME).read_text()) | TOKENS | VALUES.map(dumps))
    (folder / CONFIG_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    check(folder)


@FEWER
@given(data=st.data())
def test_config_bytes(folder: Path, original: Path, data: st.DataObject) -> None:
    (folder / CONFIG_NAME).write_bytes(data.draw(mutated_bytes((original / CONFIG_NAME).read_bytes())))
    check(folder)


@FEWER
@given(data=st.data())
def test_weights_bytes(folder: Path, original: Path, data: st.DataObject) -> None:
    content = (original / WEIGHTS_NAME).read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    (folder / WEIGHTS_NAME).write_bytes(data.draw(mutated_bytes(content, head) | st.binary(max_size=40)))
    check(folder)


@FEWER
@given(data=st.data())
def test_a_header_that_lies(folder: Path, original: Path, data: st.DataObject) -> None:
    """Shapes, offsets and dtypes of another file, names that are not there, under a length that is right or not."""
    content = (original / WEIGHTS_NAME).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    changed = data.draw(mutated_values(header) | st.just(header))
    name = data.draw(st.sampled_from(sorted(header)))
    if isinstance(changed.get(name), dict):
        lies = {
            "shape": st.lists(st.sampled_from([0, 1, 2, 16, 2**31, 2**62, 2**63, 2**64, -1]), max_size=4),
            "data_offsets": st.lists(st.sampled_from([0, 4, 64, len(content), 2**63, 2**64 - 1, -1]), max_size=3),
            "dtype": st.sampled_from(["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U16", "X", ""]),
        }
        key = data.draw(st.sampled_from(sorted(lies)))
        changed[name] = {**changed[name], key: data.draw(lies[key])}
    text = dumps(changed).encode()
    told = data.draw(st.just(len(text)) | st.sampled_from([0, 1, len(text) - 1, len(text) + 1, 2**40, 2**63, 2**64 - 1]))
    (folder / WEIGHTS_NAME).write_bytes(told.to_bytes(8, "little") + text + content[8 + length :])
    check(folder)


@FEWER
@given(data=st.data())
def test_tensors_of_another_model(folder: Path, original: Path, data: st.DataObject) -> None:
    """Whole files with tensors missing, added, of other shapes and dtypes, or with values that are no numbers."""
    tensors = load((original / WEIGHTS_NAME).read_bytes())
    if data.draw(st.booleans()):
        dtype = data.draw(st.sampled_from(DTYPES))
        tensors = {name: x.to(dtype) for name, x in tensors.items()}
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        x = tensors.pop(name)
        what = data.draw(st.sampled_from(["missing", "renamed", "dtype", "shape", "value", "same"]))
        if what == "renamed":
            tensors[data.draw(st.text(st.characters(codec="utf-8"), max_size=5))] = x
        elif what == "dtype" and not x.is_complex():
            tensors[name] = x.to(data.draw(st.sampled_from(DTYPES)))
        elif what == "shape":
            tensors[name] = data.draw(st.sampled_from([*SHAPES.values()]))(x).contiguous() if x.dim() else x
        elif what == "value" and x.numel():
            tensors[name] = x.clone()
            real = x.is_floating_point() and x.element_size() > 1
            values = [0, 1, float("nan"), float("inf")] if real else [0, 1]
            tensors[name].view(-1)[data.draw(st.integers(0, x.numel() - 1))] = data.draw(st.sampled_from(values))
        elif what == "same":
            tensors[name] = x
    (folder / WEIGHTS_NAME).write_bytes(save(tensors))
    check(folder)
