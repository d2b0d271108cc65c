"""Runs the gateway in uvicorn: ready before it listens, drained before it leaves."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from zipvl_serving.errors import ZipvlError
from zipvl_serving.gateway.backends.base import Backend

STARTUP_S = 120.0
"""How long the first token may take."""
_KEEP_ALIVE_S = 75
"""Longer than load balancers keep an idle connection, so that none sends into one that is being closed."""
_LAST_WORDS_S = 2.0
"""What a client that reads slowly has to get the error that ended its stream."""
_FLUSH_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; ZipvlError where the address is taken or is none of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ZipvlError(f"{host}: no address of this machine: {error.strerror}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ZipvlError(f"port {port} of {host} cannot be used: {error.strerror}; choose another one") from None
    return bound


class GatewayServer(uvicorn.Server):
    """Listens once a token came out of the model; ZipvlError where none does.

    SIGTERM or SIGINT ends it: new requests are refused, running ones have `drain_s` seconds, and what is left then ends
    with an error. A second SIGINT ends all at once. Owns the backend.
    """

    def __init__(
        self,
        app: ASGIApp,
        backend: Backend,
        *,
        drain_s: float,
        on_ready: Callable[[], None],
        startup_s: float = STARTUP_S,
    ) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="error",  # what a client sends is no news for the operator
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        super().__init__(config)
        self.cut = 0
        """Answers that were ended for lack of time."""
        self._backend = backend
        self._drain_s = drain_s
        self._startup_s = startup_s
        self._on_ready = on_ready
        self._drained_by = math.inf
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            why_not = await self._backend.ready(self._startup_s)
            if why_not is not None:
                raise ZipvlError(f"the model does not answer: {why_not}")
            await super().serve(sockets)
        finally:
            await self._backend.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._backend.stop_taking()
        self._drained_by = time.monotonic() + self._drain_s
        ending = asyncio.create_task(self._end_streams())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            await self._backend.close()

    async def _end_streams(self) -> None:
        await self._hurried_within(self.seconds_left)
        self.cut = self._backend.active
        await self._backend.close()
        if self.cut:
            await self._hurried_within(_LAST_WORDS_S)
        await asyncio.sleep(_FLUSH_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _hurried_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)

    @property
    def seconds_left(self) -> float:
        """Of `drain_s`, once it is stopping."""
        return max(0.0, self._drained_by - time.monotonic())

    @property
    def hurried(self) -> bool:
        """Whether a second SIGINT ended it."""
        return self._hurry.is_set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's, but for raising the signals again at the end: this end is what they asked for."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self._loop.call_soon_threadsafe(self._hurry.set)
        self.should_exit = True
