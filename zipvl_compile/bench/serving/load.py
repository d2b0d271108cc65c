"""Sends the requests of one mode at one point, closed or open, and waits for all of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from zipvl_compile.bench.serving.clients.base import Client, Encoded
from zipvl_compile.bench.serving.exchange import Exchange
from zipvl_compile.bench.serving.prompts import Prompt
from zipvl_compile.bench.workload import Mode
from zipvl_serving.errors import UnavailableError, ZipvlError

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Batch:
    """Requests that were sent together, in the order of their prompts."""

    exchanges: list[Exchange]

    @property
    def begun_at(self) -> float:
        """When the first request was sent, or due."""
        return min(one.begun_at for one in self.exchanges)

    @property
    def seconds(self) -> float:
        """Until the last answer ended."""
        return max(one.ended_at for one in self.exchanges) - self.begun_at

    @property
    def lags(self) -> list[float]:
        """Of an open process: seconds by which the client was late in sending each."""
        return [one.sent_at - one.due_at for one in self.exchanges if one.due_at is not None]


class Load:
    """Drives one client.

    A request that fails is one of the results. Only a server that no longer answers at all ends the run, with
    UnavailableError.
    """

    def __init__(self, client: Client, timeout_s: float, sleep: Sleep = asyncio.sleep) -> None:
        self.client = client
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._run = secrets.token_hex(4)
        self._made = 0

    async def closed(self, prompts: Sequence[Prompt], mode: Mode, concurrency: int) -> Batch:
        """Keep `concurrency` requests in flight until all have been sent; a new one follows each that ends."""
        requests = self._encoded(prompts, mode)
        waiting = iter(range(len(requests)))
        exchanges: dict[int, Exchange] = {}

        async def user() -> None:
            for at in waiting:
                exchanges[at] = await self._send(requests[at])

        await _together([user() for _ in range(min(concurrency, len(requests)))])
        return Batch([exchanges[at] for at in range(len(requests))])

    async def open(self, prompts: Sequence[Prompt], mode: Mode, due: Sequence[float]) -> Batch:
        """Send every request when it is due, seconds from now, whatever has ended."""
        requests = self._encoded(prompts, mode)
        clock, begun = self.client.clock, self.client.clock()

        async def send_at(request: Encoded, due_at: float) -> Exchange:
            if (wait := due_at - clock()) > 0:
                await self._sleep(wait)
            return await self._send(request, due_at)

        return Batch(
            await _together([send_at(request, begun + when) for request, when in zip(requests, due, strict=True)])
        )

    def _encoded(self, prompts: Sequence[Prompt], mode: Mode) -> list[Encoded]:
        """Requests that nobody has sent yet, ready before the first of them is."""
        requests = []
        for prompt in prompts:
            self._made += 1
            requests.append(self.client.encode(prompt.fresh(f"{self._run}-{self._made}"), mode))
        return requests

    async def _send(self, request: Encoded, due_at: float | None = None) -> Exchange:
        exchange = await self.client.send(request, self._timeout_s, due_at)
        if exchange.error == "unavailable":
            try:
                await self.client.check()
            except UnavailableError as error:
                raise UnavailableError(f"the server left during the run: {error}") from None
        return exchange


async def _together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except* ZipvlError as errors:
        first = errors.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first
