"""The gateway over the embedded engine on the tiny bundle."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from helpers.bundles import MAX_INPUT_TOKENS, QUESTION, random_image
from helpers.clients import PATIENCE_S, png
from helpers.fake_session import Gate
from helpers.gateway import COMPLETIONS, Running, answer, events, post, refused, serving, until
from prometheus_client.parser import text_string_to_metric_families

from zipvl_serving.bundle import Bundle
from zipvl_serving.engine import Engine
from zipvl_serving.errors import UnavailableError
from zipvl_serving.gateway.backends.embedded import EmbeddedBackend, Inbox
from zipvl_serving.gateway.tokens import TokenTexts
from zipvl_serving.generator import Generation, Generator
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.sessions.base import Session, open_session

Serve = Callable[..., AbstractContextManager[Running]]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Session:
    return open_session(Bundle.open(tiny_bundle))


@pytest.fixture(scope="module")
def generator(session: Session) -> Generator:
    return Generator(session.bundle, session)


@pytest.fixture
def serve(session: Session, generator: Generator) -> Serve:
    """Start a gateway over an engine with some settings changed, on the tiny bundle's session or another."""

    def start(own: Session | None = None, drain_s: float = 5.0, **config: Any) -> AbstractContextManager[Running]:
        used = own or session

        def make() -> EmbeddedBackend:
            engine = Engine(used.bundle, used.bundle.manifest.serving.override(config), session=used)
            return EmbeddedBackend(engine)

        return serving(make, token_texts=TokenTexts(generator.processor.tokenizer), drain_s=drain_s)

    return start


@pytest.fixture
def gate(session: Session) -> Iterator[Gate]:
    gate = Gate(session.bundle)
    yield gate
    gate.open.set()


def with_image(seed: int, **fields: Any) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(png(random_image(seed))).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {"model": "tiny", "messages": [{"role": "user", "content": parts}], **fields}


def expected(generator: Generator, seed: int, **sampling: Any) -> Generation:
    return generator.answer(generator.prepare(QUESTION, [random_image(seed)]), SamplingParams(**sampling))


def sample(running: Running, name: str, **labels: str) -> float:
    """A value from /metrics."""
    text = httpx.get(f"{running.url}/metrics").text
    families = text_string_to_metric_families(text)
    wanted = {"model": "tiny", **labels}
    return next(s.value for family in families for s in family.samples if s.name == name and s.labels == wanted)


def test_answers_are_those_of_the_generator(serve: Serve, generator: Generator) -> None:
    with serve() as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as api:
        for seed in range(3):
            wanted = expected(generator, seed)
            whole = api.chat.completions.create(**with_image(seed))
            assert whole.choices[0].message.content == wanted.text
            assert whole.choices[0].finish_reason == wanted.finish_reason
            assert whole.usage and whole.usage.completion_tokens == len(wanted.token_ids)
            assert whole.usage.prompt_tokens == wanted.prompt.tokens
            assert whole.model_extra and whole.model_extra["zipvl"]["kept_tokens_per_layer"] == wanted.prompt.counts
            stream = api.chat.completions.create(**with_image(seed, stream=True))
            assert "".join(piece.choices[0].delta.content or "" for piece in stream) == wanted.text


def test_the_extension_reaches_the_method(serve: Serve) -> None:
    with serve() as running:
        ratios = []
        for ours in ({"tau": 0.3}, {"ratio_min": 0.5, "ratio_max": 0.5}, {"dense": True}):
            body = httpx.post(running.url + COMPLETIONS, json=with_image(0, zipvl=ours)).json()
            ratios.append(body["zipvl"]["ratio_per_layer"])
    assert max(ratios[0]) < 0.5 and min(ratios[1]) >= 0.5 > max(ratios[1]) - 0.1 and set(ratios[2]) == {1.0}


def test_the_tokens_bytes_are_the_texts(serve: Serve) -> None:
    with serve() as running:
        body = httpx.post(running.url + COMPLETIONS, json=with_image(0, logprobs=True, top_logprobs=3)).json()
    choice = body["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == body["usage"]["completion_tokens"]
    assert bytes(b for entry in entries for b in entry["bytes"] or ()).decode() == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 3 for entry in entries)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({**CHAT, "messages": [{"role": "user", "content": f"{QUESTION} " * MAX_INPUT_TOKENS}]}, "tokens"),
        ({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {
            "url": "data:image/png;base64," + base64.b64encode(b"no image").decode()}}]}]}, "image"),
        ({**CHAT, "max_tokens": 33}, "at most 32"),
        ({**CHAT, "zipvl": {"tau": 0.5, "dense": True}}, "dense"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_the_clients_error(serve: Serve, body: Any, part: str, stream: bool) -> None:
    with serve() as running:
        response = httpx.post(running.url + COMPLETIONS, json={**body, "stream": stream})
    assert part in refused(response, 400)["message"]


def test_a_full_queue_and_a_deadline(serve: Serve, session: Session) -> None:
    bundle = session.bundle
    gate = Gate(Bundle(bundle.path, bundle.manifest.model_copy(
        update={"limits": bundle.manifest.limits.model_copy(update={"max_batch": 1})}
    )))  # fmt: skip
    with serve(gate, max_waiting=1) as running, httpx.Client(base_url=running.url) as client:
        threads = [threading.Thread(target=httpx.post, args=(running.url + COMPLETIONS,), kwargs={"json": CHAT})]
        threads[0].start()
        assert gate.reached.wait(PATIENCE_S)
        late: list[httpx.Response] = []

        def wait_briefly() -> None:
            late.append(httpx.post(running.url + COMPLETIONS, json={**CHAT, "zipvl": {"timeout_s": 0.5}}))

        threads.append(threading.Thread(target=wait_briefly))
        threads[1].start()
        until(lambda: sample(running, "zipvl_requests_waiting") >= 1)
        refused(client.post(COMPLETIONS, json=CHAT), 429)
        time.sleep(0.5)  # the deadline of the one that waits
        gate.open.set()
        for thread in threads:
            thread.join()
        refused(late[0], 504)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_gives_its_pages_back(serve: Serve, gate: Gate, stream: bool) -> None:
    with serve(gate) as running:
        connection = post(running, {**CHAT, "stream": stream, "max_tokens": 32})
        assert gate.reached.wait(PATIENCE_S)
        assert sample(running, "zipvl_kv_pages_used") > 0
        connection.close()
        left = time.monotonic()
        until(lambda: running.backend.active == 0)
        gate.open.set()
        until(lambda: sample(running, "zipvl_kv_pages_used") == 0)
        assert time.monotonic() - left < 1
        assert sample(running, "zipvl_requests_total", outcome="cancelled") == 1


def test_metrics_count_what_was_served(serve: Serve) -> None:
    with serve() as running:
        before = sample(running, "zipvl_generated_tokens_total")
        usage = httpx.post(running.url + COMPLETIONS, json=with_image(1)).json()["usage"]
        assert sample(running, "zipvl_generated_tokens_total") - before == usage["completion_tokens"]
        assert sample(running, "zipvl_kept_ratio_count", layer="1") >= 1
        assert sample(running, "zipvl_ttft_seconds_count") >= 1
        for gauge in ("zipvl_requests_running", "zipvl_kv_pages_used"):
            until(lambda gauge=gauge: sample(running, gauge) == 0)  # type: ignore[misc]


def test_streams_that_are_cut_end_with_an_error(serve: Serve, gate: Gate) -> None:
    texts: list[str] = []
    with serve(gate, drain_s=0.05) as running:
        body = {**CHAT, "stream": True}
        reading = threading.Thread(target=lambda: texts.append(httpx.post(running.url + COMPLETIONS, json=body).text))
        reading.start()
        assert gate.reached.wait(PATIENCE_S)
        running.stop()
        until(lambda: running.backend._engine._stop)  # type: ignore[attr-defined]
        gate.open.set()
        reading.join()
    assert running.server.cut == 1
    assert "event: error" in texts[0] and events(texts[0])[-1]["error"]["code"] == "service_unavailable"


# --- the way from the engine's threads to the event loop ---


def test_what_a_slow_reader_missed_comes_as_one_chunk() -> None:
    red, is_, four = answer("red", "is", "4")

    async def run() -> None:
        inbox = Inbox(asyncio.get_running_loop())
        inbox.put(red)
        assert await inbox.get() == red
        inbox.put(is_)
        inbox.put(four)
        chunk = await inbox.get()
        assert (chunk.text, chunk.token_ids, chunk.finish_reason) == (" is 4", [3, 4], "stop")

    asyncio.run(run())


def test_an_error_comes_after_the_chunks_before_it() -> None:
    async def run() -> None:
        inbox = Inbox(asyncio.get_running_loop())
        inbox.put(answer("red", "is")[0])
        inbox.put(UnavailableError("gone"))
        assert (await inbox.get()).text == "red"
        with pytest.raises(UnavailableError):
            await inbox.get()

    asyncio.run(run())


def test_chunks_from_a_thread_arrive_in_order() -> None:
    pieces = [answer("red", "is")[0]] * 2000 + answer("blue")

    async def run() -> list[int]:
        inbox, tokens = Inbox(asyncio.get_running_loop()), []
        thread = threading.Thread(target=lambda: [inbox.put(piece) for piece in pieces])
        thread.start()
        while True:
            chunk = await inbox.get()
            tokens += chunk.token_ids
            if chunk.finish_reason:
                thread.join()
                return tokens

    assert asyncio.run(run()) == [2] * 2000 + [5]


def test_a_loop_that_has_ended_is_no_error() -> None:
    loop = asyncio.new_event_loop()
    inbox = Inbox(loop)
    loop.close()
    inbox.put(answer("red")[0])
