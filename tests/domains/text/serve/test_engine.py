"""The model's thread: a step of each request in turn, errors to whom they belong, no step after the end."""

import asyncio
import threading
from collections.abc import Generator

import pytest

from domains.text.serve.engine import Engine
from domains.text.serve.errors import ApiError, ClientLeftError


def test_requests_take_turns_step_by_step() -> None:
    order: list[str] = []
    all_there = threading.Event()

    def steps(name: str, count: int) -> Generator[int, None, None]:
        for number in range(count):
            all_there.wait(60)
            order.append(name)
            yield number

    async def main() -> None:
        engine = Engine(3)
        with engine.run(steps("a", 4)) as a, engine.run(steps("b", 2)) as b, engine.run(steps("c", 3)) as c:
            all_there.set()
            assert [[found async for found in run] for run in (a, b, c)] == [[0, 1, 2, 3], [0, 1], [0, 1, 2]]
        await engine.close()

    asyncio.run(main())
    assert "".join(order) == "abcabcaca"


def test_what_is_stopped_makes_no_step_more_and_is_closed() -> None:
    made, closed, go_on = [], threading.Event(), threading.Event()

    def steps() -> Generator[int, None, None]:
        try:
            for number in range(1000):
                made.append(number)
                yield number
                go_on.wait(60)
        finally:
            closed.set()

    async def main() -> None:
        engine = Engine(1)
        with engine.run(steps()) as run:
            assert await anext(run) == 0
            run.stop(ClientLeftError())
            with pytest.raises(ClientLeftError):
                await anext(run)
        go_on.set()
        await engine.close()

    asyncio.run(main())
    assert closed.is_set()
    assert len(made) <= 2  # the one that ran


def test_an_error_is_its_requests_alone() -> None:
    def fails() -> Generator[int, None, None]:
        yield 1
        raise RuntimeError("of this request")

    def works() -> Generator[int, None, None]:
        yield from range(3)

    async def main() -> None:
        engine = Engine(2)
        with engine.run(fails()) as bad, engine.run(works()) as good:
            with pytest.raises(RuntimeError, match="of this request"):
                [found async for found in bad]
            assert [found async for found in good] == [0, 1, 2]
        await engine.close()
        with pytest.raises(ApiError) as refused, engine.run(works()):
            pass
        assert refused.value.status_code == 503

    asyncio.run(main())


def test_requests_have_places_until_they_end() -> None:
    async def main() -> None:
        engine = Engine(2)
        with engine.place():
            with pytest.raises(RuntimeError), engine.place():
                raise RuntimeError
            with engine.place(), pytest.raises(ApiError) as refused, engine.place():
                pass
            assert (refused.value.status_code, engine.running) == (429, 1)
        engine.stop_all()
        with pytest.raises(ApiError) as refused, engine.place():
            pass
        assert (refused.value.status_code, engine.running) == (503, 0)
        await engine.close()

    asyncio.run(main())
