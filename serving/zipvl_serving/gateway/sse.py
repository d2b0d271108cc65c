"""An answer as server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from zipvl_serving.errors import ZipvlError
from zipvl_serving.gateway.disconnect import until_disconnect
from zipvl_serving.gateway.errors import from_failure
from zipvl_serving.gateway.responses import Completion
from zipvl_serving.wire import Chunk

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_log = logging.getLogger(__name__)
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must not wait for more


class EventStream(StreamingResponse):
    """Streams an answer whose first chunk has come; a client that leaves cancels it.

    What fails from here on is a last event `error` in OpenAI's shape, without `[DONE]` after it.
    """

    def __init__(self, completion: Completion, first: Chunk, rest: AsyncGenerator[Chunk, None]) -> None:
        self._events = _events(completion, first, rest)
        super().__init__(self._events, media_type="text/event-stream", headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):  # a response that has begun cannot become another one
            await until_disconnect(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events):
            await self.stream_response(send)


async def _events(
    completion: Completion, first: Chunk, rest: AsyncGenerator[Chunk, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        try:
            yield b"".join(map(_event, (completion.opening(), *completion.pieces(first))))
            async for chunk in rest:
                if events := b"".join(map(_event, completion.pieces(chunk))):
                    yield events
            yield b"data: [DONE]\n\n"
        except Exception as error:
            if not isinstance(error, ZipvlError):
                _log.exception("a stream failed")
            yield b"event: error\n" + _event(from_failure(error).body)


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {_encode(body)}\n\n".encode()
