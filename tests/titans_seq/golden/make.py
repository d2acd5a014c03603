"""Make the golden files anew, when a parameter's name, a preset or the mathematics has changed on purpose:

python tests/titans_seq/golden/make.py
"""

import inspect
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from titans_seq import Titans, presets
from titans_seq.config import VARIANTS

HERE = Path(__file__).parent


def make_presets() -> None:
    """presets.json: every preset of every variant."""
    functions = {name: function for name, function in vars(presets).items() if inspect.isfunction(function)}
    snapshot = {name: {variant: preset(variant).to_dict() for variant in VARIANTS} for name, preset in functions.items()}
    (HERE / "presets.json").write_text(json.dumps(snapshot, indent=1) + "\n")


def make_checkpoint(variant: str) -> None:
    """<variant>/: a checkpoint with large random weights, an input, and the output for it."""
    torch.manual_seed(0)
    model = Titans(presets.debug(variant)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        x = torch.randn(2, 29, model.config.dim)
        y, _ = model(x)
    model.save_pretrained(HERE / variant)
    save_file({"input": x, "output": y}, HERE / variant / "example.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_presets()
    for variant in VARIANTS:
        make_checkpoint(variant)
