"""Runs that stand side by side: ABBA order, so that what changes slowly on a machine falls on every mode alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")

Run = Callable[[], dict[str, float]]
"""Makes one sample: figures by name."""


def abba(items: Sequence[Item], rounds: int) -> Iterator[tuple[int, Item]]:
    """(round, item), every item once a round: forwards in even rounds, backwards in odd ones."""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            yield number, item


def interleave(
    runs: Mapping[str, Run], *, rounds: int, warm_up: int = 0, on_round: Callable[[int], None] = lambda done: None
) -> dict[str, dict[str, list[float]]]:
    """Samples of every run by name and figure; the i-th samples of two runs were taken in round i and form a pair.

    warm_up: rounds before those that are not kept. on_round is told how many rounds are done, those included.
    """
    for done, (_, name) in enumerate(abba(list(runs), warm_up), 1):
        runs[name]()
        if done % len(runs) == 0:
            on_round(done // len(runs))
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    for done, (_, name) in enumerate(abba(list(runs), rounds), 1):
        for figure, value in runs[name]().items():
            samples[name].setdefault(figure, []).append(value)
        if done % len(runs) == 0:
            on_round(warm_up + done // len(runs))
    return samples
