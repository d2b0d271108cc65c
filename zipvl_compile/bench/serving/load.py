"""Sends the requests of one mode at one point, closed or open, and waits for all of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from zipvl_compile.bench.serving.clients.base import Client
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
    lags: list[float] = field(default_factory=list)
    """Of an open process: seconds by which the client was late in sending each."""

    @property
    def seconds(self) -> float:
        """From the first request sent to the last answer ended."""
        return max(one.ended_at for one in self.exchanges) - min(one.sent_at for one in self.exchanges)


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
        self._sent = 0

    async def closed(self, prompts: Sequence[Prompt], mode: Mode, concurrency: int) -> Batch:
        """Keep `concurrency` requests in flight until all have been sent; a new one follows each that ends."""
        waiting = iter(range(len(prompts)))
        exchanges: dict[int, Exchange] = {}

        async def user() -> None:
            for at in waiting:
                exchanges[at] = await self._send(prompts[at], mode)

        await _together([user() for _ in range(min(concurrency, len(prompts)))])
        return Batch([exchanges[at] for at in range(len(prompts))])

    async def open(self, prompts: Sequence[Prompt], mode: Mode, due: Sequence[float]) -> Batch:
        """Send every request when it is due, seconds from now, whatever has ended."""
        clock, begun = self.client.clock, self.client.clock()

        async def send_at(prompt: Prompt, when: float) -> Exchange:
            if (wait := begun + when - clock()) > 0:
                await self._sleep(wait)
            return await self._send(prompt, mode)

        exchanges = await _together([send_at(prompt, when) for prompt, when in zip(prompts, due, strict=True)])
        lags = [one.sent_at - begun - when for one, when in zip(exchanges, due, strict=True)]
        return Batch(exchanges, lags)

    async def _send(self, prompt: Prompt, mode: Mode) -> Exchange:
        self._sent += 1
        exchange = await self.client.ask(prompt.fresh(f"{self._run}-{self._sent}"), mode, self._timeout_s)
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
