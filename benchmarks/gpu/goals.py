"""What the GPU half is held to, and what was measured of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SELECTION_SHARE = 0.02
"""probe_scores and select_tokens, of the dense layer, from 4K tokens up; at most."""
ATTENTION_OF_PEAK = 0.65
"""sparse_attention from 8K tokens of T up; at least."""
SPEEDUP = {4096: 1.25, 16384: 1.45, 131072: 2.7}
"""TTFT of 13B at ratio 0.37 over dense FlashAttention, by tokens; at least."""
GOAL_RATIO = 0.37

Entries = dict[str, dict[str, Any]]
Row = tuple[str, str, str, str]
"""Goal, wanted, measured, met."""


def rows(stored: dict[str, Entries]) -> list[Row]:
    """Every goal of which something was measured."""
    micro, prefill = stored.get("micro", {}), stored.get("prefill", {})
    return [*_selection(micro), *_attention(micro), *_ttft(prefill)]


def _selection(entries: Entries) -> Iterator[Row]:
    for key, sizes in _of(entries, "probe_scores+select_tokens/"):
        for n, figures in _sizes(sizes):
            yield _row(f"{key} at {n}: share of a dense layer", figures["share"], SELECTION_SHARE, at_most=True)


def _attention(entries: Entries) -> Iterator[Row]:
    for key, sizes in _of(entries, "sparse_attention/"):
        for p, figures in _sizes(sizes):
            if int(p) >= 8192:
                yield _row(f"{key}, {p} tokens: share of peak", figures["of_peak"]["ours"], ATTENTION_OF_PEAK)


def _ttft(entries: Entries) -> Iterator[Row]:
    for n, wanted in SPEEDUP.items():
        for key, figures in _of(entries, "13B"):
            if key.endswith(f"/{n // 1024}K"):
                for attention, speedups in figures.get("speedup_over", {}).items():
                    if f"ratio {GOAL_RATIO:g}" in speedups:
                        speedup = speedups[f"ratio {GOAL_RATIO:g}"]
                        yield _row(f"TTFT {key} at {GOAL_RATIO:g} over {attention}", speedup, wanted)


def _of(entries: Entries, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((key, entry) for key, entry in entries.items() if key.startswith(prefix))


def _sizes(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((size, figures) for size, figures in entry.items() if isinstance(figures, dict) and "oom" not in figures)


def _row(goal: str, measured: float, wanted: float, *, at_most: bool = False) -> Row:
    met = measured <= wanted if at_most else measured >= wanted
    return goal, f"{'<=' if at_most else '>='} {wanted:g}", f"{measured:g}", "yes" if met else "NO"
