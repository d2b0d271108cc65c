"""A backend that says what a test wants, and the gateway on a real port."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
from tokenizers import Tokenizer, models

from zipvl_serving.errors import UnavailableError, ZipvlError
from zipvl_serving.gateway.app import create_app
from zipvl_serving.gateway.backends.base import Backend, ModelInfo
from zipvl_serving.gateway.server import GatewayServer, bind
from zipvl_serving.gateway.tokens import TokenTexts
from zipvl_serving.output.sampling import TokenLogprob
from zipvl_serving.wire import Chunk, FinishReason, Statistics, WireRequest

MODEL = ModelInfo("fake", 1_700_000_000, max_input_tokens=512, max_new_tokens=32)
WORDS = ["<pad>", "</s>", "red", "is", "4", "blue"]
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
COMPLETIONS = "/v1/chat/completions"


def texts() -> TokenTexts:
    """Of a tokenizer with one word per token."""
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    return TokenTexts(tokenizer)


def statistics(completion_tokens: int = 3, **changes: Any) -> Statistics:
    values = {
        "prompt_tokens": 7, "completion_tokens": completion_tokens, "cached_images": 0, "dense": False,
        "ratio_per_layer": [0.5, 0.25], "kept_tokens_per_layer": [4, 2], "kv_bytes": 4096,
        "queue_s": 0.1, "ttft_s": 0.2, "total_s": 0.3,
    }  # fmt: skip
    return Statistics(**{**values, **changes})


def answer(*words: str, reason: FinishReason = "stop", logprobs: Sequence[TokenLogprob] | None = None) -> list[Chunk]:
    """A chunk per word."""
    last = len(words) - 1
    return [
        Chunk(
            text=word if not at else f" {word}",
            token_ids=[WORDS.index(word)],
            logprobs=[logprobs[at]] if logprobs else None,
            finish_reason=reason if at == last else None,
            statistics=statistics(len(words)) if at == last else None,
        )
        for at, word in enumerate(words)
    ]


class FakeBackend(Backend):
    """Answers every request with `script`: chunks, errors to raise, and events that must be set to go on."""

    def __init__(self, *script: Chunk | Exception | threading.Event) -> None:
        super().__init__(MODEL)
        self.script = script or tuple(answer("red", "is", "4"))
        self.requests: list[WireRequest] = []
        self.waiting = threading.Event()
        """Set while an answer waits for an event of its script."""
        self.cancelled = threading.Event()
        """Set when an answer was given up before its end."""
        self.is_live = True
        self._closed = threading.Event()

    async def _answer(self, request: WireRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        ended = False
        try:
            for step in self.script:
                if isinstance(step, threading.Event):
                    self.waiting.set()
                    while not step.is_set():
                        if self._closed.is_set():
                            ended = True
                            raise UnavailableError("the engine was closed")
                        await asyncio.sleep(0.002)
                elif isinstance(step, Chunk):
                    ended = step.finish_reason is not None
                    yield step
                else:
                    ended = True
                    raise step
        finally:
            if not ended:
                self.cancelled.set()

    async def live(self) -> bool:
        return self.is_live

    async def metrics(self) -> str:
        return "fake_total 1\n"

    async def close(self) -> None:
        self.stop_taking()
        self._closed.set()


def call(
    backend: Backend, method: str, path: str, *, json: Any = None, content: bytes | None = None, **options: Any
) -> httpx.Response:
    """One request to the application itself, without a socket. Options of `create_app` go to it, `headers` do not."""
    headers = {"content-type": "application/json"} | options.pop("headers", {})

    async def send() -> httpx.Response:
        app = create_app(backend, texts(), **options)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, json=json, content=content, headers=headers)

    return asyncio.run(send())


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error inside OpenAI's shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"].isprintable()
    return dict(body["error"])


def events(body: str) -> list[Any]:
    """The data of each server-sent event; `[DONE]` as text."""
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Running:
    """A gateway that serves on a port of its own."""

    def __init__(self, server: GatewayServer, backend: Backend, url: str) -> None:
        self.server = server
        self.backend = backend
        self.url = url

    def stop(self) -> None:
        """What SIGTERM does."""
        self.server.should_exit = True


@contextmanager
def serving(
    make_backend: Callable[[], Backend], *, token_texts: TokenTexts | None = None, drain_s: float = 5.0, **options: Any
) -> Iterator[Running]:
    """The gateway over a real socket, in a thread; `make_backend` is called in that thread."""
    ready, failed = threading.Event(), []
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    made: list[Running] = []

    def run() -> None:
        try:
            backend = make_backend()
            app = create_app(backend, token_texts or texts(), **options)
            server = GatewayServer(app, backend, drain_s=drain_s, on_ready=ready.set)
            made.append(Running(server, backend, url))
            server.run(sockets=[listening])
        except ZipvlError as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        if failed:
            raise failed[0]
        yield made[0]
    finally:
        for running in made:
            running.stop()
        thread.join(30)
        assert not thread.is_alive()


HEAD = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n".encode()


def connect(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def post(running: Running, body: Any) -> socket.socket:
    """Send a request and keep the connection."""
    connection, content = connect(running), json.dumps(body).encode()
    connection.sendall(HEAD + f"content-length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def until(condition: Callable[[], bool], patience_s: float = 30) -> None:
    """Look again and again; for what no event tells."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def read_all(connection: socket.socket) -> str:
    """Everything until the server closes."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces).decode()
