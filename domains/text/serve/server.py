"""The process: a socket, signals, an end."""

import asyncio
import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn

from domains.text.serve.app import build_app
from domains.text.serve.service import Service
from domains.text.serve.stalls import closing_after
from titans_seq.errors import UserError

STALLED = 5
"""Seconds after which a client that does not read what it is told at the end is waited for no longer."""
log = logging.getLogger("titans_seq.serve")


class _Server(uvicorn.Server):
    """Ends on SIGTERM and Ctrl-C: takes nothing new, lets what runs end for `grace` seconds, and stops the rest, each with an answer.

    Asked again, it stops at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace = service, grace
        self.asked: list[int] = []

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.asked.append(sig)
        if len(self.asked) == 2:
            asyncio.get_running_loop().call_soon_threadsafe(self._service.engine.stop_all)
        else:  # the first time; and the third, which waits for nothing
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        running = self._service.engine.running
        log.info("ending: %d running requests have %g seconds; Ctrl-C again stops them.", running, self._grace)
        stop = asyncio.get_running_loop().call_later(self._grace, self._service.engine.stop_all)
        await super().shutdown(sockets)
        stop.cancel()
        log.info("ended.")


def run(service: Service, host: str, port: int, api_key: str | None = None, grace: float = 30.0) -> None:
    """Answer requests until the process is asked to end.

    Args:
        service: that answers; it is closed at the end.
        host: name or address of the interface to listen on.
        port: to listen on; 0 for any that is free. The log says which.
        api_key: as `build_app`.
        grace: seconds that running requests have to end in.

    Raises:
        UserError: the address cannot be listened on.
        KeyboardInterrupt: Ctrl-C, after everything has ended. SIGTERM ends the process as it does by default, likewise.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("titans_seq").setLevel(logging.INFO)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot be listened on ({error}). Choose another port, or 0 for any.") from error
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    if api_key is None and host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("whoever reaches %s can use this server and its sessions: there is no --api-key.", address)
    log.info("serving %s (%s) at %s (Ctrl-C ends)", service.name, service.identity, address)
    config = uvicorn.Config(
        build_app(service, api_key),
        http=closing_after(service.limits.max_stall_seconds),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=int(grace) + STALLED,
    )
    server = _Server(config, service, grace)
    server.run(sockets=[listener])
    if signal.SIGINT in server.asked:
        raise KeyboardInterrupt
