"""Run by each rank: the language model's training on the folder of texts given. Arguments: texts, output, strategy, devices."""

import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from domains.text.model import TextConfig
from domains.text.train import train
from tests.titans_seq.training.small import SMALL, TINY

MODEL = TextConfig(titans=replace(SMALL, num_layers=2, variant="mac", dropout=0.0))
TRAINING = replace(TINY, max_steps=10, batch_size=6, segment_length=12, ema_decay=None, checkpoint_every=2, log_every=1)


def main(texts: str, output: str, strategy: str, devices: str) -> None:
    """Goes on from the newest checkpoint, if there is one."""
    warnings.simplefilter("ignore")
    Path(output).mkdir(exist_ok=True)
    (Path(output) / f"pid-{os.environ['TORCHELASTIC_RESTART_COUNT']}-{os.environ['RANK']}").write_text(str(os.getpid()))
    config = replace(TRAINING, strategy=strategy, devices=int(devices))
    train([Path(texts)], output, MODEL, config, resume=True, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
