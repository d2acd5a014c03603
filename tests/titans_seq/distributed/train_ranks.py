"""Run by each rank: the language model's training on the folder of texts given. Arguments: texts, output, strategy, devices."""

import os
import sys
import warnings
from pathlib import Path

import torch

from domains.text.model import TextConfig
from domains.text.train import train
from titans_seq import AttentionConfig, MemoryConfig, TitansConfig
from titans_seq.training import TrainingConfig

MODEL = TextConfig(
    titans=TitansConfig(
        dim=16,
        num_layers=2,
        variant="mac",
        memory=MemoryConfig(num_heads=1, expansion=1, chunk_size=4),
        attention=AttentionConfig(num_heads=1, segment_length=8, persistent_tokens=1),
    )
)
TRAINING = TrainingConfig(
    learning_rate=1e-2,
    max_steps=10,
    warmup_steps=2,
    batch_size=6,
    accumulate=2,
    segment_length=12,
    document_length=50,
    validate_every=5,
    checkpoint_every=2,
    log_every=1,
)


def main(texts: str, output: str, strategy: str, devices: str) -> None:
    """Goes on from the newest checkpoint, if there is one."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    Path(output).mkdir(exist_ok=True)
    (Path(output) / f"pid-{os.environ['TORCHELASTIC_RESTART_COUNT']}-{os.environ['RANK']}").write_text(str(os.getpid()))
    config = TrainingConfig.from_dict(TRAINING.to_dict() | {"strategy": strategy, "devices": int(devices)})
    train([Path(texts)], output, MODEL, config, resume=True, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
