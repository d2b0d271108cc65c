"""How much a client may send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from helpers.gateway import CHAT, COMPLETIONS, FakeBackend, call, refused
from starlette.requests import Request

from zipvl_serving.gateway.errors import ApiError
from zipvl_serving.gateway.limits import read_body

BODY = json.dumps(CHAT).encode()


def test_a_body_up_to_the_limit_is_read() -> None:
    assert call(FakeBackend(), "POST", COMPLETIONS, content=BODY, max_body_bytes=len(BODY)).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_longer_one_is_refused(chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield BODY

    backend, body = FakeBackend(), pieces() if chunked else BODY
    response = call(backend, "POST", COMPLETIONS, content=body, max_body_bytes=len(BODY) - 1)  # type: ignore[arg-type]
    error = refused(response, 413)
    assert f"larger than {len(BODY) - 1} bytes" in error["message"] and error["code"] == "request_too_large"
    assert not backend.requests


def read(messages: list[bytes], limit: int, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, int]:
    """The body, and how many pieces of it were asked for."""
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": messages[asked - 1], "more_body": asked < len(messages)}

    async def run() -> bytes:
        return await read_body(Request({"type": "http", "method": "POST", "headers": headers}, receive), limit)

    try:
        return asyncio.run(run()), asked
    except ApiError:
        return b"", asked


def test_reading_ends_where_the_limit_is_passed() -> None:
    assert read([b"abc", b"def", b"ghi"], 9, []) == (b"abcdefghi", 3)
    assert read([b"abc", b"def", b"ghi"], 5, []) == (b"", 2)


def test_nothing_is_read_of_a_body_that_is_declared_too_long() -> None:
    assert read([b"abc"], 5, [(b"content-length", b"6")]) == (b"", 0)


def test_a_false_length_does_not_help() -> None:
    assert read([b"abc", b"def"], 5, [(b"content-length", b"3")]) == (b"", 2)


def test_a_client_that_falls_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zipvl_serving.gateway.limits.SILENCE_S", 0.01)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(10)

    response = call(FakeBackend(), "POST", COMPLETIONS, content=pieces())  # type: ignore[arg-type]
    assert refused(response, 408)["code"] == "request_timeout"
