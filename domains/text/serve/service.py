"""What the server does, apart from HTTP: completions, and the states that go into sessions and come out of them."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from starlette.types import Receive

from domains.text.config import GenerationConfig
from domains.text.context import Context, begin, load_context
from domains.text.model import TitansForCausalLM
from domains.text.serve.engine import Engine, Run
from domains.text.serve.errors import ApiError, ClientLeftError
from domains.text.serve.limits import Limits
from domains.text.serve.schema import CompletionRequest
from domains.text.serve.sessions import Session, Sessions
from domains.text.serve.work import Job, Step, work
from titans_seq.config import ConfigError
from titans_seq.decoding import Decoder
from titans_seq.errors import UserError

log = logging.getLogger("titans_seq.serve")
HEADER_ROOM, HEADER_BYTES = 1 << 16, 1 << 10
"""Bytes of a state's file beside its tensors, and beside each tensor, at most."""


@dataclass
class Tally:
    """What was done: of one request, or of all."""

    requests: int = 0
    read: int = 0
    made: int = 0
    outcome: str = "failed"
    began: float = field(default_factory=time.perf_counter)


class Service:
    """A model that answers, and the sessions that it remembers.

    Args:
        model: in evaluation mode.
        name: that requests call it by.
        limits: what is taken on.
        folder: of the sessions; None for none.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, model: TitansForCausalLM, name: str, limits: Limits, folder: Path | None) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.identity = model.identity()
        self.engine, self.total = Engine(limits.max_requests), Tally()
        self._sessions = None if folder is None else Sessions(folder, self.identity, limits.max_sessions)
        self._decoder, self._empty = Decoder(model), begin(model).to("cpu").clone()
        self.max_state_bytes = limits.max_state_bytes or self._empty.nbytes + HEADER_ROOM + HEADER_BYTES * len(self._empty.tensors())

    @property
    def sessions(self) -> Sessions:
        """The sessions.

        Raises:
            ApiError: 400, the server keeps none.
        """
        if self._sessions is None:
            raise ApiError(400, "this server keeps no sessions; start it with --sessions FOLDER.", "no_sessions", "session")
        return self._sessions

    async def close(self) -> None:
        """Stop what runs, and leave the sessions' folder."""
        await self.engine.close()
        if self._sessions is not None:
            self._sessions.close()

    def health(self) -> dict[str, str | int]:
        """What is going on, and what was done since the start."""
        found: dict[str, str | int] = {"status": "ok", "model": self.name, "running": self.engine.running}
        if self._sessions is not None:
            found["sessions"] = len(self._sessions)
        return found | {"requests": self.total.requests, "tokens_read": self.total.read, "tokens_made": self.total.made}

    def job_of(self, request: CompletionRequest) -> Job:
        """Check a request against model and limits, and tokenise its prompts. On any thread.

        Raises:
            ApiError: 400, 404, 413 or 422, with the parameter that is to be changed.
        """
        limits = self.limits
        if request.model != self.name:
            raise ApiError(404, f"this server's model is {self.name!r}, not {request.model[:200]!r}.", "model_not_found", "model")
        _check_most("n", "prompts times n", len(request.prompt) * request.n, limits.max_choices)
        _check_most("max_tokens", "max_tokens", request.max_tokens, limits.max_new_tokens)
        tokens = [self._tokens(prompt) for prompt in request.prompt]
        longest = max(map(len, tokens))
        if longest > limits.max_prompt_tokens:
            message = f"a prompt has {longest:,} tokens, the limit is {limits.max_prompt_tokens:,}. A session reads a text in parts."
            raise ApiError(413, message, "prompt_too_long", "prompt")
        if request.logprobs is not None:
            echoed = sum(map(len, tokens)) if request.echo else 0
            named = request.n * (echoed + len(tokens) * request.max_tokens)
            _check_most("logprobs", "the number of tokens with logprobs (with echo those of the prompts too)", named, limits.max_logprobs)
        texts = [prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt) for prompt in request.prompt]
        return Job(tokens, texts, _generation(request), request.n, request.echo, request.logprobs)

    @asynccontextmanager
    async def completing(self, job: Job, session: str | None, receive: Receive) -> AsyncIterator[AsyncIterator[Step]]:
        """The steps of a job, begun: what it goes on from was loaded. The end of the block, or of the client, stops it.

        A session's new state is on the disk before the text's last piece is given. Stopped before that, the session is as it was.

        Raises:
            ApiError: the session cannot be had, or too much is running.
        """
        tally = Tally()
        with nullcontext() if session is None else self.sessions.claimed(session):
            if session is not None:
                job = replace(job, load=partial(self.sessions.read, session, self._load), keep=True)
            with self.engine.place(), self.engine.run(work(self.model, self._decoder, job)) as run:
                try:
                    async with _stopped_when_left(receive, run):
                        steps = self._steps(run, session, tally)
                        await anext(steps)
                        yield steps
                finally:
                    self._log(job, session, tally)

    async def _steps(self, run: Run[Step], session: str | None, tally: Tally) -> AsyncIterator[Step]:
        try:
            async for step in run:
                tally.read, tally.made = tally.read + step.read, tally.made + step.made
                self.total.read, self.total.made = self.total.read + step.read, self.total.made + step.made
                if session is not None and step.kept is not None:  # the last step: what is kept is answered, also at the server's end
                    await self.sessions.keep(session, step.kept)
                    tally.outcome = "done"
                    yield step
                    return
                yield step
            tally.outcome = "done"
        except ClientLeftError:
            tally.outcome = "left"
            raise

    def _log(self, job: Job, session: str | None, tally: Tally) -> None:
        self.total.requests += 1
        seconds = time.perf_counter() - tally.began
        log.info(
            "completion %s: texts=%d read=%d made=%d seconds=%.2f made_per_second=%.1f session=%s running=%d",
            *(tally.outcome, len(job.rows), tally.read, tally.made, seconds, tally.made / seconds, session or "-", self.engine.running),
        )

    async def import_state(self, id: str, chunks: AsyncIterator[bytes]) -> Session:
        """A new session of a state that is received, when it has a place.

        Raises:
            ApiError: 422, it is no state of this model; as `Sessions.reserved` and `Engine.place`.
        """
        with self.sessions.reserved(id), self.engine.place(), self.sessions.temporary() as path:
            with path.open("wb") as file:
                async for chunk in chunks:
                    file.write(chunk)
            with self.engine.run(self._loading(path)) as run:
                try:
                    context = await anext(run)
                except UserError as error:
                    reason = str(error).removeprefix(f"{path}: ")
                    raise ApiError(422, f"the body is no state of a session: {reason}", "unusable_state") from error
            return await self.sessions.keep(id, context)

    def _loading(self, path: Path) -> Generator[Context, None, None]:
        yield self._load(path, self.identity).to("cpu")

    def new_state(self) -> Context:
        """Of a session in which nothing was read."""
        return self._empty

    def _load(self, path: Path, owner: str) -> Context:
        context = load_context(self.model, path, owner)
        if len(context.last) != 1:
            raise UserError(f"{path}: holds {len(context.last)} texts, expected one.")
        return context

    def _tokens(self, prompt: str | list[int]) -> np.ndarray:
        if isinstance(prompt, str):
            return self.model.tokenizer.encode_batch([prompt])[0]
        vocabulary = self.model.config.vocabulary
        if prompt and not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise ApiError(400, f"prompt: tokens are from 0 to {vocabulary - 1}, got {min(prompt)} to {max(prompt)}", "no_token", "prompt")
        return np.array(prompt, dtype=np.int64)


def _check_most(param: str, what: str, given: int, most: int) -> None:
    if given > most:
        raise ApiError(422, f"{what} is {given:,}, this server's limit is {most:,}", "over_limit", param)


def _generation(request: CompletionRequest) -> GenerationConfig | None:
    """How to go on; None for not at all. Checked in both cases."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    try:
        found = GenerationConfig(
            **{name: getattr(request, name) for name in names},
            max_tokens=max(request.max_tokens, 1),
            stop=tuple(request.stop),
            seed=secrets.randbelow(2**63) if request.seed is None else request.seed,
        )
    except ConfigError as error:
        raise ApiError(400, f"{error.path[0]}{error.problem}", "invalid_value", error.path[0]) from error
    return found if request.max_tokens else None


@asynccontextmanager
async def _stopped_when_left(receive: Receive, run: Run[Step]) -> AsyncIterator[None]:
    """Stop the run when the client has closed the connection, during the block."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        run.stop(ClientLeftError())

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
