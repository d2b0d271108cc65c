"""What the load needs of a client."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zipvl_compile.bench.serving.exchange import Exchange
from zipvl_compile.bench.serving.prompts import Prompt
from zipvl_compile.bench.workload import Mode
from zipvl_serving.errors import InputError, ZipvlError, nearest

Clock = Callable[[], float]


@dataclass(frozen=True)
class Encoded:
    """A request as a client's `_stream` takes it."""

    payload: Any
    new_tokens: int


def choose_model(served: list[str], wanted: str | None, where: str) -> str:
    """The model to ask: the only one, or the one named. Raises InputError."""
    if wanted is not None and wanted not in served:
        raise InputError(f"{where}: serves no model {wanted!r}; {nearest(wanted, served)}")
    if wanted is None and len(served) != 1:
        raise InputError(f"{where}: serves {len(served)} models; choose one with --model: {', '.join(sorted(served))}")
    return wanted or served[0]


class Client(ABC):
    """One server, one model of it. All methods belong to one event loop."""

    model: str
    """Known once `connect` has returned."""

    def __init__(self, where: str, clock: Clock) -> None:
        self.where = where
        self.clock = clock

    @abstractmethod
    async def connect(self, model: str | None) -> None:
        """Find the server ready and the model in it.

        Raises InputError for a model that is not there, UnavailableError where no server answers or it is not ready.
        """

    @abstractmethod
    async def check(self) -> None:
        """Raises UnavailableError where no server answers any more; one that merely refuses is there."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of all connections."""

    def encode(self, prompt: Prompt, mode: Mode) -> Encoded:
        """What `send` takes, so that no request waits until another one is encoded."""
        return Encoded(self._encode(prompt, mode.method), prompt.new_tokens)

    async def send(self, request: Encoded, timeout_s: float, due_at: float | None = None) -> Exchange:
        """Send one request and read its answer to the end, at most `timeout_s` seconds; its errors are in the result.

        due_at: by the client's clock, when it was to be sent.
        """
        exchange = Exchange(request.new_tokens, self.clock(), due_at)
        try:
            async with asyncio.timeout(timeout_s):
                await self._stream(request.payload, exchange)
        except TimeoutError:
            exchange.fail(TimeoutError(f"the answer was not complete after {timeout_s:g} s"))
        except ZipvlError as error:
            exchange.fail(error)
        exchange.ended_at = self.clock()
        return exchange

    @abstractmethod
    def _encode(self, prompt: Prompt, method: dict[str, Any]) -> Any:
        """The request as `_stream` takes it."""

    @abstractmethod
    async def _stream(self, payload: Any, exchange: Exchange) -> None:
        """Send the request and fill the exchange; raises a ZipvlError where it did not end well."""
