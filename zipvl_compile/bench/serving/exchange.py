"""One request and its answer, as the client saw them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from zipvl_compile.bench.workload import SLO
from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError, one_line

ErrorKind = Literal["refused", "overloaded", "deadline", "unavailable", "timeout", "failed"]
"""refused: wrong for this server. overloaded: its queue is full. deadline: no place in time. unavailable: it was not
there, or left. timeout: the client's patience. failed: anything else."""

_KINDS: dict[type[BaseException], ErrorKind] = {
    InputError: "refused",
    OverloadedError: "overloaded",
    DeadlineError: "deadline",
    UnavailableError: "unavailable",
    TimeoutError: "timeout",
    ZipvlError: "failed",
}
_NOTICEABLE_S = 0.005
"""Answers made quicker than this may well come at once."""


@dataclass
class Exchange:
    """Seconds are those of the client's clock; nothing in it is an average of several requests."""

    asked: int
    """Tokens that the request asked for."""
    sent_at: float
    due_at: float | None = None
    """When it was to be sent, of an open process: its latencies count from then, so that a late client is no gain."""
    arrivals: list[float] = field(default_factory=list)
    """When pieces of the answer came."""
    counts: list[int] | None = None
    """Tokens of each piece; None where the protocol does not tell (HTTP streams text)."""
    finished_at: float | None = None
    """When the server said that the answer is complete."""
    tokens: int = 0
    """Of the whole answer, as the server counts them."""
    prompt_tokens: int = 0
    statistics: dict[str, Any] = field(default_factory=dict)
    """What the server says of the method and of its own times; empty where it says nothing."""
    ended_at: float = 0.0
    error: ErrorKind | None = None
    message: str = ""

    def arrive(self, at: float, count: int | None = None) -> None:
        """Note a piece of the answer, and its tokens where they are known."""
        self.arrivals.append(at)
        if count is not None:
            self.counts = [*(self.counts or ()), count]

    def fail(self, error: BaseException) -> None:
        """Note what ended it: a ZipvlError or a TimeoutError."""
        self.error = next(_KINDS[kind] for kind in type(error).__mro__ if kind in _KINDS)
        self.message = one_line(error)

    @property
    def begun_at(self) -> float:
        """From when its latencies count."""
        return self.sent_at if self.due_at is None else self.due_at

    @property
    def ttft_s(self) -> float:
        """To the first piece with content; an answer without any (special tokens alone) counts its end."""
        return (self.arrivals[0] if self.arrivals else self._end) - self.begun_at

    @property
    def itl_s(self) -> float | None:
        """Mean inter-token latency: what followed the first token, over the tokens after it; None of one token."""
        if self.tokens < 2 or not self.arrivals:
            return None
        return (self._end - self.arrivals[0]) / (self.tokens - 1)

    @property
    def e2e_s(self) -> float:
        return self._end - self.begun_at

    @property
    def coalesced(self) -> bool:
        """Whether some piece held several tokens, or a token came without a piece of its own (a special one)."""
        return self.tokens > len(self.arrivals)

    @property
    def delayed(self) -> bool:
        """Whether it came in less than half of the time in which the server says that it was made.

        Then the pieces waited on their way, in a gateway, the network or a starved client: TTFT is higher than the
        engine's, ITL lower.
        """
        if self.error or not self.arrivals or not {"ttft_s", "total_s"} <= self.statistics.keys():
            return False
        made_in = self.statistics["total_s"] - self.statistics["ttft_s"]
        return bool(made_in > _NOTICEABLE_S and self._end - self.arrivals[0] < made_in / 2)

    def gaps(self) -> list[float]:
        """Seconds per token between neighbouring pieces.

        A gap is divided over the tokens of the piece that ends it. Where their number is not told, the answer's tokens
        count as spread evenly over its pieces.
        """
        spans = [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]
        if self.counts is None:
            share = max((self.tokens - 1) / len(spans), 1.0) if spans else 1.0
            return [span / share for span in spans]
        return [span / count for span, count in zip(spans, self.counts[1:], strict=True) for _ in range(count)]

    def meets(self, slo: SLO) -> bool:
        """Whether it ended well and kept every limit that is set."""
        if self.error:
            return False
        pairs = ((self.ttft_s, slo.ttft_s), (self.itl_s, slo.itl_s), (self.e2e_s, slo.e2e_s))
        return all(limit is None or seen is None or seen <= limit for seen, limit in pairs)

    @property
    def _end(self) -> float:
        return self.ended_at if self.finished_at is None else self.finished_at
