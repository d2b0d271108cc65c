"""Seconds of work on the device: medians, interleaved with what it is compared with."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu.machine import Machine

Call = Callable[..., Any]
WARM_UPS = 2
L2_BYTES = 64 << 20
"""At least the largest L2 of the GPUs at hand: inputs rotate over more than this."""


def copies(make: Callable[[], Sequence[Any]], least: int = 1, most: int = 8) -> list[Sequence[Any]]:
    """Fresh argument lists, so many that together they pass the L2 twice."""
    sets = [make()]
    size = sum(value.nbytes for value in sets[0] if isinstance(value, torch.Tensor))
    wanted = max(least, min(most, -(-2 * L2_BYTES // max(size, 1))))
    return sets + [make() for _ in range(wanted - 1)]


def kernel_seconds(
    machine: Machine, arms: Mapping[str, tuple[Call, Sequence[Sequence[Any]]]], *, target_s: float = 0.02
) -> dict[str, float]:
    """Median seconds of one call of every arm.

    An arm is a function and the argument lists it takes in turn. Each arm is captured in a CUDA graph of so many calls
    that a replay takes about `target_s`, so that launches from Python are not what is timed; a call that waits for the
    device cannot be captured and raises. Replays of the arms alternate.
    """
    if machine.rehearsal:
        return {name: _wall(machine, functools.partial(run, *sets[0])) for name, (run, sets) in arms.items()}
    graphs = {name: _captured(function, sets, target_s) for name, (function, sets) in arms.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(7):
        for name, (graph, calls) in graphs.items():
            times[name].append(_replay(graph) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def host_seconds(machine: Machine, arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of one call of every arm as the host sees it, the device's end awaited; rounds alternate.

    An arm that runs out of memory in any round is left out.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name in list(times):
            try:
                times[name].append(_wall(machine, arms[name]))
            except torch.cuda.OutOfMemoryError:
                del times[name]
                machine.free_memory()
    return {name: statistics.median(values) for name, values in times.items()}


def _wall(machine: Machine, run: Callable[[], Any]) -> float:
    machine.synchronize()
    begun = time.perf_counter()
    run()
    machine.synchronize()
    return time.perf_counter() - begun


def _captured(function: Call, sets: Sequence[Sequence[Any]], target_s: float) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of calls, and how many it holds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function(*sets[0])
        stream.synchronize()
        begun = time.perf_counter()
        function(*sets[0])
        stream.synchronize()
        once = time.perf_counter() - begun
    torch.cuda.current_stream().wait_stream(stream)
    calls = max(1, min(200, round(target_s / once)))
    calls = -(-calls // len(sets)) * len(sets) if calls > 1 else 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(calls):
            function(*sets[number % len(sets)])
    _replay(graph)
    return graph, calls


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun.record()
    graph.replay()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3
