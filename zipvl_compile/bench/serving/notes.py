"""What a reader must know to read a sweep's figures right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zipvl_compile.bench.results import Cell, Target
from zipvl_compile.bench.serving.points import points
from zipvl_compile.bench.tables import at_text
from zipvl_compile.bench.target import RANDOM_WEIGHTS_NOTE
from zipvl_compile.bench.workload import ServingLoad

_STEADY = 4
"""Requests per slot of a closed loop from which its ramps no longer rule a round's figures."""


_LAG_S = 0.005
"""A client that is later than this does not send what the workload says."""
_PROMPTS = {
    "scenes": "Prompts are scenes of the demo's held-out glyphs, each with a question about a colour.",
    "noise": "Prompts are noise and one plain question: a ratio that a tau chose there says nothing of photographs.",
}


def notes(workload: ServingLoad, target: Target, cells: Sequence[Cell]) -> list[str]:
    """A sentence or two per thing; `cells` are all of the sweep."""
    return [
        "TTFT is all that a client waits for: the network, image decoding, tokenising, the queue, vision, prefill and "
        "sampling. In an open process it counts from when the request was due.",
        "itl_s is a request's mean: from its first token to its end, over the tokens after the first. itl_gap_s are "
        "the gaps between neighbouring pieces of a stream, each divided by its tokens.",
        "A latency's figure is the median over rounds of each round's median; its percentiles are over all requests.",
        _PROMPTS[workload.input],
        *_of_method(workload, target, cells),
        *_of_answers(cells),
        *_of_load(workload, cells),
    ]


def _of_method(workload: ServingLoad, target: Target, cells: Sequence[Cell]) -> Iterator[str]:
    if target.weights == "random":
        yield RANDOM_WEIGHTS_NOTE
    forced = [mode.name for mode in workload.modes if mode.kind == "forced_ratio"]
    if forced and target.weights == "unknown":
        yield (
            f"{', '.join(forced)}: a forced ratio studies the cost of random weights, and the server does not tell "
            "whether its weights are; on a trained model it is the fixed-ratio baseline."
        )
    for mode in workload.modes:
        shares = {at_text(one.at): one.facts.get("dense_share", 0) for one in cells if one.mode == mode.name}
        if mode.kind != "dense" and any(shares.values()):
            where = ", ".join(f"{share:.0%} at {at}" for at, share in shares.items() if share)
            yield f"{mode.name} ran dense in some of its answers ({where}): inputs below the bundle's dense_below do."


def _of_answers(cells: Sequence[Cell]) -> Iterator[str]:
    if failed := sum(sum(one.facts["errors"].values()) for one in cells):
        first = next(one.facts["first_error"] for one in cells if one.facts["first_error"])
        yield f"{failed} requests failed; they are in no latency and no rate. The first said: {first}"
    ended = sum(one.facts["requests_ended"] for one in cells)
    if coalesced := sum(one.facts["requests_coalesced"] for one in cells):
        yield (
            f"{coalesced} of {ended} answers came in fewer pieces than tokens (several in one piece, or tokens without "
            "text). HTTP does not tell the tokens of a piece: there the gaps count as divided evenly."
        )
    if delayed := sum(one.facts["requests_delayed"] for one in cells):
        yield (
            f"{delayed} of {ended} answers reached the client in less than half of the time in which the engine made "
            "them: they waited on their way (a busy machine?), their TTFT is too high and their ITL too low."
        )
    if short := sum(one.facts["requests_short"] for one in cells):
        yield f"{short} answers ended before the tokens that were asked for: the modes' loads differ."
    if cached := sum(one.facts.get("cached_images", 0) for one in cells):
        yield f"{cached} images came from the server's cache: their TTFT lacks the vision tower."


def _of_load(workload: ServingLoad, cells: Sequence[Cell]) -> Iterator[str]:
    lags = [one.facts["client_lag_s"]["p99"] for one in cells if "client_lag_s" in one.facts]
    if (most := max(lags, default=0.0)) > _LAG_S:
        yield (
            f"The client sent late, by up to {most * 1000:.0f} ms (p99) at a point: it had too little of the machine "
            "for this rate. Latencies count from when requests were due, so they hold the delay."
        )
    in_round = workload.requests // workload.rounds
    ramped = [one for one in points(workload) if in_round < _STEADY * one.get("concurrency", 0)]  # type: ignore[operator]
    if ramped:
        where = ", ".join(str(one["concurrency"]) for one in ramped)
        yield (
            f"At concurrency {where} a round has fewer than {_STEADY} requests per slot ({in_round}): its rates hold "
            "the ramps at both ends, and are below those of a steady load."
        )
