"""Exchanges made by hand, a client that answers without a server, and workloads for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from zipvl_compile.bench.serving.clients.base import Client
from zipvl_compile.bench.serving.exchange import Exchange
from zipvl_compile.bench.serving.prompts import Prompt
from zipvl_compile.bench.workload import ServingLoad
from zipvl_serving.errors import UnavailableError, ZipvlError

STATISTICS = {
    "ratio_per_layer": [0.5, 0.25], "kv_bytes": 4096, "dense": False, "cached_images": 0, "queue_s": 0.1, "ttft_s": 0.2,
}  # fmt: skip


def exchange(
    sent_at: float,
    *arrivals: float,
    counts: Sequence[int] | None = None,
    tokens: int | None = None,
    asked: int | None = None,
    error: BaseException | None = None,
    **changes: Any,
) -> Exchange:
    """An answer whose last piece ends it; one token per piece unless told otherwise."""
    total = tokens if tokens is not None else sum(counts) if counts else len(arrivals)
    end = arrivals[-1] if arrivals else sent_at
    made = Exchange(asked if asked is not None else total, sent_at, arrivals=list(arrivals), ended_at=end, tokens=total)
    made.counts = list(counts) if counts else None
    if error:
        made.fail(error)
    else:
        made.finished_at, made.prompt_tokens, made.statistics = end, 7, STATISTICS
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def workload(**changes: Any) -> ServingLoad:
    """A small one of two modes."""
    small = {
        "kind": "serving", "name": "small", "modes": ["dense", {"tau": 0.9}], "concurrency": [2], "requests": 4,
        "rounds": 2, "warm_up": 1, "new_tokens": {"low": 3}, "input": "scenes",
    }  # fmt: skip
    return ServingLoad.model_validate(small | changes)


class FakeClient(Client):
    """Every answer is three tokens, half a second each, of a clock that only requests move.

    answer: given a request's number from 1, may make another answer, which begins at 0, or raise a ZipvlError.
    """

    def __init__(self, answer: Callable[[int], Exchange | None] = lambda number: None) -> None:
        self.now = 0.0
        super().__init__("fake://server", lambda: self.now)
        self.answer = answer
        self.model = ""
        self.log: list[tuple[dict[str, Any], Prompt]] = []
        """Method and prompt of every request, in the order in which they were sent."""
        self.encoded = self.in_flight = self.most_in_flight = 0
        self.gone = self.closed = False

    async def connect(self, model: str | None) -> None:
        self.model = model or "fake"

    async def check(self) -> None:
        if self.gone:
            raise UnavailableError("fake://server: no server answers")

    async def close(self) -> None:
        self.closed = True

    def _encode(self, prompt: Prompt, method: dict[str, Any]) -> tuple[dict[str, Any], Prompt]:
        self.encoded += 1
        return method, prompt

    async def _stream(self, payload: tuple[dict[str, Any], Prompt], exchange: Exchange) -> None:
        self.log.append(payload)
        number = len(self.log)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)  # the others may start
            made = self.answer(number)
        finally:
            self.in_flight -= 1
            self.now += 0.5
        if made is not None:
            begun, self.now = self.now, self.now + made.ended_at
            exchange.sent_at, exchange.arrivals = begun, [begun + at for at in made.arrivals]
            exchange.finished_at, exchange.counts, exchange.tokens = self.now, made.counts, made.tokens
            exchange.asked, exchange.statistics = made.asked, made.statistics
            return
        for _ in range(3):
            exchange.arrive(self.now, 1)
            self.now += 0.5
        self.now -= 0.5
        exchange.finished_at, exchange.tokens, exchange.statistics = self.now, 3, dict(STATISTICS)


def failing(error: ZipvlError, *numbers: int) -> Callable[[int], None]:
    """Fails the requests of these numbers."""

    def answer(number: int) -> None:
        if number in numbers:
            raise error

    return answer
