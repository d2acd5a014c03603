"""Forecasters on disk: what was saved comes back, with its output and backbone, and yesterday's still loads."""

from pathlib import Path

import pytest
import torch
from gluonts.torch.distributions import LaplaceOutput, NegativeBinomialOutput, NormalOutput, Output, QuantileOutput, StudentTOutput
from safetensors.torch import load_file

from domains.timeseries import presets
from domains.timeseries.config import ForecasterConfig, OutputConfig
from domains.timeseries.model import TitansForecaster
from domains.timeseries.outputs import describe_output, make_output

GOLDEN = Path(__file__).parents[2] / "titans_seq" / "golden" / "forecaster"


def test_the_golden_forecaster_gives_its_stored_quantiles() -> None:
    model = TitansForecaster.from_pretrained(GOLDEN)
    assert model.config == presets.debug()
    example = load_file(GOLDEN / "example.safetensors")
    with torch.inference_mode():
        (quantiles,), _, _ = model(example["context"], torch.ones_like(example["context"]))
    torch.testing.assert_close(quantiles, example["quantiles"], rtol=1e-5, atol=1e-5)


OUTPUTS = [QuantileOutput([0.05, 0.5]), NormalOutput(), StudentTOutput(beta=0.5), LaplaceOutput(), NegativeBinomialOutput()]


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: type(output).__name__)
def test_the_output_comes_back(output: Output, tmp_path: Path) -> None:
    values = presets.debug().to_dict() | {"output": describe_output(output).to_dict()}
    model = TitansForecaster(ForecasterConfig.from_dict(values)).eval()
    model.save_pretrained(tmp_path)
    loaded = TitansForecaster.from_pretrained(tmp_path)
    assert type(loaded.distr_output) is type(output)
    assert describe_output(loaded.distr_output) == describe_output(output) == describe_output(make_output(describe_output(output)))
    context = torch.randn(1, 10, 2)
    for kept, given in zip(loaded(context, torch.ones_like(context))[0], model(context, torch.ones_like(context))[0], strict=True):
        assert torch.equal(kept, given)


@pytest.mark.parametrize("quantiles", [(), (0.5, 0.1), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5), (float("nan"),)])
def test_quantiles_must_be_levels_in_order(quantiles: tuple) -> None:
    with pytest.raises(ValueError, match=r"OutputConfig.quantiles must be"):
        OutputConfig(quantiles=quantiles)
