"""A completion as steps of the model: the state that it goes on from, its prompts in pieces, its texts token by token."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from domains.text.config import GenerationConfig
from domains.text.context import Context, begin, read_segment
from domains.text.generate import Rows, fork
from domains.text.model import TitansForCausalLM
from domains.text.serve.logprobs import RowLogprobs
from titans_seq.decoding import Decoder

PIECE = 256
"""Tokens of a prompt that are read at a step: others wait for no longer."""


@dataclass(frozen=True)
class Job:
    """What a request asks for, checked.

    prompts: tokens of each. texts: of each, to repeat. generation: of what comes; None to read alone. samples: texts of each prompt.
    echo: repeat the prompts. logprobs: how many likeliest tokens are named; None for none. load: reads what the prompt goes on from;
    None for the begin of a document. keep: whether the context after the text is wanted.
    """

    prompts: list[np.ndarray]
    texts: list[str]
    generation: GenerationConfig | None
    samples: int = 1
    echo: bool = False
    logprobs: int | None = None
    load: Callable[[], Context] | None = None
    keep: bool = False

    @property
    def rows(self) -> range:
        """Numbers of the texts."""
        return range(len(self.prompts) * self.samples)


@dataclass(frozen=True)
class Delta:
    """More of a text. row: prompt times samples plus sample. reason: with its last piece, "stop" or "length"."""

    row: int
    text: str
    logprobs: dict[str, Any] | None
    reason: str | None = None


@dataclass(frozen=True)
class Step:
    """What a step gave: tokens of prompts that were read, tokens that were made, texts, and, before a text's last piece is shown, the
    context after it, on the CPU.
    """

    read: int = 0
    made: int = 0
    deltas: list[Delta] = field(default_factory=list)
    kept: Context | None = None


def work(model: TitansForCausalLM, decoder: Decoder, job: Job) -> Generator[Step, None, None]:
    """The steps of a job; the first loads what it goes on from.

    Raises:
        UserError: what it goes on from cannot be loaded.
    """
    context = begin(model) if job.load is None else job.load()
    yield Step()
    context = fork(context, len(job.prompts))
    befores = context.last.tolist() if job.echo and job.logprobs is not None else []
    echoes = [_Echo(model, job.logprobs or 0, before) for before in befores]
    for start in range(0, max(map(len, job.prompts)), PIECE):
        parts = [prompt[start : start + PIECE] for prompt in job.prompts]
        y, _, context = read_segment(model, context, parts)
        for row, echo in enumerate(echoes):
            with torch.no_grad():
                echo.add(parts[row].tolist(), model.logits_of(y[row, : len(parts[row])]).float().cpu())
        yield Step(read=sum(map(len, parts)))
    context = context.select(torch.arange(len(job.prompts), device=context.last.device).repeat_interleave(job.samples))
    if job.echo:
        given: list[dict[str, Any] | None] = [echo.logprobs.take() for echo in echoes] if echoes else [None] * len(job.prompts)
        yield Step(deltas=[Delta(row, job.texts[row // job.samples], given[row // job.samples]) for row in job.rows])
    if job.generation is None:
        yield Step(deltas=[Delta(row, "", None, "length") for row in job.rows], kept=context.to("cpu") if job.keep else None)
        return
    yield from _go_on(model, decoder, context, job, job.generation)


class _Echo:
    """Log-probabilities of a prompt's tokens, the same for each of its texts."""

    def __init__(self, model: TitansForCausalLM, top: int, after: int) -> None:
        self.logprobs, self._decoder, self._place = RowLogprobs(model.tokenizer, top, after), model.tokenizer.decoder(after), 0

    def add(self, tokens: list[int], logits: torch.Tensor) -> None:
        places = []
        for token in tokens:
            places.append(self._place)
            self._place += len(self._decoder.add(token))
        self.logprobs.add(tokens, logits, places)


def _go_on(model: TitansForCausalLM, decoder: Decoder, context: Context, job: Job, config: GenerationConfig) -> Iterator[Step]:
    rows = Rows(model, context, [prompt for prompt in job.prompts for _ in range(job.samples)], config, decoder)
    before = [len(text) if job.echo else 0 for text in job.texts for _ in range(job.samples)]
    last = context.last.tolist() if job.logprobs is not None else []
    logprobs = [RowLogprobs(model.tokenizer, job.logprobs or 0, after) for after in last]
    while not rows.ended:
        counts = [len(output.tokens) for output in rows.outputs]
        pieces = rows.step()
        made = [row for row in job.rows if len(rows.outputs[row].tokens) > counts[row]]
        for row in made if logprobs else ():
            output = rows.outputs[row]
            logprobs[row].add(output.tokens[-1:], rows.logits[row : row + 1], [before[row] + output.places[-1]])
        deltas, kept = [], None
        for piece in pieces:
            reason = None if piece.ended is None else piece.ended.reason
            certain = None if reason in ("end", "length") else before[piece.row] + len(rows.texts[piece.row])
            given = logprobs[piece.row].take(certain) if logprobs else None
            deltas.append(Delta(piece.row, piece.text, given, "stop" if reason == "end" else reason))
            if piece.ended is not None and job.keep:
                kept = piece.ended.context.to("cpu")
        yield Step(made=len(made), deltas=deltas, kept=kept)
