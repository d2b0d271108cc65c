"""The model behind Triton's Python backend, with stand-ins for Triton and for the engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import pb_utils
from helpers.pb_utils import PATIENCE_S, Request, TritonError

from zipvl_serving.bundle import Bundle
from zipvl_serving.config import ServingConfig
from zipvl_serving.engine import Sink
from zipvl_serving.errors import OverloadedError, UnavailableError, ZipvlError
from zipvl_serving.metrics import Metrics
from zipvl_serving.triton import model as module
from zipvl_serving.triton.model import ServedModel
from zipvl_serving.triton.tensors import INPUTS
from zipvl_serving.wire import Chunk, WireRequest


class Ticket:
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class FakeEngine:
    """Takes requests and leaves it to the test to answer them."""

    def __init__(self, bundle: Bundle, config: ServingConfig) -> None:
        self.bundle, self.config = bundle, config
        self.metrics = Metrics()
        self.alive = True
        self.refuse_with: Exception | None = None
        self.taken: list[tuple[WireRequest, Sink, Ticket]] = []
        self.calls: list[Any] = []

    def submit(self, request: WireRequest, sink: Sink) -> Ticket:
        if self.refuse_with:
            raise self.refuse_with
        ticket = Ticket()
        self.taken.append((request, sink, ticket))
        return ticket

    def drain(self, seconds: float) -> bool:
        self.calls.append(("drain", seconds))
        return True

    def close(self) -> None:
        self.calls.append("close")
        for _, sink, _ in self.taken:
            sink(UnavailableError("the server stopped"))


def arguments(bundle: Path, settings: dict[str, str] | None = None) -> dict[str, str]:
    """What Triton passes to `initialize`."""
    parameters = {name: {"string_value": value} for name, value in (settings or {}).items()}
    return {
        "model_repository": str(bundle.parents[1]), "model_version": bundle.parent.name, "model_name": "tiny",
        "model_config": json.dumps({"name": "tiny", "parameters": parameters}),
    }  # fmt: skip


@pytest.fixture
def packaged(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle where a repository has it."""
    bundle = tmp_path / "tiny" / "1" / "bundle"
    bundle.parent.mkdir(parents=True)
    bundle.symlink_to(tiny_bundle)
    return bundle


@pytest.fixture
def model(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedModel]:
    monkeypatch.setattr(module, "Engine", FakeEngine)
    served = ServedModel(pb_utils, arguments(packaged))
    yield served
    served._sender.close()


def request(stream: bool = True, **values: Any) -> Request:
    values = {"text_input": "hi", "stream": stream} | values
    return Request({
        name: value if isinstance(value, np.ndarray) else INPUTS[name].array(value) for name, value in values.items()
    })  # fmt: skip


def take(model: ServedModel, *requests: Request) -> list[tuple[WireRequest, Sink, Ticket]]:
    """Execute requests that the engine takes."""
    engine = model.engine
    assert isinstance(engine, FakeEngine)
    before = len(engine.taken)
    assert model.execute(requests) is None
    assert len(engine.taken) == before + len(requests)
    return engine.taken[before:]


def error(sent: list[Chunk | TritonError]) -> TritonError:
    assert isinstance(sent[-1], TritonError), sent
    return sent[-1]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_streamed_answer_is_a_response_per_chunk(model: ServedModel) -> None:
    asked = request(tau=0.5)
    [(wire, sink, _)] = take(model, asked)
    assert (wire.text, wire.parameters.tau) == ("hi", 0.5)
    chunks = [Chunk("a", [1]), Chunk("b", [2]), Chunk("", [3], finish_reason="stop")]
    for count, chunk in enumerate(chunks, start=1):
        sink(chunk)
        assert asked.sender.wait(count) == chunks[:count]
        assert asked.sender.ended == (count == 3)


def test_a_whole_answer_is_one_response(model: ServedModel) -> None:
    asked = request(stream=False)
    [(_, sink, _)] = take(model, asked)
    for chunk in (Chunk("a", [1]), Chunk("b", [2]), Chunk("c", [3], finish_reason="length")):
        sink(chunk)
    assert asked.sender.wait() == [Chunk("abc", [1, 2, 3], finish_reason="length")]


def test_chunks_that_pile_up_leave_together(model: ServedModel) -> None:
    slow, fast = request(), request()
    (_, slow_sink, _), (_, fast_sink, _) = take(model, slow, fast)
    go_on, waits = threading.Event(), threading.Event()
    slow.sender.on_send = lambda: (waits.set(), go_on.wait(PATIENCE_S))
    slow_sink(Chunk("s", [0]))
    assert waits.wait(PATIENCE_S)
    for token in range(1, 5):
        fast_sink(Chunk(f"{token}", [token]))
    fast_sink(Chunk("", [], finish_reason="stop"))
    go_on.set()
    assert fast.sender.wait() == [Chunk("1234", [1, 2, 3, 4], finish_reason="stop")]
    assert slow.sender.sent == [Chunk("s", [0])]


def test_an_error_comes_after_what_was_made_before_it(model: ServedModel) -> None:
    asked = request()
    [(_, sink, _)] = take(model, asked)
    sink(Chunk("a", [1]))
    sink(ZipvlError("the graph broke"))
    sent = asked.sender.wait()
    assert sent[:-1] == [Chunk("a", [1])]
    assert (error(sent).message, error(sent).code) == ("failed: the graph broke", "INTERNAL")


def test_a_whole_answer_that_fails_is_only_an_error(model: ServedModel) -> None:
    asked = request(stream=False)
    [(_, sink, _)] = take(model, asked)
    sink(Chunk("a", [1]))
    sink(ZipvlError("the graph broke"))
    assert len(asked.sender.wait()) == 1
    assert error(asked.sender.sent).message == "failed: the graph broke"


def test_what_comes_after_the_end_is_dropped(model: ServedModel) -> None:
    asked, other = request(), request()
    (_, sink, _), (_, other_sink, _) = take(model, asked, other)
    sink(Chunk("a", [1], finish_reason="stop"))
    assert asked.sender.wait() == [Chunk("a", [1], finish_reason="stop")]
    sink(Chunk("b", [2]))
    other_sink(Chunk("c", [3], finish_reason="stop"))
    other.sender.wait()
    assert len(asked.sender.sent) == 1


# --- requests that go wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tau": np.array([0.5])}, "invalid request: tau: the tensor's type is float64; must be FP32"),
        ({"messages": "[]"}, "invalid request: one of text_input and messages is required; both were given"),
        ({"image": b"http://host/a.png"}, "invalid request: image 1: 'http://host/a.png' is not"),
    ],
)
def test_a_wrong_request_is_answered_and_the_next_one_served(
    model: ServedModel, values: dict[str, Any], said: str
) -> None:
    wrong, right = request(**values), request()
    model.execute([wrong, right])
    assert error(wrong.sender.wait()).message.startswith(said)
    assert error(wrong.sender.sent).code == "INVALID_ARG"
    assert isinstance(model.engine, FakeEngine)
    [(_, sink, _)] = model.engine.taken
    sink(Chunk("", [], finish_reason="stop"))
    assert right.sender.wait() == [Chunk("", [], finish_reason="stop")]


def test_an_unforeseen_error_in_reading_does_not_end_the_model(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request()
    with monkeypatch.context() as patch:
        patch.setattr(module, "from_tensors", lambda *_: 1 / 0)
        model.execute([asked])
    assert error(asked.sender.wait()).message == "failed: internal: ZeroDivisionError: division by zero"
    take(model, request())


def test_what_the_engine_refuses_is_answered(model: ServedModel) -> None:
    assert isinstance(model.engine, FakeEngine)
    model.engine.refuse_with = OverloadedError("256 are waiting")
    asked = request()
    model.execute([asked])
    assert error(asked.sender.wait()).message == "overloaded: 256 are waiting"
    assert error(asked.sender.sent).code == "UNAVAILABLE"


def test_a_dead_engine_says_so_even_to_a_wrong_request(model: ServedModel) -> None:
    assert isinstance(model.engine, FakeEngine)
    model.engine.alive = False
    asked = Request({})
    model.execute([asked])
    assert error(asked.sender.wait()).message.startswith("unavailable: the engine has stopped")


def test_request_parameters_and_the_clients_timeout_count(model: ServedModel) -> None:
    asked = Request({"text_input": INPUTS["text_input"].array("hi")}, {"tau": 0.25, "stream": False}, 1_500_000)
    [(wire, _, _)] = take(model, asked)
    assert (wire.parameters.tau, wire.parameters.timeout_s) == (0.25, 1.5)


# --- cancellation ----------------------------------------------------------------------------------------------------


def test_a_cancelled_request_is_cancelled_in_the_engine_and_ends(model: ServedModel) -> None:
    asked, other = request(), request()
    (_, sink, ticket), (_, _, kept) = take(model, asked, other)
    asked.sender.cancelled = True
    assert ticket.cancelled.wait(PATIENCE_S)
    sink(Chunk("", [], finish_reason="cancelled"))
    assert asked.sender.wait() == [Chunk("", [], finish_reason="cancelled")]
    assert not kept.cancelled.is_set()


def test_a_response_that_cannot_be_sent_cancels_its_request_only(model: ServedModel) -> None:
    broken, other = request(), request()
    (_, sink, ticket), (_, other_sink, _) = take(model, broken, other)
    broken.sender.broken = True
    sink(Chunk("a", [1]))
    assert ticket.cancelled.wait(PATIENCE_S)
    sink(Chunk("", [], finish_reason="cancelled"))
    other_sink(Chunk("b", [2], finish_reason="stop"))
    assert other.sender.wait() == [Chunk("b", [2], finish_reason="stop")]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_reach_triton(model: ServedModel) -> None:
    engine, families = model.engine, pb_utils.MetricFamily.made
    assert families["zipvl_requests_waiting"].metrics[0].labels == {"model": "tiny"}
    assert not families["zipvl_requests_total"].metrics  # nothing happened: no outcome is known
    engine.metrics.count("requests_total", label="stop")
    engine.metrics.count("requests_total", 2, label="length")
    engine.metrics.gauge("kv_pages_used", 7)
    engine.metrics.observe("kept_ratio", 0.5, 0.25, label="3")
    model.finalize()
    outcomes = {metric.labels["outcome"]: metric.value for metric in families["zipvl_requests_total"].metrics}
    assert outcomes == {"stop": 1, "length": 2}
    assert families["zipvl_kv_pages_used"].metrics[0].value == 7
    [ratio] = families["zipvl_kept_ratio"].metrics
    assert (ratio.labels, ratio.observed) == ({"model": "tiny", "layer": "3"}, [0.5, 0.25])
    assert ratio.buckets
    assert ratio.buckets[-1] == 1.0


def test_a_metric_that_fails_stops_nothing(model: ServedModel) -> None:
    model.engine.metrics.count("no_such_metric")
    asked = request()
    [(_, sink, ticket)] = take(model, asked)
    asked.sender.cancelled = True
    assert ticket.cancelled.wait(PATIENCE_S)  # a later tick
    sink(Chunk("", [], finish_reason="cancelled"))
    asked.sender.wait()


# --- start and end ---------------------------------------------------------------------------------------------------


def test_finalize_drains_closes_and_sends_the_rest(model: ServedModel) -> None:
    asked = request()
    take(model, asked)
    model.finalize()
    assert isinstance(model.engine, FakeEngine)
    assert model.engine.calls == [("drain", model.engine.config.drain_s), "close"]
    assert error(asked.sender.wait()).message == "unavailable: the server stopped"


def test_settings_come_from_the_models_configuration(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Engine", FakeEngine)
    served = ServedModel(pb_utils, arguments(packaged, {"zipvl.max_waiting": "3", "other": "x"}))
    assert served.engine.config.max_waiting == 3
    served.finalize()


@pytest.mark.parametrize(
    ("settings", "said"), [({"zipvl.max_wait": "3"}, "max_wait: no such setting"), (None, "not a bundle")]
)
def test_what_cannot_be_loaded_is_one_line(packaged: Path, settings: dict[str, str] | None, said: str) -> None:
    if settings is None:
        packaged.unlink()
    with pytest.raises(pb_utils.TritonModelException, match=said) as caught:
        ServedModel(pb_utils, arguments(packaged, settings))
    assert str(caught.value).isprintable()
