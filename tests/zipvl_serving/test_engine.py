"""The embedded engine on the tiny bundle: threads, answers, caches, and every way in which a request can end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import (
    LAYERS,
    MAX_INPUT_TOKENS,
    PAGE_SIZE,
    QUESTION,
    TOKENS_PER_IMAGE,
    random_image,
    refusal,
)
from helpers.clients import PATIENCE_S, Client, png, wire
from helpers.fake_session import Gate, changed

from zipvl_serving.bundle import Bundle
from zipvl_serving.config import ServingConfig
from zipvl_serving.engine import Engine
from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.intake import CHARACTERS_PER_TOKEN
from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.sessions.base import Session, open_session
from zipvl_serving.wire import Chunk, ImagePart, Message, TextPart, WireRequest

Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Session:
    return open_session(Bundle.open(tiny_bundle))


@pytest.fixture
def start(session: Session) -> Iterator[Start]:
    """Engines that are closed at the end of the test, on the tiny bundle's own session or a given one."""
    engines: list[Engine] = []

    def open_engine(own: Session | None = None, limits: dict[str, Any] | None = None, **config: Any) -> Engine:
        used = own or session
        if own:  # the order of entry is the order of asking
            config.setdefault("preprocess_threads", 1)
        bundle = Bundle(used.bundle.path, changed(used.bundle.manifest, limits=limits or {}))
        engine = Engine(bundle, bundle.manifest.serving.override(config), session=used)
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


@pytest.fixture
def gate(session: Session) -> Iterator[Gate]:
    gate = Gate(session.bundle, limits={"max_new_tokens": 64})
    yield gate
    gate.open.set()


def gauge(engine: Engine, name: str) -> float:
    return engine.metrics.take().gauges[name, ""]


# --- answers ---


def test_many_at_once_get_what_each_gets_alone(session: Session, start: Start) -> None:
    generator = Generator(session.bundle, session)
    engine, asked = start(max_prefill_tokens=100), []
    for number in range(24):
        images = [random_image(seed) for seed in range(number % 4)]
        settings: dict[str, Any] = {"tau": (0.4, 0.8, 1.0)[number % 3], "probe_seed": number}
        if number % 5 == 0:
            settings = {"dense": True}
        params = MethodParams.defaults(session.bundle.manifest.method).override(**settings)
        new = 1 + number % 9
        sampling = {"temperature": 2.0, "seed": number} if number % 2 else {}
        expected = generator.answer(
            generator.prepare(QUESTION, images), SamplingParams(max_new_tokens=new, **sampling), params
        )
        asked.append((wire(QUESTION, images, max_tokens=new, **sampling, **settings), expected))
    clients = [Client(engine, request) for request, _ in asked]
    for client, (_, expected) in zip(clients, asked, strict=True):
        last = client.answer()
        assert client.token_ids == expected.token_ids and client.text == expected.text
        assert last.finish_reason == expected.finish_reason
        statistics = last.statistics
        assert statistics is not None
        assert statistics.kept_tokens_per_layer == expected.prompt.counts
        assert statistics.ratio_per_layer == expected.prompt.ratios
        assert statistics.kv_bytes == expected.kv_bytes and statistics.dense == expected.prompt.dense
        assert statistics.prompt_tokens == expected.prompt.tokens
        assert statistics.completion_tokens == len(expected.token_ids)
        assert 0 <= statistics.queue_s <= statistics.ttft_s <= statistics.total_s
    assert engine.scheduler.pool.pages_used == engine.scheduler.pages_reserved == 0
    assert engine.scheduler.pool.high_water > 0


def test_messages_and_raw_prompts_are_answered(session: Session, start: Start) -> None:
    generator, engine, image = Generator(session.bundle, session), start(), random_image(3)
    expected = generator.answer(generator.prepare(QUESTION, [image]), SamplingParams())
    parts = [ImagePart(), TextPart(text=QUESTION)]
    messages = (Message(role="user", content=parts),)
    raw = generator.processor.render_chat(QUESTION, 1)
    for request in (wire(None, [image], messages), wire(raw, [image], raw=True)):
        client = Client(engine, request)
        client.answer()
        assert client.token_ids == expected.token_ids


def test_log_probabilities_come_with_their_tokens(start: Start) -> None:
    client = Client(start(), wire(logprobs=2, max_tokens=5, stream_interval=2))
    client.answer()
    for chunk in client.chunks:
        assert chunk.logprobs is not None
        assert [entry.token_id for entry in chunk.logprobs] == chunk.token_ids
        assert all(len(entry.top) == 2 and entry.top[0][1] >= entry.logprob for entry in chunk.logprobs)


# --- images ---


def test_an_image_that_comes_again_is_remembered(start: Start) -> None:
    engine, image = start(), random_image(5)
    answers = []
    for hits in (0, 1, 1):
        client = Client(engine, wire(images=[image]))
        statistics = client.answer().statistics
        assert statistics is not None and statistics.cached_images == hits
        answers.append(client.token_ids)
    assert answers[0] == answers[1] == answers[2]
    changes = engine.metrics.take()
    assert changes.counts["image_cache_hits_total", ""] == 2
    assert changes.counts["image_cache_misses_total", ""] == 1
    assert changes.gauges["image_cache_bytes", ""] > 0


@pytest.mark.parametrize("broken", [b"", b"not an image", png(random_image(0))[:200]])
def test_an_image_that_cannot_be_read_is_named_by_its_place(start: Start, broken: bytes) -> None:
    engine = start()
    request = WireRequest(QUESTION, None, (png(random_image(1)), broken))
    error = Client(engine, request).error()
    assert type(error) is InputError and str(error).startswith("image 2: ")
    assert Client(engine, wire()).answer().finish_reason


@pytest.mark.parametrize(
    ("config", "request_of", "message"),
    [
        ({"max_images": 1}, lambda: wire(images=[random_image(1)] * 2), "2 images are too many: at most 1"),
        ({"max_image_bytes": 100}, lambda: wire(images=[random_image(1)]), "more than the limit of 100"),
        ({}, WireRequest, "either a text or messages"),
        ({}, lambda: wire("a", messages=(Message(role="user", content="a"),)), "and not both"),
        ({}, lambda: wire(temperature=-1.0), "temperature"),
        ({}, lambda: wire(tau=2.0), "tau: 2.0 is out of range"),
        ({}, lambda: wire(max_tokens=10_000), "max_new_tokens: 10000 is out of range"),
    ],
)
def test_what_is_wrong_at_sight_is_refused_at_once(
    start: Start, config: dict[str, Any], request_of: Callable[[], WireRequest], message: str
) -> None:
    engine = start(**config)
    with refusal(InputError, message):
        Client(engine, request_of())
    assert engine.waiting == 0
    assert engine.metrics.take().counts["requests_total", "refused"] == 1


def test_what_is_wrong_on_reading_reaches_the_client(start: Start) -> None:
    engine = start(max_image_pixels=1000)
    assert "limit of 0.001 megapixels" in str(Client(engine, wire(images=[random_image(1)])).error())
    assert str(MAX_INPUT_TOKENS) in str(Client(engine, wire("digit " * (MAX_INPUT_TOKENS + 1))).error())
    marks = (Message(role="user", content=[ImagePart(), TextPart(text=QUESTION)]),)
    assert type(Client(engine, wire(None, [], marks)).error()) is InputError
    assert engine.waiting == 0


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(start: Start) -> None:
    engine = start(limits={"kv_bytes": 40 * 2 * PAGE_SIZE * 2 * 8 * 4})
    error = Client(engine, wire("digit " * 100, max_tokens=8, dense=True)).error()
    assert type(error) is InputError and "the KV cache has" in str(error)
    assert Client(engine, wire()).answer().finish_reason


# --- queueing ---


def test_ten_thousand_at_once_are_refused_and_none_hangs(gate: Gate, start: Start) -> None:
    engine = start(gate, limits={"max_batch": 4}, max_waiting=50)
    clients, refused, begun = [], 0, time.perf_counter()
    for _ in range(10_000):
        try:
            clients.append(Client(engine, wire(max_tokens=2, ignore_eos=True)))
        except OverloadedError as error:
            assert "as many as may" in str(error)
            refused += 1
    assert time.perf_counter() - begun < 30
    assert 50 <= len(clients) <= 54 and refused == 10_000 - len(clients)
    gate.open.set()
    for client in clients:
        assert client.answer().finish_reason == "length"
    assert engine.waiting == 0 and Client(engine, wire(max_tokens=1)).answer()


def test_priorities_are_read_first(gate: Gate, start: Start) -> None:
    engine = start(gate, limits={"max_batch": 1}, preprocess_threads=1)
    first = Client(engine, wire(max_tokens=3, ignore_eos=True))
    first.wait(1)
    late = Client(engine, wire("digit " * 20, max_tokens=1))
    urgent = Client(engine, wire("digit " * 9, max_tokens=1, priority=3))
    while len(engine._ready) + engine.scheduler.waiting < 2:
        time.sleep(0.001)
    gate.open.set()
    late.answer(), urgent.answer()
    assert gate.prefilled[1] < gate.prefilled[2]


def test_deadlines_hold_for_waiting_and_running_requests(gate: Gate, start: Start) -> None:
    engine = start(gate, limits={"max_batch": 1})
    running = Client(engine, wire(max_tokens=50, timeout_s=0.3, ignore_eos=True))
    running.wait(1)
    waiting = Client(engine, wire(timeout_s=0.1))
    time.sleep(0.35)
    gate.open.set()
    assert running.answer().finish_reason == "deadline" and len(running.token_ids) < 50
    assert type(waiting.error()) is DeadlineError
    assert engine.scheduler.pool.pages_used == 0


def test_the_servers_own_time_limit_is_the_default(gate: Gate, start: Start) -> None:
    engine = start(gate, timeout_s=0.05)
    client = Client(engine, wire(max_tokens=50, ignore_eos=True))
    client.wait(1)
    time.sleep(0.06)
    gate.open.set()
    assert client.answer().finish_reason == "deadline"


# --- the end ---


def test_cancelled_streams_give_their_pages_back(gate: Gate, start: Start) -> None:
    engine = start(gate, limits={"max_batch": 1})
    running, waiting = Client(engine, wire(max_tokens=50, ignore_eos=True)), Client(engine, wire())
    running.wait(1)
    waiting.ticket.cancel()
    running.ticket.cancel()
    running.ticket.cancel()
    gate.open.set()
    assert running.answer().finish_reason == waiting.answer().finish_reason == "cancelled"
    running.ticket.cancel()
    assert Client(engine, wire(max_tokens=2, ignore_eos=True)).answer().finish_reason == "length"
    assert engine.scheduler.pool.pages_used == 0


def test_a_request_cancelled_while_it_is_read_never_runs(
    start: Start, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, reading, go = start(), threading.Event(), threading.Event()
    prepare = engine._intake.prepare

    def slow(*arguments: Any) -> Any:
        reading.set()
        assert go.wait(PATIENCE_S)
        return prepare(*arguments)

    monkeypatch.setattr(engine._intake, "prepare", slow)
    client = Client(engine, wire())
    assert reading.wait(PATIENCE_S)
    client.ticket.cancel()
    go.set()
    assert client.answer().finish_reason == "cancelled"
    assert client.events == [Chunk("", [], finish_reason="cancelled")]
    assert engine.scheduler.steps == 0


def test_a_sink_that_raises_loses_its_request_only(gate: Gate, start: Start) -> None:
    engine = start(gate)
    calls = []

    def broken(event: object) -> None:
        calls.append(event)
        raise RuntimeError("client code")

    engine.submit(wire(max_tokens=40, ignore_eos=True), broken)
    other = Client(engine, wire(max_tokens=40, ignore_eos=True))
    gate.open.set()
    assert other.answer().finish_reason == "length"
    assert engine.drain(PATIENCE_S)
    assert len(calls) < 40 and engine.alive


def test_an_error_inside_is_one_line_for_its_request_only(gate: Gate, start: Start) -> None:
    engine = start(gate)
    gate.open.set()
    gate.fail_prefill_at = len(Generator(gate.bundle, gate).prepare(QUESTION, []).input_ids)
    error = Client(engine, wire(QUESTION)).error()
    assert type(error) is ZipvlError and str(error) == "internal: RuntimeError: prefill broke"
    assert Client(engine, wire("digit", max_tokens=3, ignore_eos=True)).answer().finish_reason == "length"


def test_draining_lets_streams_end_and_takes_no_more(gate: Gate, start: Start) -> None:
    engine = start(gate, limits={"max_batch": 1})
    clients = [Client(engine, wire(max_tokens=5, ignore_eos=True)) for _ in range(3)]
    clients[0].wait(1)
    assert not engine.drain(0.01)
    with pytest.raises(UnavailableError, match="the server is stopping"):
        Client(engine, wire())
    gate.open.set()
    assert engine.drain(PATIENCE_S)
    assert [client.answer().finish_reason for client in clients] == ["length"] * 3


def test_closing_ends_what_runs_and_what_waits(gate: Gate, start: Start) -> None:
    engine = start(gate, limits={"max_batch": 1})
    clients = [Client(engine, wire(max_tokens=60, ignore_eos=True)) for _ in range(5)]
    clients[0].wait(1)
    closer = threading.Thread(target=engine.close)
    closer.start()
    gate.open.set()
    closer.join(PATIENCE_S)
    assert not closer.is_alive() and not engine.alive
    assert {type(client.error()) for client in clients} == {UnavailableError}
    assert engine.scheduler.pool.pages_used == 0
    with pytest.raises(UnavailableError):
        Client(engine, wire())


def test_a_scheduler_that_dies_ends_every_request(gate: Gate, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(gate)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    client = Client(engine, wire(max_tokens=60, ignore_eos=True))
    client.wait(1)

    def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(engine.scheduler, "step", broken)
    gate.open.set()
    assert type(client.error()) is UnavailableError
    engine._stepper.join(PATIENCE_S)
    assert not engine.alive
    with pytest.raises(UnavailableError, match="must be started again"):
        Client(engine, wire())


# --- figures ---


def test_what_happens_is_counted(start: Start) -> None:
    engine = start()
    answers = [Client(engine, wire(max_tokens=4)).answer() for _ in range(3)]
    assert engine.drain(PATIENCE_S)
    changes = engine.metrics.take()
    prompts = sum(answer.statistics.prompt_tokens for answer in answers if answer.statistics)
    tokens = sum(answer.statistics.completion_tokens for answer in answers if answer.statistics)
    assert changes.counts["prompt_tokens_total", ""] == prompts
    assert changes.counts["generated_tokens_total", ""] == tokens
    assert sum(changes.counts["requests_total", reason] for reason in ("stop", "length")) == 3
    assert changes.counts["steps_total", ""] == engine.scheduler.steps
    assert len(changes.observations["ttft_seconds", ""]) == len(changes.observations["request_seconds", ""]) == 3
    assert len(changes.observations["itl_seconds", ""]) == tokens - 3
    for layer in range(LAYERS):
        assert len(changes.observations["kept_ratio", str(layer)]) == 3
    assert changes.gauges["kv_pages_capacity", ""] == engine.scheduler.pool.pages
    assert changes.gauges["kv_pages_used", ""] == changes.gauges["requests_running", ""] == 0
    assert changes.gauges["requests_waiting", ""] == 0


def test_settings_are_checked() -> None:
    assert ServingConfig().override({"max_waiting": "7", "batch_invariant": "false"}).max_waiting == 7
    with refusal(InputError, "max_waitin: no such setting", "did you mean 'max_waiting'?"):
        ServingConfig().override({"max_waitin": 1})
    with refusal(InputError, "max_waiting: 0 is no valid setting"):
        ServingConfig().override({"max_waiting": 0})


# --- while others are being read ---


@pytest.fixture
def slow_reading(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Engine, threading.Event]]:
    """An engine whose one reader is deep in a request until the event is set."""
    engine, reading, go = start(preprocess_threads=1), threading.Event(), threading.Event()
    prepare = engine._intake.prepare

    def slow(*arguments: Any) -> Any:
        reading.set()
        assert go.wait(PATIENCE_S)
        return prepare(*arguments)

    monkeypatch.setattr(engine._intake, "prepare", slow)
    Client(engine, wire())
    assert reading.wait(PATIENCE_S)
    yield engine, go
    go.set()


def test_unread_requests_are_cancelled_at_once(slow_reading: tuple[Engine, threading.Event]) -> None:
    engine, _ = slow_reading
    client = Client(engine, wire())
    client.ticket.cancel()
    assert client.answer().finish_reason == "cancelled" and engine.waiting == 1


def test_unread_requests_run_out_of_time(slow_reading: tuple[Engine, threading.Event]) -> None:
    engine, _ = slow_reading
    assert type(Client(engine, wire(timeout_s=0.05)).error()) is DeadlineError
    assert engine.waiting == 1


def test_closing_does_not_wait_for_readers(slow_reading: tuple[Engine, threading.Event]) -> None:
    engine, _ = slow_reading
    client, begun = Client(engine, wire()), time.perf_counter()
    engine.close()
    assert time.perf_counter() - begun < 10
    assert type(client.error()) is UnavailableError


# --- what would hold everybody up is refused before it is read ---


def test_a_text_far_too_long_is_not_tokenised(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    monkeypatch.setattr(engine._intake, "_processor", None)
    text = "a " * (MAX_INPUT_TOKENS * CHARACTERS_PER_TOKEN // 2 + 1)
    halves = tuple(Message(role="user", content=text[: len(text) // 2 + 1]) for _ in "ab")
    for request in (wire(text), wire(text, raw=True), wire(None, messages=halves)):
        with refusal(InputError, "characters, far more than", str(MAX_INPUT_TOKENS)):
            Client(engine, request)


def test_more_images_than_fit_are_not_embedded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    monkeypatch.setattr(engine._intake, "_vision", None)
    most = MAX_INPUT_TOKENS // TOKENS_PER_IMAGE
    with refusal(InputError, f"{most + 1} images take", str(MAX_INPUT_TOKENS)):
        Client(engine, wire(images=[random_image(0)] * (most + 1)))


def test_a_token_that_is_none_has_no_bias(start: Start) -> None:
    with refusal(InputError, "logit_bias: there is no token 99999"):
        Client(start(), wire(logit_bias={"99999": 1.0}))


def test_the_same_image_twice_is_embedded_once(start: Start) -> None:
    engine = start()
    assert Client(engine, wire(images=[random_image(9)] * 2)).answer().finish_reason
    assert engine.metrics.take().counts["image_cache_misses_total", ""] == 1
