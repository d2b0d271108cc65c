"""What the exchanges of one mode at one point say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from zipvl_compile.bench.results import QUANTITIES, Cell
from zipvl_compile.bench.serving.exchange import Exchange
from zipvl_compile.bench.serving.load import Batch
from zipvl_compile.bench.serving.points import Point
from zipvl_compile.bench.statistics import percentiles
from zipvl_compile.bench.workload import SLO


def cell(mode: str, at: Point, batches: Sequence[Batch], slo: SLO) -> Cell:
    """All rounds of one mode at one point.

    A round is one sample, for its requests wait for each other: rates of the round, and medians of its requests'
    latencies; a figure that some round does not have is left out. Percentiles, in the facts, are over all requests.
    Failed requests are in the facts, by kind, and in nothing else.
    """
    exchanges = [one for batch in batches for one in batch.exchanges]
    ended = [one for one in exchanges if not one.error]
    rounds = [rates(batch, slo) | medians(batch) for batch in batches]
    complete = [name for name in QUANTITIES if all(name in values for values in rounds)]
    gaps = [gap for one in ended for gap in one.gaps()]
    latencies = {name: values for name, values in {**_latencies(ended), "itl_gap_s": gaps}.items() if values}
    facts: dict[str, Any] = {
        "requests": len(exchanges),
        "requests_ended": len(ended),
        "errors": dict(Counter(one.error for one in exchanges if one.error)),
        "first_error": next((one.message for one in exchanges if one.error), None),
        "percentiles": {name: percentiles(values) for name, values in latencies.items()},
        "requests_coalesced": sum(one.coalesced for one in ended),
        "requests_delayed": sum(one.delayed for one in ended),
        "requests_short": sum(one.tokens < one.asked for one in ended),
        **_server_side(ended),
    }
    if _is_set(slo):
        facts["slo_attainment"] = sum(one.meets(slo) for one in exchanges) / len(exchanges)
    if lags := [lag for batch in batches for lag in batch.lags]:
        facts["client_lag_s"] = percentiles(lags)
    return Cell.of(mode, at, {name: [values[name] for values in rounds] for name in complete}, **facts)


def rates(batch: Batch, slo: SLO) -> dict[str, float]:
    """Per second of a round: tokens and requests of answers that ended well, and requests that kept every SLO."""
    ended = [one for one in batch.exchanges if not one.error]
    counted = {"tokens_per_s": sum(one.tokens for one in ended), "requests_per_s": len(ended)}
    if _is_set(slo):
        counted["goodput_per_s"] = sum(one.meets(slo) for one in ended)
    return {name: value / batch.seconds for name, value in counted.items()}


def medians(batch: Batch) -> dict[str, float]:
    """p50 over a round's requests of each latency that any of them has."""
    found = _latencies([one for one in batch.exchanges if not one.error])
    return {name: percentiles(values, (50,))["p50"] for name, values in found.items() if values}


def _latencies(ended: Sequence[Exchange]) -> dict[str, list[float]]:
    return {
        "ttft_s": [one.ttft_s for one in ended],
        "itl_s": [one.itl_s for one in ended if one.itl_s is not None],
        "e2e_s": [one.e2e_s for one in ended],
    }


def _server_side(ended: Sequence[Exchange]) -> dict[str, Any]:
    """Means over requests of what the server says of the method, and of its own times; empty where it says nothing."""
    facts: dict[str, Any] = {}
    if ended:
        facts["prompt_tokens"] = fmean(one.prompt_tokens for one in ended)
    told = [one.statistics for one in ended if one.statistics]
    if not told:
        return facts
    layers = zip(*(one["ratio_per_layer"] for one in told), strict=True)
    return facts | {
        "ratio_per_layer": [fmean(layer) for layer in layers],
        "kv_bytes": fmean(one["kv_bytes"] for one in told),
        "dense_share": fmean(one["dense"] for one in told),
        "cached_images": sum(one["cached_images"] for one in told),
        "server_queue_s": percentiles([one["queue_s"] for one in told]),
        "server_ttft_s": percentiles([one["ttft_s"] for one in told]),
    }


def _is_set(slo: SLO) -> bool:
    return any(limit is not None for limit in (slo.ttft_s, slo.itl_s, slo.e2e_s))
