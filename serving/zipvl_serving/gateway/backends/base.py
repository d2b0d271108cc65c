"""What the gateway needs of whoever generates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from zipvl_serving.errors import UnavailableError
from zipvl_serving.gateway.readiness import Readiness
from zipvl_serving.manifest import Manifest
from zipvl_serving.wire import Chunk, WireRequest


@dataclass(frozen=True)
class ModelInfo:
    """The served model; `created` is seconds since 1970."""

    name: str
    created: int
    max_input_tokens: int
    max_new_tokens: int

    @classmethod
    def of(cls, manifest: Manifest) -> ModelInfo:
        limits = manifest.limits
        created = int(datetime.fromisoformat(manifest.created).timestamp())
        return cls(manifest.name, created, limits.max_input_tokens, limits.max_new_tokens)


class Backend(ABC):
    """One served model. All methods belong to one event loop."""

    def __init__(self, model: ModelInfo) -> None:
        self.model = model
        self.active = 0
        """Answers under way."""
        self._stopping = False
        self._readiness = Readiness(self.generate)

    async def generate(self, request: WireRequest) -> AsyncGenerator[Chunk, None]:
        """An answer's chunks; the last has a finish_reason.

        Closing the generator, or cancelling the task that waits for it, cancels the request. Raises InputError,
        OverloadedError, DeadlineError, UnavailableError, or ZipvlError for what failed.
        """
        if self._stopping:
            raise UnavailableError("the server is stopping")
        self.active += 1
        try:
            async with aclosing(self._answer(request)) as chunks:
                async for chunk in chunks:
                    if chunk.finish_reason == "cancelled":
                        break
                    if chunk.token_ids:
                        self._readiness.token_seen()
                    yield chunk
                    if chunk.finish_reason:
                        return
            raise UnavailableError("the server ended the request before its answer was complete")
        finally:
            self.active -= 1

    async def ready(self, timeout_s: float = 5.0) -> str | None:
        """None where a token comes through the whole path within `timeout_s`, else one line why not."""
        return "the server is stopping" if self._stopping else await self._readiness.check(timeout_s)

    def stop_taking(self) -> None:
        """Refuse new requests with UnavailableError; those under way go on."""
        self._stopping = True

    @abstractmethod
    def _answer(self, request: WireRequest) -> AsyncGenerator[Chunk, None]:
        """As `generate`; ending early, or with `cancelled`, means that the server gave the request up."""

    @abstractmethod
    async def live(self) -> bool:
        """Whether the engine's process or thread works; False asks for a restart."""

    @abstractmethod
    async def metrics(self) -> str:
        """Everything the server counts, in Prometheus' text format."""

    @abstractmethod
    async def close(self) -> None:
        """End what is under way with UnavailableError and let go of everything; any number of times."""
