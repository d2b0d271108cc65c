"""Readiness is a token, asked for no more than about once a second."""

from __future__ import annotations

import asyncio
import threading

from helpers.gateway import FakeBackend, answer

from zipvl_serving.errors import OverloadedError, ZipvlError
from zipvl_serving.gateway.readiness import Readiness
from zipvl_serving.wire import WireRequest


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_probe_is_one_token_ahead_of_all_others() -> None:
    backend = FakeBackend()
    assert asyncio.run(backend.ready()) is None
    parameters = backend.requests[0].parameters
    assert parameters.max_tokens == 1 and parameters.ignore_eos and parameters.timeout_s == 5
    assert parameters.priority == 2**31 - 1


def test_probes_within_a_second_share_one_answer() -> None:
    clock, backend = Clock(), FakeBackend()
    readiness = Readiness(backend.generate, clock)

    async def run() -> None:
        assert await asyncio.gather(*(readiness.check(5) for _ in range(20))) == [None] * 20
        assert len(backend.requests) == 1
        clock.now += 0.9
        await readiness.check(5)
        assert len(backend.requests) == 1
        clock.now += 0.2
        await readiness.check(5)
        assert len(backend.requests) == 2

    asyncio.run(run())


def test_a_failure_is_one_line_and_is_remembered_as_long() -> None:
    clock, backend = Clock(), FakeBackend(ZipvlError("the model\nis broken"))
    readiness = Readiness(backend.generate, clock)

    async def run() -> None:
        assert await readiness.check(5) == "the model is broken"
        backend.script = tuple(answer("red"))
        assert await readiness.check(5) == "the model is broken"
        clock.now += 1
        assert await readiness.check(5) is None

    asyncio.run(run())


def test_streams_that_run_are_proof_enough() -> None:
    """A server that is full refuses the probe, and is ready all the same."""
    backend = FakeBackend()

    async def run() -> None:
        async for _ in backend.generate(WireRequest("a question")):
            pass
        backend.script = (OverloadedError("256 requests are waiting"),)
        assert await backend.ready() is None
        assert len(backend.requests) == 1

    asyncio.run(run())


def test_a_token_seen_while_the_probe_waits_counts() -> None:
    readiness: Readiness

    async def refuse_later(request: WireRequest):  # type: ignore[no-untyped-def]
        readiness.token_seen()
        raise OverloadedError("full")
        yield

    readiness = Readiness(refuse_later)
    assert asyncio.run(readiness.check(5)) is None


def test_a_model_that_hangs_is_not_ready_and_the_probe_is_taken_back() -> None:
    backend = FakeBackend(threading.Event())
    assert asyncio.run(backend.ready(0.05)) == "no token within 0.05 s"
    assert backend.cancelled.is_set()


def test_a_server_that_stops_is_not_ready() -> None:
    backend = FakeBackend()
    backend.stop_taking()
    assert asyncio.run(backend.ready()) == "the server is stopping"
    assert not backend.requests
