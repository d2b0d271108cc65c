"""Workers of the gate that measure nothing: their times are made up, by a rule or from a seed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

from benchmarks.gate_noise import SECONDS
from zipvl_compile.gate.paired import Sides
from zipvl_compile.gate.process import CLOCKS, Runs, Sampler, Seconds


@dataclass
class FakeSampler:
    """Answers with `seconds`; remembers what it was asked.

    cpu: processor seconds, where they are not those on the wall. tokens: of the prompt of a length.
    """

    seconds: float = SECONDS
    decode: float | None = None
    product_s: float = 0.001
    cpu: float | None = None
    tokens: Callable[[int], int] = int
    kept: tuple[int, ...] = (5, 7)
    text: str = "a 7"
    asked: list[tuple[int, int]] = field(default_factory=list)

    def runs(self, length: int, count: int) -> Runs:
        self.asked.append((length, count))
        taken = {"wall": self.seconds, "cpu": self.cpu or self.seconds}

        def share(part: float) -> Seconds:
            return {clock: [part * taken[clock]] * count for clock in CLOCKS}

        decode = dict.fromkeys(CLOCKS, [self.decode] * count) if self.decode else share(0.1)
        figures = {"ttft": share(1), "prefill": share(0.5), "decode": decode, "dense": share(0.6)}
        return Runs(self.tokens(length), self.kept, self.text, figures)

    def calibrate(self, count: int, side: int) -> Seconds:
        return dict.fromkeys(CLOCKS, [self.product_s] * count)


def both(base: Sampler, head: Sampler) -> Sides:
    """Two sides that are there already, however often they are started."""
    return lambda: nullcontext((base, head))
