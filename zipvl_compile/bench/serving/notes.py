"""What a reader must know to read a sweep's figures right."""

from __future__ import annotations

from collections.abc import Sequence

from zipvl_compile.bench.results import Cell, Target
from zipvl_compile.bench.serving.points import points
from zipvl_compile.bench.target import RANDOM_WEIGHTS_NOTE
from zipvl_compile.bench.workload import ServingLoad

_STEADY = 4
"""Requests per slot of a closed loop from which its ramps no longer rule a round's figures."""


def notes(workload: ServingLoad, target: Target, cells: Sequence[Cell]) -> list[str]:
    """A sentence or two per thing; `cells` are all of the sweep."""
    found = [
        "itl_s is a request's mean: from its first token to its end, over the tokens after the first. itl_gap_s are "
        "the gaps between neighbouring pieces of a stream, each divided by its tokens."
    ]
    if target.weights == "random":
        found.append(RANDOM_WEIGHTS_NOTE)
    forced = [mode.name for mode in workload.modes if mode.kind == "forced_ratio"]
    if forced and target.weights == "unknown":
        found.append(
            f"{', '.join(forced)}: a forced ratio studies the cost of random weights, and the server does not tell "
            "whether its weights are; on a trained model it is the fixed-ratio baseline."
        )
    if failed := sum(sum(one.facts["errors"].values()) for one in cells):
        first = next(one.facts["first_error"] for one in cells if one.facts["first_error"])
        found.append(f"{failed} requests failed; they are in no latency and no rate. The first said: {first}")
    ended = sum(one.facts["requests_ended"] for one in cells)
    if coalesced := sum(one.facts["requests_coalesced"] for one in cells):
        found.append(
            f"{coalesced} of {ended} answers came in fewer pieces than tokens (several in one piece, or tokens without "
            "text). HTTP does not tell the tokens of a piece: there the gaps count as divided evenly."
        )
    if delayed := sum(one.facts["requests_delayed"] for one in cells):
        found.append(
            f"{delayed} of {ended} answers reached the client in less than half of the time in which the engine made "
            "them: they waited on their way (a busy machine?), their TTFT is too high and their ITL too low."
        )
    if short := sum(one.facts["requests_short"] for one in cells):
        found.append(f"{short} answers ended before the tokens that were asked for: the modes' loads differ.")
    if cached := sum(one.facts.get("cached_images", 0) for one in cells):
        found.append(f"{cached} images came from the server's cache: their TTFT lacks the vision tower.")
    in_round = workload.requests // workload.rounds
    ramped = [one for one in points(workload) if in_round < _STEADY * one.get("concurrency", 0)]  # type: ignore[operator]
    if ramped:
        where = ", ".join(str(one["concurrency"]) for one in ramped)
        found.append(
            f"At concurrency {where} a round has fewer than {_STEADY} requests per slot ({in_round}): its rates hold "
            "the ramps at both ends, and are below those of a steady load."
        )
    return found
