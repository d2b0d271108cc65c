"""From a target to its folder: what a run that fails leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.bench import quiet
from helpers.bundles import names, refusal
from helpers.load import FakeClient, failing, workload

from zipvl_compile.bench.results import read_results
from zipvl_compile.bench.serving import run as module
from zipvl_compile.bench.serving.target import Address
from zipvl_compile.bench.writer import PARTIAL_FILE
from zipvl_serving.errors import UnavailableError

PER_POINT = 2 + 2 * 4
"""Requests of two modes: warm-up and rounds."""


@pytest.mark.parametrize("points", [0, 1])
def test_a_run_that_fails_tells_of_its_finished_points(
    points: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeClient(failing(UnavailableError("lost"), 2 + points * PER_POINT + 3))
    client.gone = True

    @contextmanager
    def reached(address: Address) -> Iterator[FakeClient]:
        yield client

    monkeypatch.setattr(module, "reached", reached)
    left: list[Path] = []
    with refusal(UnavailableError, "the server left during the run"):
        module.run(Address("http://fake"), workload(concurrency=[1, 2]), tmp_path, quiet, left.append)
    assert left == [tmp_path / PARTIAL_FILE] * points
    assert names(tmp_path) == [PARTIAL_FILE] * points
    if points:
        partial = read_results(tmp_path / PARTIAL_FILE)
        assert partial.notes[0] == "interrupted: not every point was measured"
        assert {cell.at["concurrency"] for cell in partial.cells} == {1}
