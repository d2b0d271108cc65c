"""Measure, on the machine that builds, from which prompt length on selection pays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from zipvl_serving.arrays import Array
from zipvl_serving.manifest import BreakEven, Method
from zipvl_serving.probes import probe_positions
from zipvl_serving.sessions.base import PrefillInputs, Session

_BUDGET_S = 12.0
_PAIRS = 6


def measure(
    session: Session, method: Method, ratio: float, lengths: Sequence[int], on_length: Callable[[int], None]
) -> BreakEven:
    """Time prefill at a forced ratio against dense prefill, in ABBA order, at each length in turn.

    Stops early when its time is spent. A length counts as paying where the median of the paired time ratios is at most
    1; the break-even is the first of the longest run of paying lengths that reaches the end.
    """
    vocabulary = session.bundle.manifest.model.shape.vocabulary
    generator = np.random.Generator(np.random.PCG64(0))
    started = time.perf_counter()
    medians: dict[int, float] = {}
    for tokens in lengths:
        on_length(tokens)
        ids = generator.integers(0, vocabulary, tokens)
        ids[ids == session.bundle.manifest.model.image_token] = 0
        probes = probe_positions(tokens, method.probe_recent, method.probe_random, method.seed)
        forced = np.arange(tokens) == tokens - 1

        def run(forced_ratio: float, ids: Array = ids, probes: Array = probes, f: Array = forced) -> float:
            inputs = PrefillInputs(
                ids, np.arange(len(ids)), probes, f, tau=0.5, ratio_min=forced_ratio, ratio_max=forced_ratio
            )
            begun = time.perf_counter()
            session.prefill(inputs, None)
            return time.perf_counter() - begun

        pair = run(1.0) + run(ratio)  # warm-up
        if medians and time.perf_counter() - started + _PAIRS * pair > _BUDGET_S:
            break
        ratios = []
        for number in range(_PAIRS):
            order = (ratio, 1.0) if number % 2 == 0 else (1.0, ratio)
            seconds = {forced_ratio: run(forced_ratio) for forced_ratio in order}
            ratios.append(seconds[ratio] / seconds[1.0])
        medians[tokens] = statistics.median(ratios)
    return BreakEven(ratio=ratio, tokens=_first_paying(medians), ratios=medians)


def default_lengths(max_input_tokens: int) -> list[int]:
    """Powers of two from 64 to the bundle's limit, the limit included."""
    lengths = []
    tokens = 64
    while tokens < max_input_tokens:
        lengths.append(tokens)
        tokens *= 2
    return [*lengths, max_input_tokens]


def _first_paying(medians: dict[int, float]) -> int | None:
    first = None
    for tokens in sorted(medians, reverse=True):
        if medians[tokens] > 1:
            break
        first = tokens
    return first
