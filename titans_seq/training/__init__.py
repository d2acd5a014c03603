"""Training for all domains, on Lightning's Trainer (docs/training.md).

config.py the settings; optimizer.py parameter groups and learning rate; documents.py and loaders.py what is read; module.py what a domain's
model offers and the step; checkpoints.py and best.py what is kept on disk; folder.py the run's folder; metrics.py and progress.py what is
written and shown; trainer.py makes the trainer and ends what is interrupted; run.py puts them together.

Importing this package loads no Lightning: its modules are imported by name (`from titans_seq.training.run import train`).
"""

from titans_seq.training.config import TrainingConfig

__all__ = ["TrainingConfig"]
