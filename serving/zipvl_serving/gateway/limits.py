"""How much a client may send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request

from zipvl_serving.gateway.errors import ApiError

MIB = 1 << 20
SILENCE_S = 30.0
"""Longest pause within a body: what it holds so far would stay in memory."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes of it held at any time, whether its length was declared or not.

    Raises ApiError 413 for a longer one, before a byte is read where the length says so, and 408 where the client
    falls silent.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    pieces, size = [], 0
    stream = aiter(request.stream())
    while (piece := await _next(stream)) is not None:
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
    return b"".join(pieces)


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    try:
        async with asyncio.timeout(SILENCE_S):
            return await anext(stream, None)
    except TimeoutError:
        message = f"nothing more of the request's body came for {SILENCE_S:g} s"
        raise ApiError(408, message, code="request_timeout") from None


def _too_large(limit: int) -> ApiError:
    size = f"{limit / MIB:g} MiB" if limit >= MIB else f"{limit} bytes"
    return ApiError(413, f"the request's body is larger than {size}, this server's limit", code="request_too_large")
