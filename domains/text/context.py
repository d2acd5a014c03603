"""What was read before: a state to go on from, kept, forked, saved. A long text is read once, and asked as often as one likes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from domains.text.data.sources import Block
from domains.text.model import TitansForCausalLM
from titans_seq.backbone import TitansState
from titans_seq.config import EXACT
from titans_seq.errors import UserError
from titans_seq.losses import IGNORED
from titans_seq.state import State

SEGMENT = 4096
"""Tokens that are read at a time."""


@dataclass(frozen=True)
class Context(State):
    """Texts that were read, one a row; its size does not grow with them.

    state: before the last token of each row. last: (B,) int64, that token, of which the next one's logits are made. length: (B,) int64,
    tokens of each row, `last` and the end that stands before the text among them.
    """

    state: TitansState
    last: Tensor
    length: Tensor

    def save_for(self, model: TitansForCausalLM, path: str | Path) -> None:
        """Write to a safetensors file that `load_context` reads, for this model alone."""
        self.save(path, model.identity())


def load_context(model: TitansForCausalLM, path: str | Path, owner: str | None = None) -> Context:
    """Read what `Context.save_for` wrote, onto the model's device. owner: `model.identity()`, where it is known: it is made of all weights.

    Raises:
        UserError: the file is missing, damaged, or of another model.
    """
    context = Context.load(path, model.output_weight.device, owner or model.identity())
    last, length = context.last, context.length
    if not last.dtype == length.dtype == torch.int64 or last.dim() != 1 or last.shape != length.shape:
        raise UserError(f"{path}: damaged, last {tuple(last.shape)} {last.dtype} and length {tuple(length.shape)} {length.dtype}.")
    if bool(((last < 0) | (last >= model.config.vocabulary) | (length < 1) | (length > EXACT)).any()):
        raise UserError(f"{path}: damaged, the model has no such token, or no text is so long.")
    try:
        with torch.no_grad():
            y, _ = model.hidden(context.last[:, None], context.state)
    except ValueError as error:
        raise UserError(f"{path}: damaged, {error}") from error
    if not bool(y.isfinite().all()):
        raise UserError(f"{path}: damaged, with what it holds the model comes to no finite numbers.")
    return context


def read_length(path: str | Path, owner: str) -> int:
    """Tokens of the one text in a file of `Context.save_for`. The file's header is checked, and its tensors but this one are not read.

    Raises:
        UserError: the file is missing, its header damaged, it is of another model than `owner`, or holds several texts.
    """
    Context.load(path, "meta", owner)
    try:
        with safe_open(str(path), framework="pt") as file:
            length = file.get_tensor("state.length")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}).") from error
    if length.numel() != 1:
        raise UserError(f"{path}: holds {length.numel()} texts, expected one.")
    return int(length)


@torch.no_grad()
def begin(model: TitansForCausalLM, rows: int = 1) -> Context:
    """Before the first token of `rows` texts: the end of a document before them was read."""
    device = model.output_weight.device
    last = torch.full((rows,), model.config.end, device=device)
    return Context(model.init_state(rows).detach(), last, torch.ones_like(last))


@torch.no_grad()
def extend(
    model: TitansForCausalLM, context: Context, tokens: Sequence[np.ndarray], on_read: Callable[[int], None] = lambda count: None
) -> Context:
    """Read on: `tokens` are (T,) integers for each row, of any lengths, none among them. on_read: called with tokens that were read.

    Raises:
        ValueError: not one for each row.
    """
    if len(tokens) != len(context.last):
        raise ValueError(f"tokens must be given for each of {len(context.last)} rows, got {len(tokens)}")
    for part in segments(tokens):
        _, _, context = read_segment(model, context, part)
        on_read(sum(map(len, part)))
    return context


def segments(tokens: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """`SEGMENT` tokens of each row at a time; of a row that has ended, none."""
    for start in range(0, max(map(len, tokens), default=0), SEGMENT):
        yield [row[start : start + SEGMENT] for row in tokens]


@torch.no_grad()
def read_segment(model: TitansForCausalLM, context: Context, tokens: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Context]:
    """Read at once: the last token before, and `tokens`, (T,) integers for each row, but for the final one.

    Returns:
        What the logits of each token are made of (`model.logits_of`), (B, T, dim), T being the length of the longest row; the tokens
        themselves, (B, T) int64, `IGNORED` at padding, which is on the right; and the context after them.
    """
    device, counts = context.last.device, torch.tensor([len(row) for row in tokens])
    last, size = context.last.tolist(), int(counts.max())
    read, following = torch.zeros(len(tokens), size, dtype=torch.int64), torch.full((len(tokens), size), IGNORED)
    for i, row in enumerate(tokens):
        if len(row):
            part = row.astype(np.int64)
            read[i, : len(row)] = torch.from_numpy(np.concatenate([[last[i]], part[:-1]]))
            following[i, : len(row)] = torch.from_numpy(part)
            last[i] = int(part[-1])
    mask = following != IGNORED
    y, state = model.hidden(read.to(device), context.state, mask=None if mask.all() else mask.to(device))
    return y, following.to(device), Context(state, torch.tensor(last, device=device), context.length + counts.to(device))


def read_documents(
    model: TitansForCausalLM, blocks: Iterable[Block], context: Context | None = None, on_read: Callable[[int], None] = lambda count: None
) -> Context:
    """Read documents, however long, as one, with the end of a document between two; from `context`, of one row, or from the begin.

    Each block is tokenised by itself.
    """
    context, between = begin(model) if context is None else context, False
    for block in blocks:
        if block.text:
            tokens = np.concatenate([[model.config.end][: int(between)], *model.tokenizer.encode_batch([block.text])])
            context, between = extend(model, context, [tokens], on_read), block.last
    return context
