"""Sending requests, without a server and without a clock of the world."""

from __future__ import annotations

import asyncio

import pytest
from helpers.bundles import refusal
from helpers.load import FakeClient, exchange, failing, workload

from zipvl_compile.bench.serving.load import Batch, Load
from zipvl_compile.bench.serving.prompts import Prompt, make_prompts
from zipvl_serving.errors import OverloadedError, UnavailableError

LOAD = workload(requests=10)
DENSE = LOAD.modes[0]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return make_prompts(LOAD)


@pytest.mark.parametrize("concurrency", [1, 3, 10, 16])
def test_a_closed_loop_keeps_so_many_in_flight_and_sends_every_request_once(
    prompts: list[Prompt], concurrency: int
) -> None:
    client = FakeClient()
    batch = asyncio.run(Load(client, 60).closed(prompts, DENSE, concurrency))
    assert client.most_in_flight == min(concurrency, 10)
    assert len(batch.exchanges) == 10 == len(client.log)
    assert all(not one.error for one in batch.exchanges)
    assert batch.seconds == client.now


def test_no_image_is_sent_twice_as_the_same_file(prompts: list[Prompt]) -> None:
    client = FakeClient()
    load = Load(client, 60)
    for _ in range(2):
        asyncio.run(load.closed(prompts, DENSE, 2))
    sent = [prompt.images[0] for _, prompt in client.log]
    assert len(set(sent)) == len(sent) == 20


def test_an_open_process_sends_when_due_whatever_has_ended(prompts: list[Prompt]) -> None:
    """Every sleep passes at once, and ends an eighth of a second late."""
    client = FakeClient()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        client.now += seconds + 0.125

    due = [0.0, 1.0, 1.5]
    batch = asyncio.run(Load(client, 60, sleep).open(prompts[:3], DENSE, due))
    assert slept == [1.0, 0.375]  # the first one is due at once
    assert client.most_in_flight == 3
    assert [one.sent_at for one in batch.exchanges] == [0.0, 1.125, 1.625]
    assert [one.due_at for one in batch.exchanges] == due
    assert batch.lags == [0.0, 0.125, 0.125]


def test_latencies_of_an_open_process_count_from_when_a_request_was_due() -> None:
    late = exchange(2.5, 3.0, 4.0, due_at=2.0)
    assert (late.ttft_s, late.e2e_s, late.itl_s) == (1.0, 2.0, 1.0)
    assert Batch([exchange(2.0, 3.0, due_at=1.0), late]).seconds == 3.0


@pytest.mark.parametrize("process", ["closed", "open"])
def test_every_request_is_encoded_before_the_first_is_sent(prompts: list[Prompt], process: str) -> None:
    client = FakeClient()
    encoded: list[int] = []
    client.answer = lambda number: encoded.append(client.encoded)
    load = Load(client, 60)
    asyncio.run(load.closed(prompts, DENSE, 2) if process == "closed" else load.open(prompts, DENSE, [0.0] * 10))
    assert encoded == [10] * 10


def test_a_request_that_fails_is_a_result(prompts: list[Prompt]) -> None:
    client = FakeClient(failing(OverloadedError("full"), 2, 3))
    batch = asyncio.run(Load(client, 60).closed(prompts, DENSE, 1))
    assert [one.error for one in batch.exchanges] == [None, "overloaded", "overloaded", *[None] * 7]
    assert len(client.log) == 10


def test_a_request_that_a_living_server_did_not_end_is_a_result_too(prompts: list[Prompt]) -> None:
    client = FakeClient(failing(UnavailableError("restarting"), 1))
    batch = asyncio.run(Load(client, 60).closed(prompts, DENSE, 4))
    assert [one.error for one in batch.exchanges].count("unavailable") == 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_server_that_left_ends_the_run_in_one_line(prompts: list[Prompt], concurrency: int) -> None:
    client = FakeClient(failing(UnavailableError("the connection was lost"), *range(3, 11)))
    client.gone = True
    with refusal(UnavailableError, "the server left during the run", "no server answers"):
        asyncio.run(Load(client, 60).closed(prompts, DENSE, concurrency))
    assert len(client.log) < 10


def test_a_request_without_an_end_is_a_timeout(prompts: list[Prompt]) -> None:
    class Silent(FakeClient):
        async def _stream(self, payload: object, exchange: object) -> None:
            await asyncio.Event().wait()

    batch = asyncio.run(Load(Silent(), 0.01).closed(prompts[:2], DENSE, 2))
    assert [one.error for one in batch.exchanges] == ["timeout", "timeout"]
    assert "0.01 s" in batch.exchanges[0].message
