"""A tile of Y = X W^T + b on tensor cores, for the two projections of T; both operands have K contiguous."""
# ruff: noqa: N803, N806 - constexprs are written in capitals, as Triton's own kernels do
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from zipvl_plugins.gpu.dot import dot
from zipvl_plugins.gpu.launch import Operand, Size, Tuning, cdiv


@triton.jit
def tile_of(program, row_blocks, column_blocks):
    """(row block, column block) of a program: 8 row blocks go through all column blocks together, so that the tiles in
    flight share rows of X and of W in the L2 cache."""
    GROUP: tl.constexpr = 8
    first = program // (GROUP * column_blocks) * GROUP
    place = program % (GROUP * column_blocks)
    rows_here = tl.minimum(row_blocks - first, GROUP)
    return first + place % rows_here, place // rows_here


@triton.jit
def project(
    x, rows, weight, bias, columns,
    INNER: tl.constexpr, OUTER: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_ROWS, BLOCK_COLUMNS]: x[rows] weight[columns]^T + bias[columns]; undefined past OUTER columns.

    x [., INNER]; rows int64, all of them rows of x; weight [OUTER, INNER]; bias [OUTER], read only with HAS_BIAS.
    """
    inner = tl.arange(0, BLOCK_INNER)
    # A column past the last takes the first one's weights: the loop needs no mask for it.
    weight_rows = tl.where(columns < OUTER, columns, 0)
    x_at = x + rows[:, None] * INNER + inner[None, :]
    weight_at = weight + weight_rows.to(tl.int64)[:, None] * INNER + inner[None, :]
    sums = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, INNER, BLOCK_INNER):
        if INNER % BLOCK_INNER == 0:
            left = tl.load(x_at)
            right = tl.load(weight_at)
        else:
            inside = (inner < INNER - start)[None, :]
            left = tl.load(x_at, mask=inside, other=0.0)
            right = tl.load(weight_at, mask=inside, other=0.0)
        sums = dot(left, tl.trans(right), sums)
        x_at += BLOCK_INNER
        weight_at += BLOCK_INNER
    if HAS_BIAS:
        sums += tl.load(bias + weight_rows)[None, :].to(tl.float32)
    return sums


def flat_grid(rows: Size, outer: int, tuning: Tuning) -> tuple[Size]:
    """Programs for all n rows, whatever the count."""
    return (cdiv(rows, tuning.blocks["BLOCK_ROWS"]) * cdiv(outer, tuning.blocks["BLOCK_COLUMNS"]),)


def constants(weight: Operand, bias: Operand | None, tuning: Tuning) -> dict[str, Any]:
    """Constexprs of a kernel that calls `project`."""
    outer, inner = weight.shape
    return {"INNER": inner, "OUTER": outer, "HAS_BIAS": bias is not None, **tuning.blocks}


def tunings_of(sm: int, weight: Operand) -> tuple[Tuning, ...]:
    """Tiles worth trying, best first; those that pad the fewest columns of this weight come before others. One has to
    get by with 48 KiB of shared memory, which every launcher gives."""
    if weight.dtype == "float32":
        tiles: tuple[Tuning, ...] = (_tuning(64, 64, 32, 4, 2), _tuning(32, 64, 32, 4, 2))
    elif 90 <= sm < 120:  # 227 KiB of shared memory a block; RTX Blackwell has 99
        tiles = (_tuning(128, 256, 64, 8, 4), _tuning(128, 256, 64, 8, 3), _tuning(128, 128, 32, 4, 3))
    elif sm == 80:
        tiles = (_tuning(128, 256, 64, 8, 3), _tuning(128, 128, 32, 4, 4), _tuning(128, 128, 64, 4, 3))
    else:
        tiles = (_tuning(128, 128, 32, 4, 4), _tuning(128, 256, 32, 8, 3), _tuning(128, 128, 64, 8, 2))
    outer = weight.shape[0]
    return tuple(
        sorted(tiles, key=lambda tile: cdiv(outer, tile.blocks["BLOCK_COLUMNS"]) * tile.blocks["BLOCK_COLUMNS"])
    )


def _tuning(rows: int, columns: int, inner: int, warps: int, stages: int) -> Tuning:
    return Tuning({"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns, "BLOCK_INNER": inner}, warps, stages)
