"""The planner against Table 4 of the ZipVL paper (LLaVA-Next-13B, one A100-80GB), in docs/planning.md.

    python -m benchmarks.plan_table4 [--write]               # after `export PYTHONPATH=plugins:serving:.`

prints what `zipvl-compile plan` makes of that model beside what was published, or writes it into the page.
"""

from __future__ import annotations

from benchmarks.gpu.report import table
from benchmarks.gpu.shapes import decoder, length
from benchmarks.page import Section
from zipvl_compile.cost.decode import parameters
from zipvl_compile.planning.cache import CacheMode
from zipvl_compile.planning.figures import Row
from zipvl_compile.planning.planner import Choices, plan
from zipvl_compile.planning.subject import Subject
from zipvl_compile.recipe.schema import Recipe

SECTION = Section("planning.md", "table 4")

RATIO = 0.368
"""Of LLaVA-Next-13B at tau 0.975 (the paper's Table 1); the paper names no other for its timings."""
VISION_NUMBERS = 335_000_000
"""CLIP ViT-L/14 at 336 pixels and the projector to 5120."""
PUBLISHED: dict[int, dict[CacheMode, float | None]] = {
    8192: {"dense": 27.79, "evict": 75.54},
    16384: {"dense": 14.10, "evict": 40.87},
    32768: {"dense": None, "evict": 15.31},
    65536: {"dense": None, "evict": 10.29},
    131072: {"dense": None, "evict": None},
}
"""Tokens a second at the largest batch, FlashAttention and ZipVL; None is out of memory."""
METHODS: dict[CacheMode, str] = {"dense": "FlashAttention", "evict": "ZipVL"}
RECIPE = Recipe.model_validate(
    {
        "name": "llava-next-13b",
        "model": {"source": "13b"},
        "zipvl": {"ratio_min": RATIO, "ratio_max": RATIO, "dense_below": 0},
        "target": {
            "backend": "torch",
            "gpu": "a100-80gb",
            "limits": {"max_input_tokens": max(PUBLISHED), "max_batch": 64, "kv_bytes": "80GiB"},
        },
    }
)
"""Its ratio forced, and limits that leave the batch to the GPU's memory."""

Cells = dict[int, dict[CacheMode, Row]]


def predict() -> Cells:
    """Every cell of the table, as `zipvl-compile plan` has it."""
    spec = decoder("13B")
    made = plan(RECIPE, Subject(spec, parameters(spec), VISION_NUMBERS, 576), Choices(tokens=list(PUBLISHED)))
    return {n: {row.mode: row for row in made.rows if row.tokens == n and row.mode in METHODS} for n in PUBLISHED}


def gain(cells: dict[CacheMode, Row]) -> float:
    """ZipVL's throughput over FlashAttention's."""
    evict, dense = cells["evict"].decode_tokens_per_s, cells["dense"].decode_tokens_per_s
    assert evict and dense
    return evict / dense


def published_gain(n: int) -> float:
    dense, evict = PUBLISHED[n]["dense"], PUBLISHED[n]["evict"]
    assert dense and evict
    return evict / dense


def page_section() -> str:
    """Markdown of the comparison."""
    cells = predict()
    rows = [
        (length(n), name, _rate(PUBLISHED[n][mode]), *_predicted(PUBLISHED[n][mode], cells[n][mode]))
        for n in PUBLISHED
        for mode, name in METHODS.items()
    ]
    gains = [_gains(n, published_gain(n), gain(cells[n])) for n in (8192, 16384)]
    return "\n".join(
        [
            "Tokens a second at the largest batch:", "",
            *table(("input", "method", "published", "plan", "sequences", "published / plan"), rows),
            "ZipVL's throughput over FlashAttention's:", "",
            *table(("input", "published", "plan", "off by"), gains),
        ]
    ).rstrip()  # fmt: skip


def _predicted(published: float | None, row: Row) -> tuple[str, str, str]:
    rate = row.decode_tokens_per_s
    share = f"{published / rate:.2f}" if published and rate else "-"
    return _rate(rate), str(row.max_batch or "-"), share


def _gains(n: int, published: float, predicted: float) -> tuple[str, str, str, str]:
    return length(n), f"{published:.2f}x", f"{predicted:.2f}x", f"{predicted / published - 1:+.1%}"


def _rate(rate: float | None) -> str:
    return "OOM" if rate is None else f"{rate:.2f}"


if __name__ == "__main__":
    SECTION.main(__doc__, page_section)
