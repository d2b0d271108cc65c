"""The server on a real port: clients that leave, and the end."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from helpers.bundles import refusal
from helpers.gateway import (
    CHAT,
    COMPLETIONS,
    HEAD,
    FakeBackend,
    Running,
    answer,
    connect,
    events,
    post,
    read_all,
    refused,
    serving,
    until,
)

from zipvl_serving.errors import ZipvlError
from zipvl_serving.gateway.server import bind
from zipvl_serving.wire import Chunk

STREAM = {**CHAT, "stream": True}
RED, IS = answer("red", "is")


@pytest.mark.parametrize(("body", "before"), [(CHAT, ()), (STREAM, ()), (STREAM, (RED,))])
def test_a_client_that_leaves_cancels_its_request(
    body: Any, before: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Waiting for a whole answer, for the first token of a stream, or for the next one; nothing of it is logged."""
    backend = FakeBackend()
    with serving(lambda: backend) as running:
        backend.script = (*before, threading.Event(), IS)
        connection = post(running, body)
        assert backend.waiting.wait(10)
        left = time.monotonic()
        connection.close()
        assert backend.cancelled.wait(10)
        assert time.monotonic() - left < 1
        until(lambda: backend.active == 0)
    assert capsys.readouterr().err == ""


def test_a_client_that_leaves_while_it_sends_is_no_request() -> None:
    backend = FakeBackend()
    with serving(lambda: backend) as running:
        backend.requests.clear()
        with connect(running) as connection:
            connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        assert httpx.post(running.url + COMPLETIONS, json=CHAT).status_code == 200
    assert len(backend.requests) == 1


def test_a_body_without_a_length_is_limited_too() -> None:
    backend = FakeBackend()

    def endless() -> Any:
        for _ in range(64):
            yield b" " * (1 << 16)

    with serving(lambda: backend, max_body_bytes=1 << 18) as running:
        headers = {"content-type": "application/json"}
        response = httpx.post(running.url + COMPLETIONS, content=endless(), headers=headers, timeout=10)
    refused(response, 413)


def test_a_large_body_is_refused_before_it_is_sent() -> None:
    with serving(FakeBackend, max_body_bytes=1000) as running, connect(running) as connection:
        connection.sendall(HEAD + b"content-length: 1001\r\nexpect: 100-continue\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_running_streams_end_by_themselves() -> None:
    """Stopping lets them, and closes the doors at once."""
    backend, go = FakeBackend(), threading.Event()
    with serving(lambda: backend) as running:
        backend.script = (RED, go, IS)
        connection = post(running, STREAM)
        assert backend.waiting.wait(10)
        running.stop()
        until(lambda: doors_are_closed(running))
        go.set()
        *_, last, done = events(read_all(connection))
    assert last["choices"][0]["finish_reason"] == "stop" and done == "[DONE]"
    assert running.server.cut == 0


def doors_are_closed(running: Running) -> bool:
    try:
        connect(running).close()
    except ConnectionError:
        return True
    return False


def test_a_connection_that_was_open_is_refused_while_streams_end() -> None:
    backend, go = FakeBackend(), threading.Event()
    with serving(lambda: backend) as running:
        backend.script = (go, *answer("red"))
        connection = post(running, CHAT)
        assert backend.waiting.wait(10)
        late = connect(running)
        late.sendall(HEAD + b"content-length: 2\r\n\r\n")
        running.stop()
        until(lambda: doors_are_closed(running))
        late.sendall(b"{}")
        assert read_all(late).startswith("HTTP/1.1 400 ")
        go.set()
        assert '"red"' in read_all(connection)


def test_streams_that_take_too_long_end_with_an_error() -> None:
    backend = FakeBackend()
    with serving(lambda: backend, drain_s=0.05) as running:
        backend.script = (RED, threading.Event())
        connection = post(running, STREAM)
        assert backend.waiting.wait(10)
        running.stop()
        text = read_all(connection)
    assert "event: error" in text and "[DONE]" not in text and "the engine was closed" in text
    assert running.server.cut == 1


def test_a_client_that_does_not_read_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zipvl_serving.gateway.server._LAST_WORDS_S", 0.05)
    backend, more_than_buffers_hold = FakeBackend(), Chunk("red" * (8 << 20), [2])
    with serving(lambda: backend, drain_s=0.05) as running:
        backend.script = (more_than_buffers_hold, IS)
        connection = post(running, STREAM)
        assert connection.recv(1)
        running.stop()
    connection.close()
    assert running.server.cut == 1


def test_a_model_that_does_not_answer_is_never_served() -> None:
    with refusal(ZipvlError, "the model does not answer", "broken"), serving(lambda: FakeBackend(ZipvlError("broken"))):
        pass


def test_a_taken_port() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with refusal(ZipvlError, f"port {port} of 127.0.0.1", "in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_an_address_of_another_machine(host: str) -> None:
    with refusal(ZipvlError, host):
        bind(host, 0)
