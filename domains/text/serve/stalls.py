"""Connections whose clients stop reading are closed, so that what waits to be sent to them holds no place."""

import asyncio
import logging
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("titans_seq.serve")


KERNEL_BYTES = 65_536
"""What the system holds of what is sent, beside the server: a client that reads slowly is seen to read."""


def closing_after(seconds: float) -> type[H11Protocol]:
    """The connection of a server that closes where its client takes no byte for so long while more wait than the server holds for it.

    To the request that is answered this is a client that has left.
    """

    class Connection(H11Protocol):
        _look: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
            super().connection_made(transport)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._end_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._look = self.loop.call_later(seconds, self._close_if_stalled, self.transport.get_write_buffer_size())

        def _end_waiting(self) -> None:
            if self._look is not None:
                self._look.cancel()

        def _close_if_stalled(self, before: int) -> None:
            if self.transport.get_write_buffer_size() < before:
                self._wait()
            else:
                log.info("a client has read nothing for %g seconds: its connection is closed.", seconds)
                self.transport.abort()

    return Connection
