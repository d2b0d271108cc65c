"""The engine in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress

from zipvl_serving.engine import Engine
from zipvl_serving.errors import ZipvlError
from zipvl_serving.gateway.backends.base import Backend, ModelInfo
from zipvl_serving.gateway.metrics import MetricsPublisher
from zipvl_serving.wire import Chunk, WireRequest, merge


class EmbeddedBackend(Backend):
    """Owns an engine: `close` closes it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(ModelInfo.of(engine.bundle.manifest))
        self._engine = engine
        self._publisher = MetricsPublisher(self.model.name, engine.metrics)

    async def _answer(self, request: WireRequest) -> AsyncGenerator[Chunk, None]:
        inbox = Inbox(asyncio.get_running_loop())
        ticket = self._engine.submit(request, inbox.put)
        ended = False
        try:
            while not ended:
                chunk = await inbox.get()
                ended = chunk.finish_reason is not None
                yield chunk
        finally:
            if not ended:
                ticket.cancel()

    async def live(self) -> bool:
        return self._engine.alive

    async def metrics(self) -> str:
        return await asyncio.to_thread(self._publisher.text)

    async def close(self) -> None:
        self.stop_taking()
        await asyncio.to_thread(self._engine.close)
        await asyncio.to_thread(self._publisher.close)


class Inbox:
    """One request's chunks on their way from the engine's threads to the event loop.

    While the reader is slow, what has come meanwhile waits as one chunk: never more than the answer itself.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: list[Chunk] = []
        self._error: ZipvlError | None = None
        self._arrived = asyncio.Event()

    def put(self, item: Chunk | ZipvlError) -> None:
        """From any thread."""
        with self._lock:
            woken = bool(self._waiting or self._error)
            if isinstance(item, Chunk):
                self._waiting.append(item)
            else:
                self._error = item
        if not woken:
            with suppress(RuntimeError):  # the loop has ended: nobody reads this any more
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self) -> Chunk:
        """What has come since the last call; raises the error that ended the request, after the chunks before it."""
        await self._arrived.wait()
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if not (waiting and self._error):
                self._arrived.clear()
        if waiting:
            return merge(waiting)
        assert self._error is not None
        raise self._error
