"""The client over HTTP, against the gateway on a real port."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.bundles import refusal
from helpers.gateway import FakeBackend, Running, answer, connect, serving, until
from helpers.load import workload

from zipvl_compile.bench.results import gains
from zipvl_compile.bench.serving.clients.openai import OpenAIClient
from zipvl_compile.bench.serving.exchange import Exchange
from zipvl_compile.bench.serving.prompts import make_prompts
from zipvl_compile.bench.serving.sweep import Sweep, sweep
from zipvl_compile.bench.workload import Mode
from zipvl_serving.bundle import Bundle
from zipvl_serving.engine import Engine
from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError
from zipvl_serving.gateway.backends.embedded import EmbeddedBackend
from zipvl_serving.gateway.tokens import TokenTexts
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.wire import Chunk

TAU = Mode(kind="tau", value=0.9)
(PROMPT,) = make_prompts(workload(requests=1, rounds=1))


def ticks() -> Callable[[], float]:
    """A clock that is a second later whenever it is looked at."""
    counter = itertools.count()
    return lambda: float(next(counter))


def ask(url: str, connected: Callable[[], object] = lambda: None, **options: Any) -> Exchange:
    """One request; `connected` is called before it is sent."""

    async def run() -> Exchange:
        client = OpenAIClient(url, clock=ticks(), **options)
        try:
            await client.connect(None)
            connected()
            return await client.send(client.encode(PROMPT, TAU), 30)
        finally:
            await client.close()

    return asyncio.run(run())


def test_every_piece_is_timed_and_the_request_says_what_the_workload_says() -> None:
    with serving(FakeBackend) as running:
        one = ask(running.url)
        backend = running.backend
    assert isinstance(backend, FakeBackend)
    assert (one.sent_at, one.arrivals[0]) == (0.0, 2.0)  # after the opening event, which holds no content
    assert len(one.arrivals) == 3 and one.counts is None
    assert one.finished_at and one.arrivals[-1] < one.finished_at < one.ended_at
    assert (one.tokens, one.prompt_tokens, one.asked) == (3, 7, PROMPT.new_tokens)
    assert one.statistics["ratio_per_layer"] == [0.5, 0.25] and one.statistics["kv_bytes"] == 4096
    asked = backend.requests[-1]  # the first ones asked whether it is ready
    assert asked.images == PROMPT.images and asked.messages
    parameters = asked.parameters
    bounds = (parameters.ratio_min, parameters.ratio_max)
    assert (parameters.tau, *bounds) == (0.9, 0.0, 1.0)  # whatever the bundle's bounds are
    assert (parameters.ignore_eos, parameters.max_tokens) == (True, PROMPT.new_tokens)


def test_a_piece_of_several_tokens_is_one_arrival_of_an_answer_that_has_more() -> None:
    merged = [Chunk("red is", [2, 3]), *answer("4")]
    with serving(lambda: FakeBackend(*merged)) as running:
        one = ask(running.url)
    assert len(one.arrivals) == 2 and one.tokens == 1  # the fake server counts its last chunk only
    assert not one.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("too long"), "refused"),
        (OverloadedError("the queue is full"), "overloaded"),
        (DeadlineError("too late"), "deadline"),
        (UnavailableError("stopping"), "unavailable"),
        (ZipvlError("broken"), "failed"),
    ],
)
@pytest.mark.parametrize("begun", [False, True], ids=["at once", "within the stream"])
def test_failures_keep_their_kind(error: ZipvlError, kind: str, begun: bool) -> None:
    backend = FakeBackend()
    with serving(lambda: backend) as running:
        script = (Chunk("red", [2]), error) if begun else (error,)
        one = ask(running.url, lambda: setattr(backend, "script", script))
    if begun and kind == "refused":
        kind = "failed"  # within a stream nothing tells it apart
    assert one.error == kind and str(error) in one.message
    assert len(one.arrivals) == begun and one.ended_at > one.sent_at


def test_a_server_that_is_not_there_is_one_line() -> None:
    with serving(FakeBackend) as running:
        url = running.url
    with refusal(UnavailableError, url, "no server answers"):
        ask(url)


def test_a_server_that_is_not_ready_says_why() -> None:
    with (
        serving(lambda: FakeBackend(*answer("red"))) as running,
        refusal(UnavailableError, "is not ready", "the server is stopping"),
    ):
        running.backend.stop_taking()
        ask(running.url)


def test_a_key_is_sent_and_a_missing_one_is_one_line() -> None:
    with serving(FakeBackend, api_keys=["alpha"]) as running:
        assert not ask(running.url, api_key="alpha").error
        with refusal(InputError, "/v1/models: HTTP 401", "expected an OpenAI-compatible server"):
            ask(running.url)


def respond(events: str) -> Callable[[httpx.Request], httpx.Response]:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "one"}, {"id": "two"}]})
        if request.url.path == "/v1/chat/completions":
            return httpx.Response(200, text=events)
        return httpx.Response(404)

    return handle


@pytest.mark.parametrize(
    ("events", "kind", "part"),
    [
        ("data: {broken\n\n", "failed", "is no JSON object"),
        ("data: [1]\n\n", "failed", "is no JSON object"),
        ('data: {"error": "out of memory"}\n\n', "failed", "out of memory"),
        ('data: {"error": {"message": "full", "code": "rate_limit_exceeded"}}\n\n', "overloaded", "full"),
        ('data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "unavailable", "before its answer was complete"),
        ("", "unavailable", "before its answer was complete"),
    ],
)
def test_streams_that_make_no_sense_fail(events: str, kind: str, part: str) -> None:
    one = asyncio.run(ask_scripted(events))
    assert one.error == kind and part in one.message


async def ask_scripted(events: str, model: str | None = "two") -> Exchange:
    client = OpenAIClient("http://elsewhere")
    await client._http.aclose()
    client._http = httpx.AsyncClient(transport=httpx.MockTransport(respond(events)), base_url="http://elsewhere")
    await client.connect(model)
    return await client.send(client.encode(PROMPT, TAU), 30)


def test_a_server_without_usage_and_without_our_fields_counts_its_pieces() -> None:
    pieces = [{"choices": [{"delta": {"content": text}}]} for text in "abc"]
    events = [*pieces, {"choices": [{"delta": {}, "finish_reason": "length"}]}]
    one = asyncio.run(ask_scripted("".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"))
    assert (one.error, one.tokens, one.statistics) == (None, 3, {})


@pytest.mark.parametrize(
    ("model", "part"), [(None, "serves 2 models; choose one with --model: one, two"), ("tow", "did you mean 'two'?")]
)
def test_one_of_several_models_has_to_be_named(model: str | None, part: str) -> None:
    with refusal(InputError, part):
        asyncio.run(ask_scripted("", model))


@pytest.fixture(scope="module")
def gateway(tiny_bundle: Path) -> Iterator[str]:
    bundle = Bundle.open(tiny_bundle)
    texts = TokenTexts(PromptProcessor(bundle.processor_folder).tokenizer)
    with serving(lambda: EmbeddedBackend(Engine(bundle)), token_texts=texts) as running:
        yield running.url


def run_sweep(url: str, **changes: Any) -> Sweep:
    def ignore(*told: object) -> None: ...

    return asyncio.run(sweep(OpenAIClient(url), workload(**changes), None, ignore, ignore))


def test_a_sweep_over_the_engine(gateway: str) -> None:
    done = run_sweep(gateway, modes=["dense", {"fixed_ratio": 0.25}], concurrency=[1, 3], requests=6)
    dense, fixed = done.cells[:2]
    assert all(cell.facts["requests_ended"] == 6 for cell in done.cells)
    assert all(cell.facts["requests_short"] == 0 and cell.facts["cached_images"] == 0 for cell in done.cells)
    assert dense.facts["ratio_per_layer"] == [1.0, 1.0] and dense.facts["dense_share"] == 1.0
    assert max(fixed.facts["ratio_per_layer"]) < 0.5 and fixed.facts["kv_bytes"] < dense.facts["kv_bytes"]
    assert len(done.exchanges) == 24
    found = {ratio.figure for ratio in gains(done.cells, "dense")}
    assert found >= {"tokens_per_s", "ttft_s", "e2e_s"}


def test_a_workload_that_is_too_long_for_the_engine_ends_before_it_starts(gateway: str) -> None:
    with refusal(InputError, "the first request (20 images, 3 tokens, dense) failed: HTTP 400"):
        run_sweep(gateway, images={"low": 20})


def test_a_server_that_dies_during_the_run_is_one_line() -> None:
    """It ends after the warm-up of the first mode."""
    with serving(FakeBackend, drain_s=0) as running, refusal(UnavailableError, "the server left during the run"):

        def end(point: str, done: int, of: int, comes_next: str) -> None:
            if done == 1:
                running.stop()
                until(lambda: not_listening(running))

        asyncio.run(sweep(OpenAIClient(running.url), workload(), None, end, print))


def not_listening(running: Running) -> bool:
    try:
        connect(running).close()
    except ConnectionError:
        return True
    return False
