"""The folder of results: Markdown, pictures, and nothing half-written."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from helpers.bench import small_results
from helpers.bundles import names, refusal
from rich.console import Console

from zipvl_compile.bench import writer
from zipvl_compile.bench.pictures import title
from zipvl_compile.bench.report import markdown, show
from zipvl_compile.bench.results import Kind, read_results
from zipvl_compile.bench.tables import number
from zipvl_compile.bench.writer import check_folder, write_partial, write_results
from zipvl_serving.errors import InputError, ZipvlError


def test_markdown_holds_every_table() -> None:
    text = markdown(small_results(), ["ttft.png"])
    lines = text.splitlines()
    assert lines[0] == "# ttft: w on tiny"
    assert "- a note" in lines
    assert "## TTFT (ms)" in lines
    assert lines[lines.index("## TTFT (ms)") + 1] == "| at | dense | zipvl tau .9 |"
    assert "| 128 tokens | 129.9 [128, 131.8] of 4 | 64.96 [64, 65.92] of 4 |" in lines
    assert "## TTFT: gain over dense (above 1 is better)" in lines
    assert "| 256 tokens | 2 |" in lines
    assert "| 128 tokens | zipvl tau .9 | 0.375 | 0.50 0.25 | 4 |" in lines
    assert "| 128 tokens | zipvl tau .9 | color | 0.900 | 0.950 | 20 |" in lines
    assert (
        "| 128 tokens | zipvl tau .9 | 5 (25.0%) | 5 (25.0%) | 10 (50.0%) | 20 | 16.00% [10.00%, 20.00%] of 3 |"
        in lines
    )
    assert "![ttft](ttft.png)" in lines
    assert any("`[low, high] of n` is the range of n samples, too few for an interval" in line for line in lines)
    assert "| processor | here |" in lines
    admission = markdown(small_results("throughput"), [])
    assert "| 128 tokens | dense | 64 | 60 | 50 | pages |" in admission


def test_a_prompt_that_fell_below_the_break_even_is_marked() -> None:
    results = small_results()
    cells = [cell.model_copy(update={"facts": {**cell.facts, "dense": True}}) for cell in results.cells]
    text = markdown(results.model_copy(update={"cells": cells}), [])
    assert "| 128 tokens | zipvl tau .9 (ran dense) |" in text
    assert "dense (ran dense)" not in text


def test_requests_of_a_sweep_are_counted_with_their_errors() -> None:
    results = small_results()
    counted = {"requests": 9, "errors": {"overloaded": 2, "timeout": 1}, "requests_delayed": 4}
    cells = [cell.model_copy(update={"facts": counted | {"slo_attainment": 2 / 3}}) for cell in results.cells[:1]]
    cells += [cell.model_copy(update={"facts": counted | {"errors": {}}}) for cell in results.cells[1:2]]
    lines = markdown(results.model_copy(update={"cells": cells[:1]}), []).splitlines()
    at = lines.index("## Requests")
    assert lines[at + 1] == "| at | mode | requests | errors | answers delayed | within SLO |"
    assert lines[at + 3] == "| 128 tokens | dense | 9 | 2 overloaded, 1 timeout | 4 | 66.7% |"
    without = markdown(results.model_copy(update={"cells": cells[1:]}), []).splitlines()
    assert "| 128 tokens | zipvl tau .9 | 9 | none | 4 |" in without  # no SLO, no column of it


def test_the_terminal_shows_the_same_tables() -> None:
    out = io.StringIO()
    show(small_results(), Console(file=out, width=200))
    assert "TTFT (ms)" in out.getvalue()
    assert "129.9 [128, 131.8]" in out.getvalue()
    assert "note: a note" in out.getvalue()


def test_numbers_have_four_digits_and_no_exponent() -> None:
    shown = [number(value) for value in (0.0, 3.0, 16384.0, 123456.7, 1234.56, 123.456, 12.3456, 1.23456, 0.0123456)]
    assert shown == ["0", "3", "16384", "123457", "1235", "123.5", "12.35", "1.235", "0.01235"]


@pytest.mark.parametrize(
    ("kind", "stems"),
    [
        ("ttft", {"ttft", "gain", "ratio_per_layer", "breakdown"}),
        ("throughput", {"throughput", "decode", "gain", "max_batch", "ratio_per_layer"}),
    ],
)
def test_the_folder_is_whole_and_drops_what_is_stale(kind: Kind, stems: set[str], tmp_path: Path) -> None:
    results = small_results(kind)
    write_partial(tmp_path, results)
    (tmp_path / "breakdown.svg").write_text("of an earlier run")
    (tmp_path / "requests.jsonl").write_text("of an earlier sweep")
    (tmp_path / "mine.txt").write_text("somebody's")
    written = write_results(tmp_path, results)
    pictures = {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    assert {path.name for path in written} == pictures | {"results.json", "results.md"}
    assert set(names(tmp_path)) == pictures | {"results.json", "results.md", "mine.txt"}
    assert read_results(tmp_path) == results
    assert all(path.stat().st_size for path in written)
    assert b"<svg" in (tmp_path / "gain.svg").read_bytes()


def test_every_picture_says_what_random_weights_cannot_show() -> None:
    results = small_results()
    target = results.target.model_copy(update={"weights": "random"})
    assert title(results) == "tiny: w"
    assert title(results.model_copy(update={"target": target})) == "tiny: w, random weights: cost only"


def test_one_length_is_drawn_too(tmp_path: Path) -> None:
    results = small_results("throughput")
    cells = [cell for cell in results.cells if cell.at == {"tokens": 128}]
    write_results(tmp_path, results.model_copy(update={"cells": cells}))
    assert (tmp_path / "max_batch.png").stat().st_size


def test_a_failed_write_leaves_the_old_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(tmp_path, small_results())
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.os, "fsync", full)
    with refusal(ZipvlError, str(tmp_path), "No space left on device; nothing half-written is left"):
        write_results(tmp_path, small_results(factor=2.0))
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_no_bundle_is_written_into(tiny_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_bundle)
    before = names(tiny_bundle)
    for out in (tiny_bundle, tiny_bundle / "bench" / "out", link / "out"):
        with refusal(InputError, out, "lies inside the bundle", "--out takes a place of its own"):
            check_folder(out)
    assert names(tiny_bundle) == before


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with refusal(InputError, out, "is not a directory; --out names one, new or old"):
            check_folder(out)
