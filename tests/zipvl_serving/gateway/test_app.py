"""The routes, without a socket."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import httpx
import pytest
from helpers.gateway import (
    CHAT,
    COMPLETIONS,
    MODEL,
    FakeBackend,
    answer,
    call,
    events,
    refused,
    statistics,
    texts,
)

from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError
from zipvl_serving.gateway.app import create_app
from zipvl_serving.output.sampling import TokenLogprob
from zipvl_serving.wire import Chunk

OURS = {
    "cached_images": 0, "dense": False, "ratio_per_layer": [0.5, 0.25], "kept_tokens_per_layer": [4, 2],
    "kv_bytes": 4096, "queue_s": 0.1, "ttft_s": 0.2, "total_s": 0.3, "finish_reason": "stop",
}  # fmt: skip
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
LOGPROBS = [TokenLogprob(token, -0.5, [(token, -0.5), (5, float("-inf"))]) for token in (2, 3, 4)]


def ask(*script: Any, **fields: Any) -> httpx.Response:
    return call(FakeBackend(*script), "POST", COMPLETIONS, json={**CHAT, **fields})


def test_a_whole_answer() -> None:
    body = ask().json()
    assert body.pop("id").startswith("chatcmpl-") and body.pop("created") > 1_700_000_000
    message = {"role": "assistant", "content": "red is 4", "refusal": None}
    assert body == {
        "object": "chat.completion",
        "model": "fake",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
        "zipvl": OURS,
    }


def test_a_streamed_answer() -> None:
    response = ask(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *pieces, done = events(response.text)
    assert done == "[DONE]"
    assert len({(piece["id"], piece["created"]) for piece in pieces}) == 1
    assert all(piece["object"] == "chat.completion.chunk" and "usage" not in piece for piece in pieces)
    choices = [piece["choices"][0] for piece in pieces]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "", "refusal": None}, {"content": "red"}, {"content": " is"},
        {"content": " 4"}, {},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "stop"]
    assert [piece.get("zipvl") for piece in pieces] == [None, None, None, None, OURS]


def test_usage_comes_last_in_a_stream_that_asks_for_it() -> None:
    *pieces, last, _ = events(ask(stream=True, stream_options={"include_usage": True}).text)
    assert last["choices"] == [] and last["usage"] == USAGE
    assert all(piece["usage"] is None for piece in pieces)


def test_half_a_character_is_no_piece() -> None:
    script = [Chunk("", [2]), Chunk("€", [3], finish_reason="stop", statistics=statistics())]
    deltas = [piece["choices"][0]["delta"] for piece in events(ask(*script, stream=True).text)[:-1]]
    assert deltas == [{"role": "assistant", "content": "", "refusal": None}, {"content": "€"}, {}]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(stream: bool) -> None:
    response = ask(*answer("red", "is", "4", logprobs=LOGPROBS), stream=stream, logprobs=True, top_logprobs=2)
    choices = [piece["choices"][0] for piece in events(response.text)[:-1]] if stream else response.json()["choices"]
    entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert [entry["token"] for entry in entries] == ["red", " is", " 4"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == b"red is 4"
    assert entries[1]["logprob"] == -0.5
    assert entries[1]["top_logprobs"] == [
        {"token": " is", "bytes": list(b" is"), "logprob": -0.5},
        {"token": " blue", "bytes": list(b" blue"), "logprob": -9999.0},
    ]


@pytest.mark.parametrize(("reason", "theirs"), [("stop", "stop"), ("length", "length"), ("deadline", "length")])
def test_reasons_to_finish(reason: Any, theirs: str) -> None:
    body = ask(*answer("red", reason=reason)).json()
    assert body["choices"][0]["finish_reason"] == theirs and body["zipvl"]["finish_reason"] == reason


FAILURES = [
    (InputError("the prompt has 600 tokens"), 400, "invalid_request_error", None),
    (OverloadedError("256 requests wait"), 429, "requests", "rate_limit_exceeded"),
    (DeadlineError("no place came free within 1.0 s"), 504, "server_error", "deadline_exceeded"),
    (UnavailableError("the engine is stopping"), 503, "server_error", "service_unavailable"),
    (ZipvlError("unusable\nlogits"), 500, "server_error", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("failure", "status", "kind", "code"), FAILURES)
def test_failures_before_the_first_token_have_a_status(
    failure: Exception, status: int, kind: str, code: str | None, stream: bool
) -> None:
    response = ask(failure, stream=stream)
    error = refused(response, status)
    assert error == {"message": " ".join(str(failure).split()), "type": kind, "param": None, "code": code}
    assert response.headers.get("retry-after") == ("1" if status == 429 else None)
    assert response.headers.get("x-should-retry") == ("false" if status == 504 else None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_not_described(stream: bool) -> None:
    error = refused(ask(KeyError("secret"), stream=stream), 500)
    assert "secret" not in error["message"] and error["type"] == "server_error"


def test_a_failure_within_a_stream_is_its_last_event() -> None:
    response = ask(answer("red", "is")[0], UnavailableError("the engine is gone"), stream=True)
    assert response.status_code == 200 and "[DONE]" not in response.text
    assert "event: error\ndata: " in response.text
    last = events(response.text)[-1]
    assert last["error"]["message"] == "the engine is gone" and last["error"]["code"] == "service_unavailable"


@pytest.mark.parametrize("ending", [(), (Chunk("", [], finish_reason="cancelled", statistics=statistics()),)])
def test_an_answer_that_the_server_gives_up_is_an_error(ending: tuple[Chunk, ...]) -> None:
    refused(ask(answer("red", "is")[0], *ending), 503)


def test_images_arrive_as_files() -> None:
    backend = FakeBackend()
    url = "data:image/png;base64," + base64.b64encode(b"x" * 200_000).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "which ?"}]
    messages = [{"role": "user", "content": parts}]
    assert call(backend, "POST", COMPLETIONS, json={**CHAT, "messages": messages}).status_code == 200
    assert backend.requests[0].images == (b"x" * 200_000,)


def test_the_models_name_is_checked() -> None:
    error = refused(ask(model="gpt-4o"), 404)
    assert error["code"] == "model_not_found" and "'gpt-4o'" in error["message"]


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_only_json_is_read(kind: str) -> None:
    """What a page in a browser could send across origins without asking is refused."""
    backend = FakeBackend()
    error = refused(call(backend, "POST", COMPLETIONS, content=b"{}", headers={"content-type": kind}), 415)
    assert "application/json" in error["message"] and not backend.requests


def test_what_is_no_json_is_a_client_error() -> None:
    assert refused(call(FakeBackend(), "POST", COMPLETIONS, content=b'{"a": NaN}'), 400)["code"] == "invalid_json"


def test_models() -> None:
    model = {"id": "fake", "object": "model", "created": MODEL.created, "owned_by": "zipvl", "max_model_len": 544}
    assert call(FakeBackend(), "GET", "/v1/models").json() == {"object": "list", "data": [model]}
    assert call(FakeBackend(), "GET", "/v1/models/fake").json() == model
    assert refused(call(FakeBackend(), "GET", "/v1/models/a/b"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v1/embeddings", 404, "Invalid URL (POST /v1/embeddings)"),
        ("GET", "/v1/models/", 404, "The model '' does not exist or you do not have access to it."),
        ("GET", "/docs", 404, "Invalid URL (GET /docs)"),
        ("GET", COMPLETIONS, 405, f"Not allowed to GET on {COMPLETIONS}"),
        ("PUT", "/metrics", 405, "Not allowed to PUT on /metrics"),
    ],
)
def test_routes_that_are_none(method: str, path: str, status: int, message: str) -> None:
    response = call(FakeBackend(), method, path)
    assert refused(response, status)["message"] == message
    assert status != 405 or response.headers["allow"]


def test_health_and_metrics() -> None:
    backend = FakeBackend()
    assert call(backend, "GET", "/health/live").status_code == 200
    assert call(backend, "GET", "/health/ready").text == call(backend, "GET", "/health").text == "ready"
    assert call(backend, "GET", "/metrics").text == "fake_total 1\n"
    assert call(backend, "GET", "/version").json()["version"]
    backend.is_live = False
    assert call(backend, "GET", "/health/live").status_code == 503


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_not_ready_is_a_line(path: str) -> None:
    response = call(FakeBackend(ZipvlError("the model is broken")), "GET", path)
    assert (response.status_code, response.text) == (503, "the model is broken")


def test_answers_do_not_wait_for_each_other() -> None:
    """While one answer waits for its tokens, another one passes."""
    go = threading.Event()
    slow = FakeBackend(go, *answer("red"))

    async def run() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app=create_app(slow, texts()))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            first = asyncio.create_task(client.post(COMPLETIONS, json=CHAT))
            while not slow.waiting.is_set():
                await asyncio.sleep(0.001)
            second = await client.get("/v1/models")
            go.set()
            return await first, second

    first, second = asyncio.run(run())
    assert first.status_code == second.status_code == 200
