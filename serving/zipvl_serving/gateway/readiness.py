"""Whether tokens come out: asked of the model itself, at most about once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from zipvl_serving.errors import OverloadedError, ZipvlError, one_line
from zipvl_serving.wire import Chunk, Parameters, WireRequest

_FRESH_S = 1.0
_FIRST = 2**31 - 1


class Readiness:
    """Asks for one token through the whole path, unless one has just come by.

    A full server is proven ready by its own streams: it is not asked for more, and does not leave the load balancer
    for being busy.
    """

    def __init__(
        self,
        generate: Callable[[WireRequest], AsyncGenerator[Chunk, None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generate = generate
        self._clock = clock
        self._asking = asyncio.Lock()
        self._known_at = -_FRESH_S
        self._why_not: str | None = None

    def token_seen(self) -> None:
        """Note that a stream got a token just now."""
        self._know(None)

    async def check(self, timeout_s: float) -> str | None:
        """None, or one line why no token came within `timeout_s`."""
        async with self._asking:
            begun = self._clock()
            if begun - self._known_at >= _FRESH_S:
                why_not = await self._ask(timeout_s)
                if self._known_at < begun:  # no stream has had a token meanwhile
                    self._know(why_not)
            return self._why_not

    def _know(self, why_not: str | None) -> None:
        self._known_at, self._why_not = self._clock(), why_not

    async def _ask(self, timeout_s: float) -> str | None:
        parameters = Parameters(raw=True, max_tokens=1, ignore_eos=True, priority=_FIRST, timeout_s=timeout_s)
        try:
            request = WireRequest(text="ready", parameters=parameters)
            async with asyncio.timeout(timeout_s), aclosing(self._generate(request)) as chunks:
                async for _ in chunks:
                    pass
        except TimeoutError:
            return f"no token within {timeout_s:g} s"
        except OverloadedError:
            return None  # it is full, and says so: it works
        except ZipvlError as error:
            return one_line(error)
        return None
