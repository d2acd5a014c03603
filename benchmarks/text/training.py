"""How every language model of the benchmarks is trained and scored: the same text, steps and loss, whatever the model is.

Tokens are one tensor (N,) int64. A model that reads afresh is trained and scored on windows of T tokens; one that is carried reads its rows
in order, and takes its state along. Shapes: B rows, T tokens.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from domains.text.model import TitansForCausalLM
from titans_seq.losses import token_nats, total_nats
from titans_seq.state import State, flatten, unflatten
from titans_seq.training import TrainingConfig
from titans_seq.training.optimizer import make_optimizer

BITS = 1 / float(np.log(2))
"""In a nat."""
READ = 2048
"""Tokens that a stream is scored in at a time: changes nothing but speed."""


@dataclass(frozen=True)
class Batch:
    """tokens, targets: (B, T) int64, a target is the token after; begins: (B,) bool, rows that begin anew, with a fresh state."""

    tokens: Tensor
    targets: Tensor
    begins: Tensor


def batches(tokens: Tensor, training: TrainingConfig, document: int | None = None) -> Iterator[Batch]:
    """Without end: random windows, or with `carry_state` segments of rows that lie side by side in the text and begin anew after it.

    document: segments after which a carried row begins anew, each row at another step; None: at the text's end alone.
    """
    length, rows = training.segment_length, training.batch_size
    if training.carry_state:
        segments = (len(tokens) - 1) // rows // length
        if segments == 0:
            raise ValueError(f"{len(tokens)} tokens are too few for {rows} rows of {length}")
        starts = torch.arange(rows) * segments * length
        while True:
            for n in range(segments):
                begins = torch.full((rows,), n == 0)
                if document is not None:
                    begins |= (n + torch.arange(rows) * document // rows) % document == 0
                yield Batch(*_cut(tokens, starts + n * length, length), begins)
    generator = torch.Generator().manual_seed(training.seed)
    while True:
        yield Batch(
            *_cut(tokens, torch.randint(len(tokens) - length, (rows,), generator=generator), length), torch.ones(rows, dtype=torch.bool)
        )


def _cut(tokens: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Windows (B, T) that begin at starts (B,), and the token after each of theirs."""
    found = tokens[starts.unsqueeze(1) + torch.arange(length + 1)]
    return found[:, :-1], found[:, 1:]


@dataclass(frozen=True)
class Fitted:
    """losses: of each step, in nats a token; and the CPU seconds that all took."""

    losses: list[float]
    cpu_seconds: float


def fit(
    model: TitansForCausalLM,
    tokens: Tensor,
    training: TrainingConfig,
    on_step: Callable[[int, float], None] = lambda step, nats: None,
    checkpoint: Path | None = None,
    document: int | None = None,
) -> Fitted:
    """Train a model, which is then in evaluation mode.

    on_step: called with the steps done and the loss of the last one, in nats a token. checkpoint: a file that is written every
    `training.checkpoint_every` steps, and from which a training that was ended goes on. document: as of `batches`.
    """
    optimizer, schedule = make_optimizer(model.train(), training)
    before, state = Fitted([], 0.0), None
    if checkpoint is not None and checkpoint.exists():
        before, state = _restore(checkpoint, model, optimizer, schedule)
    losses, begin = list(before.losses), process_time() - before.cpu_seconds
    for step, batch in islice(enumerate(batches(tokens, training, document), 1), len(losses), training.max_steps):
        y, after = _read(model, batch, state)
        state = after.detach() if training.carry_state else None
        loss = total_nats(y.flatten(0, 1), model.output_weight, batch.targets.flatten()) / batch.targets.numel()
        optimizer.zero_grad()
        loss.backward()
        if training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the loss of step {step} is {losses[-1]}: this model diverged at learning_rate={training.learning_rate:g}"
            )
        on_step(step, losses[-1])
        if checkpoint is not None and step % training.checkpoint_every == 0:
            _keep(checkpoint, model, optimizer, schedule, Fitted(losses, process_time() - begin), state)
    model.eval()
    return Fitted(losses, process_time() - begin)


def _read(model: TitansForCausalLM, batch: Batch, state: Any) -> tuple[Tensor, Any]:
    """What the model makes of a batch, and the state after it."""
    if batch.begins.all():
        return model.hidden(batch.tokens)
    if not batch.begins.any():
        return model.hidden(batch.tokens, state)
    reset = torch.zeros(batch.tokens.shape, dtype=torch.bool)
    reset[:, 0] = batch.begins
    return model.hidden(batch.tokens, state, reset=reset)


def _keep(path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, fitted: Fitted, state: State | None) -> None:
    tensors: dict[str, Tensor] = {}
    structure = None if state is None else flatten(state, "state", tensors)
    of_training = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({**of_training, "fitted": asdict(fitted), "structure": structure, "tensors": tensors}, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def _restore(path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> tuple[Fitted, Any]:
    """What was done, and the state after it."""
    kept = torch.load(path, weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    schedule.load_state_dict(kept["schedule"])
    state = None if kept["structure"] is None else unflatten(kept["structure"], kept["tensors"])
    return Fitted(**kept["fitted"]), state


@torch.inference_mode()
def nats_at(model: TitansForCausalLM, tokens: Tensor, starts: Tensor, length: int, rows: int = 64) -> Tensor:
    """Nats of the `length` tokens after each of starts (B,), in windows that are read from a fresh state: (B, length)."""
    found = [_nats(model, *_cut(tokens, some, length)) for some in starts.split(rows)]
    return torch.cat(found).view(len(starts), length)


@torch.inference_mode()
def window_nats(model: TitansForCausalLM, tokens: Tensor, length: int, rows: int = 64) -> Tensor:
    """Nats of each token but the first, (N - 1,), read in windows of `length` that do not overlap, each from a fresh state."""
    whole = (len(tokens) - 1) // length
    found = nats_at(model, tokens, torch.arange(whole) * length, length, rows).flatten() if whole else torch.empty(0)
    rest = tokens[whole * length :].unsqueeze(0)
    return torch.cat([found, _nats(model, rest[:, :-1], rest[:, 1:])]) if rest.shape[1] > 1 else found


def _nats(model: TitansForCausalLM, tokens: Tensor, targets: Tensor) -> Tensor:
    return token_nats(model.hidden(tokens)[0].flatten(0, 1), model.output_weight, targets.flatten())


@torch.inference_mode()
def stream_nats(model: TitansForCausalLM, tokens: Tensor) -> Tensor:
    """Nats of each token but the first, (N - 1,), read in one stream from a fresh state."""
    state, found = None, []
    for start in range(0, len(tokens) - 1, READ):
        read = tokens[start : start + READ + 1]
        y, state = model.hidden(read[None, :-1], state)
        found.append(token_nats(y[0], model.output_weight, read[1:]))
    return torch.cat(found)
