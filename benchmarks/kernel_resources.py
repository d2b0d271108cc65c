"""Registers, spills, shared memory and occupancy of every GPU kernel, compiled ahead of time; needs no GPU.

    python benchmarks/kernel_resources.py [--out FILE] [--markdown FILE]

Shapes of a LLaVA-13B (40 heads) at every head dim in float16, and at 128 in bfloat16; each stage's first tuning. The
Markdown table has head dims 64 and 128 in float16, and the SMs side by side where they differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from output import hand_over

HEADS = 40
CASES = (("float16", 64), ("float16", 80), ("float16", 96), ("float16", 128), ("bfloat16", 128))
SHOWN = ("float16", (64, 128))
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "registers": lambda f: f"{f['registers']}",
    "spilled bytes": lambda f: f"{f['spilled_bytes']}",
    "shared KiB": lambda f: f"{f['shared_bytes'] / 1024:.1f}",
    "threads": lambda f: f"{f['threads']}",
    "blocks per SM": lambda f: f"{f['blocks_per_sm']}",
    "occupancy": lambda f: f"{100 * f['occupancy']:.0f} %",
}


def measure() -> dict[str, Any]:
    """Figures by kernel, dtype, head dim and compute capability."""
    from helpers.operands import ALL, Decoder, compile_op

    from zipvl_plugins.gpu.occupancy import LIMITS, occupancy

    found: dict[str, Any] = {}
    for op in ALL:
        for dtype, d in CASES:
            for sm in LIMITS:
                for name, kernel in compile_op(op, Decoder(HEADS, HEADS, d), dtype, sm).items():
                    held = occupancy(kernel, sm)
                    by_sm = found.setdefault(name, {}).setdefault(dtype, {}).setdefault(str(d), {})
                    by_sm[str(sm)] = {
                        "registers": kernel.registers,
                        "spilled_bytes": kernel.spill_stores + kernel.spill_loads,
                        "shared_bytes": kernel.shared,
                        "threads": kernel.threads,
                        "blocks_per_sm": held.blocks,
                        "occupancy": round(held.share, 3),
                    }
    return found


def table(kernels: dict[str, Any]) -> str:
    """The figures of SHOWN as Markdown; head dims that make no difference share a line."""
    dtype, dims = SHOWN
    lines = [f"| kernel | d | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name, by_dtype in kernels.items():
        rows: dict[str, list[str]] = {}
        for d in dims:
            by_sm = by_dtype[dtype][str(d)].values()
            cells = [[column(figures) for figures in by_sm] for column in COLUMNS.values()]
            row = " | ".join(" / ".join(cell if len(set(cell)) > 1 else cell[:1]) for cell in cells)
            rows.setdefault(row, []).append(str(d))
        lines += [f"| {name} | {', '.join(found)} | {row} |" for row, found in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    import triton

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        kernels = measure()
    if options.markdown:
        options.markdown.write_text(table(kernels))
    hand_over(
        {"triton": triton.__version__, "ptxas": triton.knobs.nvidia.ptxas.version, "kernels": kernels}, options.out
    )


if __name__ == "__main__":
    main()
