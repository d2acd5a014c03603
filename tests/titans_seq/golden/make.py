"""Make golden files anew, when a parameter's name or the mathematics has changed on purpose:

python tests/titans_seq/golden/make.py format-1 forecaster

lmm, mag and mal were written before config.json had a format number. As long as they can be read they stay as they are.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from domains.timeseries import presets as timeseries
from domains.timeseries.model import TitansForecaster
from titans_seq import Titans, presets
from titans_seq.card import Card
from titans_seq.checkpoint import Pretrained
from titans_seq.config import VARIANTS

HERE = Path(__file__).parent
CARD = Card(title="Golden file", data="Random numbers.", metrics={"loss": 0.5}, command="python tests/titans_seq/golden/make.py")


def randomise(model: Pretrained) -> None:
    """Large weights, so that an error shows in the output."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)


def make_backbone(name: str, variant: str) -> None:
    """A checkpoint, an input, and the output for it."""
    torch.manual_seed(0)
    model = Titans(presets.debug(variant)).eval()
    randomise(model)
    with torch.no_grad():
        x = torch.randn(2, 29, model.config.dim)
        y, _ = model(x)
    model.save_pretrained(HERE / name, card=CARD)
    save_file({"input": x, "output": y}, HERE / name / "example.safetensors")


def make_forecaster() -> None:
    """A checkpoint of the time-series domain, a context and the quantiles for it."""
    torch.manual_seed(0)
    model = TitansForecaster(timeseries.debug()).eval()
    randomise(model)
    with torch.no_grad():
        context = torch.randn(2, model.config.context_length, model.config.num_channels)
        (quantiles,), _, _ = model(context, torch.ones_like(context))
    model.save_pretrained(HERE / "forecaster", card=CARD)
    save_file({"context": context, "quantiles": quantiles.contiguous()}, HERE / "forecaster" / "example.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or sys.exit(__doc__):
        if wanted == "forecaster":
            make_forecaster()
        else:
            make_backbone(wanted, wanted if wanted in VARIANTS else "mac")
