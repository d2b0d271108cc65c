"""The planner against what `zipvl-compile bench` measured on a CPU, in docs/planning.md.

    python -m benchmarks.plan_measured [--write]             # after `export PYTHONPATH=plugins:serving:.`

plans the recipe of benchmarks/results/{ttft,throughput}-shapes for the cores and the memory that they name, and prints
both, or writes them into the page. The CPU's shares of its peaks were fitted to these very results.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu.report import table
from benchmarks.gpu.shapes import length
from benchmarks.page import Section
from zipvl_compile.bench.results import QUANTITIES, Cell, Results, read_results
from zipvl_compile.cost.hardware import cpu
from zipvl_compile.planning.cache import CacheMode
from zipvl_compile.planning.figures import Row
from zipvl_compile.planning.planner import Choices, plan
from zipvl_compile.planning.subject import read_subject
from zipvl_compile.recipe.load import load_recipe

SECTION = Section("planning.md", "measured")
RESULTS = Path(__file__).parent / "results"
RATIO = 0.37
MODES: dict[CacheMode, str] = {"dense": "dense", "evict": "zipvl forced .37"}
"""As a plan and as bench call them."""
SHORTEST = 1024
"""Below, what begins and ends a run counts more than its work."""

COLUMNS = ("median", "quickest", "plan", "off by")

Pair = tuple[Cell, Row]
"""Measured, predicted."""


def ttft() -> list[Pair]:
    return _pairs("ttft-shapes")


def throughput() -> list[Pair]:
    return _pairs("throughput-shapes")


def quickest(cell: Cell, figure: str) -> float:
    """The best sample: what else a machine does only ever takes time, and a plan knows nothing of it."""
    samples = cell.samples[figure]
    return max(samples) if QUANTITIES[figure].better == "higher" else min(samples)


def page_section() -> str:
    """Markdown of the comparison."""
    prefills = [(length(row.tokens), row.mode, *_beside(cell, "ttft_s", row.ttft_s, "{:.3g}")) for cell, row in ttft()]
    decodes = [
        (what, row.mode, *_beside(cell, figure, predicted, "{:.0f}"))
        for cell, row in throughput()
        for what, figure, predicted in (
            ("largest batch", "max_batch", row.max_batch),
            ("decode tokens/s", "decode_tokens_per_s", row.decode_tokens_per_s),
        )
    ]
    return "\n".join(
        [
            "TTFT, seconds:", "", *table(("input", "mode", *COLUMNS), prefills),
            "Behind 8K tokens, at the largest batch that 512 MiB admit:", "",
            *table(("", "mode", *COLUMNS), decodes),
        ]
    ).rstrip()  # fmt: skip


def _pairs(name: str) -> list[Pair]:
    measured = read_results(RESULTS / name / "results.json")
    rows = {(row.tokens, row.mode): row for row in _plan(measured)}
    return [
        (cell, rows[cell.at["tokens"], mode])
        for cell in measured.cells
        for mode, called in MODES.items()
        if cell.mode == called and cell.at["tokens"] >= SHORTEST
    ]


def _plan(measured: Results) -> list[Row]:
    workload, machine = measured.workload, measured.environment
    settings = [f"zipvl.ratio_min={RATIO}", f"zipvl.ratio_max={RATIO}"]
    if "new_tokens" in workload:
        settings += [f"target.limits.max_new_tokens={workload['new_tokens']}", "serving.max_new_tokens_default=1"]
    loaded = load_recipe("shapes/llava-0.5b", settings)
    choices = Choices(tokens=workload["lengths"], pool_bytes=workload.get("kv_budget"))
    on = cpu(machine["cores"], machine["memory_bytes"])
    return plan(loaded.recipe, read_subject(loaded), choices, on).rows


def _beside(cell: Cell, figure: str, predicted: float | None, form: str) -> tuple[str, str, str, str]:
    """Under COLUMNS."""
    assert predicted is not None
    best = quickest(cell, figure)
    median, least, plan = map(form.format, (cell.figures[figure].median, best, predicted))
    return median, least, plan, f"{predicted / best - 1:+.0%}"


if __name__ == "__main__":
    SECTION.main(__doc__, page_section)
