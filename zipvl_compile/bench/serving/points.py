"""The points of a sweep: how many requests are in flight, or how many come in a second."""

from __future__ import annotations

from zipvl_compile.bench.workload import ServingLoad

Point = dict[str, float | int | str]


def points(workload: ServingLoad) -> list[Point]:
    """{"concurrency": n} of a closed process, {"rate": requests a second} of an open one."""
    arrivals = workload.arrivals
    if arrivals.process == "closed":
        return [{"concurrency": number} for number in workload.concurrency]
    if arrivals.rate:
        return [{"rate": arrivals.rate}]
    return [{"rate": rate} for rate in workload.rates or ()]
