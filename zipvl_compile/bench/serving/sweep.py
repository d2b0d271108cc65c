"""A sweep over concurrencies or rates, every mode at each point in ABBA rounds over the same requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from zipvl_compile.bench.interleave import abba
from zipvl_compile.bench.results import Cell
from zipvl_compile.bench.serving.arrivals import due_times
from zipvl_compile.bench.serving.clients.base import Client
from zipvl_compile.bench.serving.figures import cell
from zipvl_compile.bench.serving.load import Batch, Load
from zipvl_compile.bench.serving.points import Point, points
from zipvl_compile.bench.serving.prompts import Prompt, make_prompts
from zipvl_compile.bench.workload import Mode, ServingLoad
from zipvl_serving.errors import InputError, ZipvlError

Report = Callable[[str, int, int, str], None]
"""report(point, batches done, batches of it, which comes next)"""


@dataclass
class Sweep:
    """What came out so far: cells in the order of points and modes, and every exchange as a line of JSON."""

    cells: list[Cell] = field(default_factory=list)
    exchanges: list[str] = field(default_factory=list)


async def sweep(
    client: Client, workload: ServingLoad, model: str | None, report: Report, on_point: Callable[[Sweep], None]
) -> Sweep:
    """Run the whole workload; on_point gets what there is after every point. Closes the client.

    Raises InputError where the server refuses the workload's largest request, UnavailableError where it is not ready or
    leaves.
    """
    try:
        await client.connect(model)
        prompts = make_prompts(workload)
        load = Load(client, workload.timeout_s)
        await _try(client, prompts, workload)
        done = Sweep()
        for at in points(workload):
            batches = await _point(load, prompts, workload, at, report)
            _record(done, workload, at, batches)
            on_point(done)
        return done
    finally:
        await client.close()


async def _try(client: Client, prompts: Sequence[Prompt], workload: ServingLoad) -> None:
    """The largest request in every mode, so that a workload that cannot run ends before it starts."""
    largest = max(prompts, key=lambda prompt: (len(prompt.images), prompt.new_tokens))
    for mode in workload.modes:
        exchange = await client.send(client.encode(largest, mode), workload.timeout_s)
        if exchange.error:
            kind = InputError if exchange.error == "refused" else ZipvlError
            what = f"{len(largest.images)} images, {largest.new_tokens} tokens, {mode.name}"
            raise kind(f"{client.where}: the first request ({what}) failed: {exchange.message}")
        if not exchange.statistics and any(other.kind != "dense" for other in workload.modes):
            raise InputError(
                f"{client.where}: the server says nothing of the method, so it may know no modes; keep one: dense"
            )


async def _point(
    load: Load, prompts: Sequence[Prompt], workload: ServingLoad, at: Point, report: Report
) -> dict[str, list[Batch]]:
    """Batches of every mode by its name, one per round; the warm-up's are dropped."""
    stage = ", ".join(f"{name} {value:g}" for name, value in at.items() if not isinstance(value, str))
    of = len(workload.modes) * (workload.rounds + bool(workload.warm_up))
    done = 0
    for mode in workload.modes if workload.warm_up else ():
        report(stage, done, of, f"warm-up, {mode.name}")
        repeated = [prompts[number % len(prompts)] for number in range(workload.warm_up)]
        await _batch(load, repeated, mode, workload, at, 0)
        done += 1
    parts = [part.tolist() for part in np.array_split(np.arange(len(prompts)), workload.rounds)]
    batches: dict[str, list[Batch]] = {mode.name: [] for mode in workload.modes}
    for number, mode in abba(workload.modes, workload.rounds):
        report(stage, done, of, f"round {number + 1}, {mode.name}")
        asked = [prompts[index] for index in parts[number]]
        batches[mode.name].append(await _batch(load, asked, mode, workload, at, number + 1))
        done += 1
    report(stage, of, of, "")
    return batches


async def _batch(
    load: Load, prompts: Sequence[Prompt], mode: Mode, workload: ServingLoad, at: Point, number: int
) -> Batch:
    if "concurrency" in at:
        return await load.closed(prompts, mode, int(at["concurrency"]))
    rng = np.random.default_rng([workload.seed, 1, number])  # the same arrivals for every mode of a round
    return await load.open(prompts, mode, due_times(workload.arrivals, float(at["rate"]), len(prompts), rng))


def _record(done: Sweep, workload: ServingLoad, at: Point, batches: dict[str, list[Batch]]) -> None:
    for mode, rounds in batches.items():
        done.cells.append(cell(mode, at, rounds, workload.slo))
        done.exchanges += _lines(mode, at, rounds)


def _lines(mode: str, at: Point, batches: Sequence[Batch]) -> Iterator[str]:
    for number, batch in enumerate(batches):
        for one in batch.exchanges:
            body: dict[str, Any] = {"mode": mode, "at": at, "round": number, **asdict(one)}
            for name in ("due_at", "sent_at", "finished_at", "ended_at"):
                body[name] = None if body[name] is None else round(body[name] - batch.begun_at, 6)
            body["arrivals"] = [round(arrival - batch.begun_at, 6) for arrival in one.arrivals]
            yield json.dumps(body, separators=(",", ":"))
