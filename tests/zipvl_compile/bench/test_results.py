"""Results survive their file; gains are ratios of pairs; two results stand side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.bench import small_results
from helpers.bundles import refusal

from zipvl_compile.bench.compare import compare, table
from zipvl_compile.bench.results import RESULTS_FILE, Cell, gains, read_results
from zipvl_compile.bench.statistics import estimate, paired_ratio, percentiles
from zipvl_compile.bench.tables import tables
from zipvl_serving.errors import InputError


def test_round_trip(tmp_path: Path) -> None:
    results = small_results()
    (tmp_path / RESULTS_FILE).write_text(results.to_json())
    assert read_results(tmp_path) == read_results(tmp_path / RESULTS_FILE) == results


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read (No such file or directory); expected the results of `bench`"),
        ("{", "is not JSON; expected the results of `bench`"),
        ("[]", "schema_version is None; this program reads 1"),
        ('{"schema_version": 99}', "schema_version is 99; this program reads 1"),
        ('{"schema_version": 1}', "kind: Field required; expected the results of `bench`"),
    ],
)
def test_what_is_no_result_is_refused(text: str | None, expected: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / RESULTS_FILE).write_text(text)
    with refusal(InputError, RESULTS_FILE, expected):
        read_results(tmp_path)


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    body = {**json.loads(small_results().to_json()), "cell": []}
    (tmp_path / RESULTS_FILE).write_text(json.dumps(body))
    with refusal(InputError, "cell: Extra inputs are not permitted"):
        read_results(tmp_path)


def test_gains_are_above_one_where_the_mode_is_better() -> None:
    base = Cell.of("dense", {"tokens": 8}, {"ttft_s": [2.0, 4.0, 8.0], "tokens_per_s": [1.0, 1.0, 1.0]})
    mode = Cell.of("fast", {"tokens": 8}, {"ttft_s": [1.0, 1.0, 4.0], "tokens_per_s": [3.0, 3.0, 3.0]})
    alone = Cell.of("fast", {"tokens": 16}, {"ttft_s": [1.0]})
    found = {ratio.figure: ratio for ratio in gains([base, mode, alone], "dense")}
    assert set(found) == {"ttft_s", "tokens_per_s"}
    assert found["ttft_s"].gain.median == 2.0  # of 2, 4, 2: pair by pair, not 4 / 1
    assert (found["ttft_s"].gain.low, found["ttft_s"].gain.high) == (2.0, 4.0)
    assert found["tokens_per_s"].gain.median == 3.0
    assert {ratio.over for ratio in found.values()} == {"dense"}


def test_nothing_has_no_gain_over_nothing() -> None:
    base = Cell.of("dense", {"rate": 1.0}, {"goodput_per_s": [0.0, 1.0]})
    mode = Cell.of("fast", {"rate": 1.0}, {"goodput_per_s": [0.0, 2.0]})
    assert gains([base, mode], "dense") == []
    one = Cell.of("dense", {"rate": 1.0}, {"goodput_per_s": [4.0, 4.0]})
    (ratio,) = gains([one, mode], "dense")
    assert ratio.gain.median == 0.25  # of 0 and 0.5: that a mode lost everything once counts


def test_fewer_than_six_samples_have_a_range_and_no_interval() -> None:
    few, enough = [5.0, 1.0, 4.0, 2.0, 3.0], [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]
    assert estimate(few).model_dump() == {"median": 3.0, "low": 1.0, "high": 5.0}
    results = small_results(cells=[Cell.of("dense", {"tokens": 8}, {"ttft_s": s}) for s in (few,)], ratios=[])
    assert tables(results)[0].rows == [["8 tokens", "3000 [1000, 5000] of 5"]]
    results = small_results(cells=[Cell.of("dense", {"tokens": 8}, {"ttft_s": enough})], ratios=[])
    ((_, shown),) = tables(results)[0].rows
    assert shown.startswith("3500 [") and shown.endswith("]")


def test_statistics_repeat_and_hold_what_they_estimate() -> None:
    samples = [float(value) for value in (5, 1, 4, 2, 3)]
    first = estimate(samples)
    assert first == estimate(samples)
    assert 1.0 <= first.low <= first.median == 3.0 <= first.high <= 5.0
    assert estimate([7.0]).model_dump() == {"median": 7.0, "low": 7.0, "high": 7.0}
    assert paired_ratio([2.0, 20.0], [1.0, 10.0]).model_dump() == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert percentiles([0.0, 1.0, 2.0], (50, 100)) == {"p50": 1.0, "p100": 2.0}


def test_compare_says_what_moved_and_what_differs() -> None:
    a, b = small_results(), small_results(factor=2.0, workload={"rounds": 5})
    comparison = compare(a, b)
    by_mode = {(pair.mode, pair.at["tokens"]): pair for pair in comparison.pairs}
    assert by_mode["dense", 128].ratio == 1.0
    assert by_mode["dense", 128].overlap
    assert by_mode["zipvl tau .9", 256].ratio == pytest.approx(2.0)
    assert not by_mode["zipvl tau .9", 256].overlap
    assert comparison.differs == ["workload.rounds"]  # not the load average
    shown = table(comparison)
    assert shown.columns[-2:] == ["B / A", "intervals overlap"]
    rows = {(row[0], row[1]): row[-2:] for row in shown.rows}
    assert rows["128 tokens", "dense"] == ["1.000", "yes"]
    assert rows["128 tokens", "zipvl tau .9"] == ["2.000", "no"]  # it judges nothing


def test_compare_names_what_differs_of_machine_and_target() -> None:
    a = small_results()
    b = small_results(
        environment={"processor": "there", "cores": 2}, target=a.target.model_copy(update={"digest": "e" * 64})
    )
    assert compare(a, b).differs == ["environment.processor", "target.digest"]


def test_compare_refuses_what_has_nothing_in_common() -> None:
    with refusal(InputError, "results of kinds ttft and throughput cannot be compared"):
        compare(small_results(), small_results("throughput"))
    other = small_results(cells=[Cell.of("dense", {"tokens": 7}, {"ttft_s": [1.0]})])
    with refusal(InputError, "share no cell: no mode was measured at the same point in both"):
        compare(small_results(), other)
