"""A sweep: its order, its pairs, what it says of itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from helpers.bundles import refusal
from helpers.load import FakeClient, exchange, failing, workload

from zipvl_compile.bench.results import Results, gains
from zipvl_compile.bench.serving.figures import cell
from zipvl_compile.bench.serving.load import Batch
from zipvl_compile.bench.serving.notes import notes
from zipvl_compile.bench.serving.points import points
from zipvl_compile.bench.serving.sweep import Sweep
from zipvl_compile.bench.serving.sweep import sweep as run_sweep
from zipvl_compile.bench.serving.target import Address, describe
from zipvl_compile.bench.tables import tables
from zipvl_compile.bench.target import RANDOM_WEIGHTS_NOTE
from zipvl_compile.bench.workload import SLO
from zipvl_serving.errors import InputError, OverloadedError, UnavailableError, ZipvlError


def sweep(client: FakeClient, **changes: Any) -> Sweep:
    def ignore(*told: object) -> None: ...

    return asyncio.run(run_sweep(client, workload(**changes), None, ignore, ignore))


def said(done: Sweep, **changes: Any) -> str:
    return " ".join(notes(workload(**changes), describe(Address("http://fake"), "fake"), done.cells))


def methods(client: FakeClient) -> list[str]:
    return ["dense" if "dense" in method else "tau" for method, _ in client.log]


def test_modes_follow_each_other_in_abba_order_over_the_same_requests() -> None:
    client = FakeClient()
    sweep(client)
    # one request to try each mode, one to warm up each, then two per mode and round
    assert methods(client) == ["dense", "tau"] * 2 + ["dense"] * 2 + ["tau"] * 4 + ["dense"] * 2
    asked = [prompt.images[0][:1000] for _, prompt in client.log[4:]]  # the files differ in their ends
    assert asked[0:2] == asked[2:4] and asked[4:6] == asked[6:8] and asked[0:2] != asked[4:6]
    assert client.closed


def test_every_point_has_a_cell_of_every_mode_and_a_line_of_every_request() -> None:
    done = sweep(FakeClient(), concurrency=[1, 2])
    assert [(cell.mode, cell.at) for cell in done.cells] == [
        (mode, {"concurrency": number}) for number in (1, 2) for mode in ("dense", "zipvl tau .9")
    ]
    assert all(cell.facts["requests"] == 4 and len(cell.samples["tokens_per_s"]) == 2 for cell in done.cells)
    lines = [json.loads(line) for line in done.exchanges]
    assert len(lines) == 16
    first = lines[0]
    assert (first["mode"], first["round"], first["sent_at"]) == ("dense", 0, 0.0)
    assert first["arrivals"] == [0.5, 1.0, 1.5] and first["finished_at"] == 1.5


def test_gains_are_pairs_of_rounds_and_above_one_where_the_mode_is_better() -> None:
    """Dense answers take twice as long as those of tau."""
    client = FakeClient()

    def answer(number: int) -> Any:
        factor = 2.0 if methods(client)[number - 1] == "dense" else 1.0
        return exchange(0.0, factor, 2 * factor)

    client.answer = answer
    done = sweep(client, concurrency=[1])
    ratios = gains(done.cells, "dense")
    found = {ratio.figure: ratio.gain.median for ratio in ratios}
    assert found.pop("tokens_per_s") == found.pop("requests_per_s") > 1.5  # the client takes its time between requests
    assert found == {name: pytest.approx(2.0) for name in ("ttft_s", "itl_s", "e2e_s")}
    assert {(ratio.mode, ratio.over) for ratio in ratios} == {("zipvl tau .9", "dense")}


def test_an_open_process_sweeps_rates_with_the_same_arrivals_for_every_mode() -> None:
    client = FakeClient()
    done = sweep(client, arrivals={"process": "poisson"}, rates=[1000.0], requests=6)
    assert [cell.at for cell in done.cells] == [{"rate": 1000.0}] * 2
    assert "client_lag_s" in done.cells[0].facts


def test_failures_are_counted_and_told() -> None:
    done = sweep(FakeClient(failing(OverloadedError("the queue is full"), 5)))
    assert done.cells[0].facts["errors"] == {"overloaded": 1} and done.cells[1].facts["errors"] == {}
    assert "1 requests failed" in said(done) and "the queue is full" in said(done)


def test_where_nothing_of_a_mode_ended_there_is_no_gain() -> None:
    client = FakeClient()
    client.answer = lambda number: failing(OverloadedError("full"), number)(number) if number > 4 else None
    assert gains(sweep(client).cells, "dense") == []


def test_notes_say_what_bends_the_figures() -> None:
    coalesced = exchange(0.0, 1.0, 2.0, tokens=3, asked=4, ended_at=2.0)
    coalesced.statistics = coalesced.statistics | {"cached_images": 2}
    told = said(sweep(FakeClient(lambda number: coalesced), concurrency=[1]), concurrency=[1])
    for part in ("8 of 8 answers came in fewer pieces", "8 answers ended before", "16 images came", "per slot (2)"):
        assert part in told


@pytest.mark.parametrize(
    ("error", "kind"), [(InputError("too many images"), InputError), (OverloadedError("full"), ZipvlError)]
)
def test_a_workload_that_the_server_refuses_ends_before_it_starts(error: ZipvlError, kind: type[ZipvlError]) -> None:
    client = FakeClient(failing(error, 2))
    with refusal(kind, "fake://server: the first request (1 images, 3 tokens, zipvl tau .9) failed", error):
        sweep(client)
    assert len(client.log) == 2 and client.closed


def test_a_server_that_knows_no_modes_cannot_be_asked_to_compare_them() -> None:
    plain = exchange(0.0, 1.0, statistics={})
    with refusal(InputError, "says nothing of the method"):
        sweep(FakeClient(lambda number: plain))
    with refusal(InputError, "says nothing of the method"):
        sweep(FakeClient(lambda number: plain), modes=[{"tau": 0.9}])
    assert len(sweep(FakeClient(lambda number: plain), modes=["dense"]).cells) == 1


def test_a_server_that_leaves_ends_the_sweep() -> None:
    client = FakeClient(failing(UnavailableError("lost"), *range(5, 100)))
    client.gone = True
    with refusal(UnavailableError, "left during the run"):
        sweep(client)
    assert client.closed


def test_a_forced_ratio_is_noted_where_the_server_does_not_tell_its_weights() -> None:
    changes = {"modes": ["dense", {"forced_ratio": 0.5}], "concurrency": [1]}
    done = sweep(FakeClient(), **changes)
    assert "zipvl forced .5: a forced ratio studies the cost of random weights" in said(done, **changes)
    assert "forced ratio" not in said(done)
    target = describe(Address("http://fake"), "fake")
    known = [
        notes(workload(**changes), target.model_copy(update={"weights": weights}), done.cells)
        for weights in ("random", "checkpoint")
    ]
    assert [RANDOM_WEIGHTS_NOTE in told for told in known] == [True, False]
    assert not any("does not tell" in line for told in known for line in told)


def test_what_was_asked_and_what_a_latency_holds_is_told() -> None:
    for kind, part in (("scenes", "scenes of the demo's held-out glyphs"), ("noise", "Prompts are noise")):
        assert part in said(Sweep(), input=kind)
    assert "TTFT is all that a client waits for" in said(Sweep())


def test_a_mode_that_ran_dense_is_noted_and_shown() -> None:
    plain = exchange(0.0, 1.0, 2.0)
    plain.statistics = plain.statistics | {"dense": True}
    client = FakeClient()
    client.answer = lambda number: plain if len(client.log) % 2 else None
    done = sweep(client, concurrency=[1])
    assert "zipvl tau .9 ran dense in some of its answers (50% at 1 concurrency)" in said(done, concurrency=[1])
    assert not [line for line in said(sweep(FakeClient())).split(". ") if "ran dense" in line]
    load = workload(concurrency=[1])
    results = Results.of(load, describe(Address("http://fake"), "fake"), {}, done.cells, [])
    (kept,) = (table for table in tables(results) if table.title == "Kept tokens")
    assert [row[1] for row in kept.rows] == ["dense", "zipvl tau .9 (50% ran dense)"]


def test_a_client_that_is_late_is_noted() -> None:
    def late(seconds: float) -> str:
        batch = Batch([exchange(1.0 + seconds, 2.0, due_at=1.0)])
        made = cell("dense", {"rate": 1.0}, [batch], SLO())
        changes = {"modes": ["dense"], "arrivals": {"process": "constant"}, "rates": [1.0]}
        return " ".join(notes(workload(**changes), describe(Address("http://fake"), "fake"), [made]))

    assert "The client sent late, by up to 6 ms (p99)" in late(0.006)
    assert "sent late" not in late(0.004)


def test_one_rate_is_a_sweep_of_one() -> None:
    assert points(workload(arrivals={"process": "constant", "rate": 3.0})) == [{"rate": 3.0}]
