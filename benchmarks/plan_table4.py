"""The planner against Table 4 of the ZipVL paper (LLaVA-Next-13B, one A100-80GB), in docs/planning.md.

    python -m benchmarks.plan_table4 [--write]               # after `export PYTHONPATH=plugins:serving:.`

prints the comparison, or writes it into the page between its two markers. Calculated, never measured.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.report import table
from benchmarks.gpu.shapes import decoder
from zipvl_compile.cost.decode import parameters
from zipvl_compile.cost.hardware import GPUS
from zipvl_compile.cost.work import ITEM
from zipvl_compile.planning.cache import CacheMode, Prompt, sequence_bytes
from zipvl_compile.planning.memory import Room
from zipvl_compile.planning.speed import Speed
from zipvl_compile.planning.stack import LEGACY_TRANSFORMERS, PAGED, Stack

PAGE = Path(__file__).resolve().parents[1] / "docs" / "planning.md"
BEGIN, END = "<!-- table 4: begin -->", "<!-- table 4: end -->"

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


@dataclass(frozen=True)
class Predicted:
    """One cell of the table; batch 0 is out of memory."""

    batch: int
    rate: float


def predict(stack: Stack) -> dict[int, dict[CacheMode, Predicted]]:
    """Every cell under a stack's assumptions: 16-bit weights, decode alone, new tokens few beside the prompt."""
    spec, gpu = decoder("13B"), GPUS["a100-80gb"]
    room = Room.on(gpu, stack, ITEM * (parameters(spec) + VISION_NUMBERS))
    speed = Speed(spec, gpu, stack, ITEM)

    def cell(n: int, mode: CacheMode) -> Predicted:
        cached = sequence_bytes(spec, mode, Prompt.at(n, RATIO), 0, item=ITEM)
        batch = room.max_batch(cached)
        return Predicted(batch, speed.decode_rate(batch, cached) if batch else 0.0)

    return {n: {mode: cell(n, mode) for mode in METHODS} for n in PUBLISHED}


def gain(cells: dict[CacheMode, Predicted]) -> float:
    """ZipVL's throughput over FlashAttention's."""
    return cells["evict"].rate / cells["dense"].rate


def page_section() -> str:
    """Markdown of the comparison."""
    as_measured, paged = predict(LEGACY_TRANSFORMERS), predict(PAGED)
    rows = [
        (
            f"{n // 1024}K", name, _published(published[mode]), _cell(as_measured[n][mode]),
            _share(published[mode], as_measured[n][mode]), _cell(paged[n][mode]),
        )
        for n, published in PUBLISHED.items()
        for mode, name in METHODS.items()
    ]  # fmt: skip
    header = ("input", "method", "published", LEGACY_TRANSFORMERS.name, "published / predicted", PAGED.name)
    gains = [_gain_row(n, as_measured[n], paged[n]) for n in (8192, 16384)]
    sensitive = [_sensitivity(reserved) for reserved in (0.07, 0.10, 0.15, 0.20, 0.22)]
    return "\n".join(
        [
            "Tokens a second (sequences) at the largest batch:", "", *table(header, rows),
            "ZipVL's throughput over FlashAttention's:", "",
            *table(("input", "published", LEGACY_TRANSFORMERS.name, "off by", PAGED.name, "off by"), gains),
            "The same where that stack leaves another share of the memory unused:", "",
            *table(("reserved", "OOM rows", "8K off by", "16K off by"), sensitive),
        ]
    ).rstrip()  # fmt: skip


def same_oom(cells: dict[int, dict[CacheMode, Predicted]]) -> bool:
    """Whether exactly the published cells are out of memory."""
    return all((cells[n][mode].batch == 0) == (PUBLISHED[n][mode] is None) for n in PUBLISHED for mode in METHODS)


def published_gain(n: int) -> float:
    dense, evict = PUBLISHED[n]["dense"], PUBLISHED[n]["evict"]
    assert dense and evict
    return evict / dense


def _gain_row(n: int, *stacks: dict[CacheMode, Predicted]) -> tuple[str, ...]:
    wanted = published_gain(n)
    found = [(f"{gain(cells):.2f}x", f"{gain(cells) / wanted - 1:+.1%}") for cells in stacks]
    return f"{n // 1024}K", f"{wanted:.2f}x", *(text for pair in found for text in pair)


def _sensitivity(reserved: float) -> tuple[str, ...]:
    cells = predict(dataclasses.replace(LEGACY_TRANSFORMERS, reserved=reserved))
    off = [f"{gain(cells[n]) / published_gain(n) - 1:+.1%}" for n in (8192, 16384)]
    return f"{reserved:.0%}", "the published ones" if same_oom(cells) else "others", *off


def _published(rate: float | None) -> str:
    return "OOM" if rate is None else f"{rate:.2f}"


def _cell(cell: Predicted) -> str:
    return f"{cell.rate:.1f} ({cell.batch})" if cell.batch else "OOM"


def _share(published: float | None, cell: Predicted) -> str:
    return f"{published / cell.rate:.2f}" if published and cell.batch else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    if not parser.parse_args().write:
        print(page_section())
        return
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{page_section()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
