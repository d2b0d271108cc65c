"""Optimisation profiles of TensorRT's engines: a bucket of sizes each, with kernels chosen for its largest."""

from __future__ import annotations

from dataclasses import replace

from zipvl_compile.engines.profiles import Range, Ranges
from zipvl_serving.contract import GraphName

STEP = 4
"""From one bucket's largest size to the next one's."""
MOST_BUCKETS = 4
SMALLEST_BUCKET = {"tokens": 256, "batch": 2}
"""Below this size, time hardly depends on it."""
BUCKETED: dict[GraphName, str] = {"prefill": "tokens", "decode": "batch"}
"""The dimension that a graph's time grows with."""


def buckets(graph: GraphName, ranges: Ranges) -> list[Ranges]:
    """The ranges of every profile, smallest sizes first; together they hold every size that `ranges` does.

    No image is larger than its prompt, and no prompt has more probes than tokens.
    """
    name = BUCKETED.get(graph)
    if name is None:
        return [ranges]
    whole = ranges[name]
    tops = [whole.most]
    top = 1 << (whole.most - 1).bit_length()
    while len(tops) < MOST_BUCKETS and (top := top // STEP) >= SMALLEST_BUCKET[name]:
        tops.append(top)
    found = []
    least = whole.least
    for top in reversed(tops):
        bucket = {**ranges, name: Range(least, top, top)}
        if name == "tokens":
            bucket |= {part: _at_most(ranges[part], top) for part in ("visual", "probes")}
        found.append(bucket)
        least = top + 1
    return found


def _at_most(range_: Range, most: int) -> Range:
    return replace(range_, usual=min(range_.usual, most), most=min(range_.most, most))
