"""Trainings one after another, each from the model before it. A stage that ended is kept, for whatever begins with the same ones."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from time import process_time

from benchmarks.machine import source_digest
from benchmarks.text.baselines import BaselineForCausalLM
from domains.text.config import TextConfig
from domains.text.tasks import Task
from domains.text.tasks.train import train
from titans_seq.training import TrainingConfig

Stage = tuple[Task, TrainingConfig]
SECONDS = "cpu_seconds"
"""File of a kept model's folder: what its own stage took."""
SOURCES = ("titans_seq", "domains/text", "benchmarks/text/baselines.py", "benchmarks/speed/baselines.py")
"""What a trained model depends on, beside its settings."""
CODE = source_digest(SOURCES)
"""As it is imported: what is written while a run goes on is not what trains there."""


def train_stages(
    stages: Iterable[Stage], kind: type[BaselineForCausalLM], config: TextConfig, kept: Path, count: int | None = None
) -> tuple[BaselineForCausalLM, float]:
    """The trained model, and the CPU seconds of all of its stages.

    A stage is found again in `kept` only by the same code (`SOURCES`), after the same stages. Of one that is ended within, nothing
    is kept: what it took would not be known.

    Args:
        stages: tasks, and how the model is trained on each.
        kind, config: of the model.
        kept: folder of the models of all stages; made where it is not there.
        count: examples that there are to train on; None for new ones at every step.
    """
    before = [CODE, kind.__name__, config.to_dict(), count]
    model, seconds = None, 0.0
    for task, plan in stages:
        before = [*before, task.name, task.settings(), asdict(plan)]
        folder = kept / sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:16]
        if not folder.exists():
            _train(task, plan, kind, config, folder, count, model)
        model, seconds = folder, seconds + float((folder / SECONDS).read_text())
    assert model is not None, "no stages"
    return kind.from_pretrained(model), round(seconds, 1)


def _train(
    task: Task,
    plan: TrainingConfig,
    kind: type[BaselineForCausalLM],
    config: TextConfig,
    folder: Path,
    count: int | None,
    start: Path | None,
) -> None:
    """One stage, into a folder that is there once it is whole."""
    steps = plan.max_steps
    plan = replace(plan, validate_every=steps, checkpoint_every=steps, log_every=min(steps, 50))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        begin = process_time()
        model = train(task, Path(temporary) / "run", config, plan, start=start, count=count, make_model=kind, progress=False)
        (model / SECONDS).write_text(f"{process_time() - begin:.1f}\n")
        try:
            model.rename(folder)
        except OSError:
            if not folder.exists():  # else another run has trained the same meanwhile
                raise
