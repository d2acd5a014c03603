"""What a request meets before its route: the key is asked for, and its body is counted and waited for as it comes."""

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from domains.text.serve.errors import ApiError, response_of
from domains.text.serve.limits import Limits

PROGRESS = 16_384
"""Bytes of a body that are progress: fewer, one by one, do not hold a place."""


class CheckKey:
    """Answers requests without the key with 401, before anything of their bodies is read. Only /health needs none."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._api_key = app, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request of ASGI."""
        if scope["type"] != "http" or scope["path"] == "/health" or self._has_key(Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            error = ApiError(401, "the API key is missing or wrong: Authorization: Bearer KEY.", "invalid_api_key")
            await response_of(error)(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.encode("latin-1"), self._api_key.encode())


class LimitBody:
    """Refuses bodies that are too large, as they come, and those that all but stop coming."""

    def __init__(self, app: ASGIApp, limits: Limits, max_state_bytes: int) -> None:
        self._app, self._limits, self._max_state_bytes = app, limits, max_state_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_state = scope["method"] == "PUT"
        most = self._max_state_bytes if is_state else self._limits.max_body_bytes
        came, ended = 0, False
        counted, deadline = 0, asyncio.get_running_loop().time() + self._limits.max_stall_seconds

        async def limited() -> Message:
            nonlocal came, ended, counted, deadline
            message = await (receive() if ended else self._before(deadline, receive))
            ended = not message.get("more_body", False)
            came += len(message.get("body", b""))
            if came - counted >= PROGRESS:
                counted, deadline = came, asyncio.get_running_loop().time() + self._limits.max_stall_seconds
            if came > most:
                flag = "--max-state-bytes" if is_state else "--max-body-bytes"
                raise ApiError(413, f"the body has more than {most:,} bytes, which is the limit ({flag}).", "body_too_large")
            return message

        await self._app(scope, limited, send)

    async def _before(self, deadline: float, receive: Receive) -> Message:
        try:
            async with asyncio.timeout_at(deadline):
                return await receive()
        except TimeoutError:
            seconds = self._limits.max_stall_seconds
            message = f"less than {PROGRESS:,} bytes of the body came in {seconds:g} seconds, which is the limit (--max-stall-seconds)."
            raise ApiError(408, message, "request_timeout") from None
