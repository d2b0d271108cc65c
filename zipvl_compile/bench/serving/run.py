"""One benchmark of a server, from its target to its folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zipvl_compile.bench.fingerprint import fingerprint, finished
from zipvl_compile.bench.results import Results
from zipvl_compile.bench.serving.notes import notes
from zipvl_compile.bench.serving.sweep import Report, Sweep, sweep
from zipvl_compile.bench.serving.target import Address, check_modes, describe, reached
from zipvl_compile.bench.workload import ServingLoad
from zipvl_compile.bench.writer import check_folder, keeping, write_results


def run(
    address: Address,
    workload: ServingLoad,
    out: Path,
    report: Report,
    on_left: Callable[[Path], None] = lambda file: None,
) -> Results:
    """Measure, and leave results.json, results.md, pictures and requests.jsonl in `out`.

    After every point what is finished is kept in partial.json, which an interrupted or failed run leaves and of which
    on_left is told; an earlier run's results stay until this one's replace them. Raises InputError for a target, a mode
    of it or a folder that cannot be, UnavailableError where the server is not there or leaves.
    """
    check_modes(address, workload.modes)
    check_folder(out)
    environment = fingerprint()

    def gather(done: Sweep, environment: dict[str, Any], said: Sequence[str] = ()) -> Results:
        target = describe(address, client.model)
        return Results.of(workload, target, environment, done.cells, [*said, *notes(workload, target, done.cells)])

    with keeping(out, on_left) as keep:

        def on_point(done: Sweep) -> None:
            keep(gather(done, environment, ["interrupted: not every point was measured"]))

        with reached(address) as client:
            done = asyncio.run(sweep(client, workload, address.model, report, on_point))
        results = gather(done, finished(environment))
        keep(results)
        write_results(out, results, done.exchanges)
    return results
