"""Workers of the gate that measure nothing: their times are made up, by a rule or from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Machine:
    """A noisy machine with two tenants.

    drift: coefficient of variation of what falls on both halves of a pair alike. jitter: of what falls on one sample
    alone. spikes: share of samples that take twice as long.
    """

    seed: int
    drift: float
    jitter: float
    spikes: float = 0.0
    rng: np.random.Generator = field(init=False)
    level: float = 0.0
    taken: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def noise(self) -> float:
        """The factor on the next sample; the drift moves on after each pair."""
        if self.taken % 2 == 0:
            self.level = 0.7 * self.level + np.sqrt(1 - 0.7**2) * self.rng.standard_normal() * self.drift
        self.taken += 1
        own = self.rng.standard_normal() * self.jitter
        return float(np.exp(self.level + own)) * (2.0 if self.rng.random() < self.spikes else 1.0)


@dataclass
class FakeSampler:
    """Answers with `seconds`, on a noisy machine where one is given; remembers what it was asked."""

    seconds: float = 0.055
    machine: Machine | None = None
    decode: float | None = None
    product_s: float = 0.001
    asked: list[tuple[int, int]] = field(default_factory=list)

    def runs(self, length: int, count: int) -> dict[str, list[float]]:
        self.asked.append((length, count))
        taken = self.seconds * (self.machine.noise() if self.machine else 1.0)
        return {"ttft": [taken] * count, "prefill": [taken / 2] * count, "decode": [self.decode or taken / 10] * count}

    def calibrate(self, count: int) -> list[float]:
        return [self.product_s] * count
