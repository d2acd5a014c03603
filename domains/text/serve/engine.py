"""The one thread on which the model runs. Every request's work is an iterator of steps; each has a step in turn."""

import asyncio
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from domains.text.serve.errors import ApiError, ClientLeftError

T = TypeVar("T")


class Run(Generic[T]):
    """A request's work while it runs: an asynchronous iterator of what its steps give, for the event loop's thread."""

    def __init__(self, steps: Generator[T, None, None]) -> None:
        self._steps, self._loop = steps, asyncio.get_running_loop()
        self._found: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._stopped: Exception | None = None

    def stop(self, error: Exception) -> None:
        """Make no further step; what waits for the next one gets `error`."""
        if self._stopped is None:
            self._stopped = error
            self._found.put_nowait(None)

    def step(self) -> bool:
        """On the model's thread: one step, and whether there are more."""
        if self._stopped is not None:
            self._steps.close()
            return False
        found: T | Exception | None
        try:
            found = next(self._steps, None)
        except Exception as error:  # noqa: BLE001 - the request's, which is told of it; the others go on
            found = error
        self._loop.call_soon_threadsafe(self._found.put_nowait, found)
        return found is not None and not isinstance(found, Exception)

    def __aiter__(self) -> "Run[T]":
        return self

    async def __anext__(self) -> T:
        found = await self._found.get()
        if self._stopped is not None:
            raise self._stopped
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise StopAsyncIteration
        return found


class Engine:
    """Runs requests' steps one after the other, a step of each in turn.

    max_requests: that may run at a time.
    """

    def __init__(self, max_requests: int) -> None:
        self._max = max_requests
        self._runs: set[Run[Any]] = set()
        self._places = 0
        self._closing: ApiError | None = None
        self._waiting: queue.SimpleQueue[Run[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return self._places

    @contextmanager
    def place(self) -> Iterator[None]:
        """Be one of the requests that may run, for the block.

        Raises:
            ApiError: 429, too many run already; 503, the server is ending.
        """
        if self._closing is not None:
            raise self._closing
        if self._places >= self._max:
            message = f"{self._places} requests are running, which is the limit. Try again later."
            raise ApiError(429, message, "too_many_requests", headers={"Retry-After": "1"})
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    @contextmanager
    def run(self, steps: Generator[T, None, None]) -> Iterator[Run[T]]:
        """The steps' results, until the end of the block, which stops them. For a request that has its place.

        Raises:
            ApiError: 503, the server is ending.
        """
        if self._closing is not None:
            raise self._closing
        run = Run(steps)
        self._runs.add(run)
        self._waiting.put(run)
        try:
            yield run
        finally:
            self._runs.discard(run)
            run.stop(ClientLeftError())

    def stop_all(self) -> None:
        """Stop what runs and take on nothing more; requests are answered with 503."""
        self._closing = ApiError(503, "the server is ending; the request was stopped, and a session is as it was before.", "server_ending")
        for run in self._runs:
            run.stop(self._closing)

    async def close(self) -> None:
        """As `stop_all`, and wait for the thread's end."""
        self.stop_all()
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (run := self._waiting.get()) is not None:
            if run.step():
                self._waiting.put(run)
        while not self._waiting.empty() and (run := self._waiting.get()) is not None:
            run.step()  # it was stopped: this closes it
