"""gather_projection on a GPU: Y[i] = X[index[i]] W^T + b for i < count.

Source: reference.py beside this file. One matrix product whose loads of X go through the index: the rows of T are never
copied. Bound by compute: 2 x count x inner x outer FLOP. The grid is flat and made for n rows; programs past the tiles
of `count` exit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zipvl_plugins.gpu.bounds import clamp
from zipvl_plugins.gpu.gemm import constants, flat_grid, project, tile_of, tunings_of
from zipvl_plugins.gpu.launch import Launch, Operand, Stage, Tuning


@triton.jit(do_not_specialize=["n"])
def gather_projection_kernel(
    x, weight, bias, index, count, n, out,
    INNER: tl.constexpr, OUTER: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr,
):  # fmt: skip
    kept = clamp(tl.load(count), 0, n)
    row_blocks = tl.cdiv(kept, BLOCK_ROWS)
    column_blocks: tl.constexpr = (OUTER + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS  # no constexpr by tl.cdiv in Triton 3.6
    if tl.program_id(0) >= row_blocks * column_blocks:
        return
    row_block, column_block = tile_of(tl.program_id(0), row_blocks, column_blocks)
    rows = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    tokens = clamp(tl.load(index + rows, mask=rows < kept, other=0), 0, n - 1)
    sums = project(
        x, tokens.to(tl.int64), weight, bias, columns,
        INNER, OUTER, HAS_BIAS, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_INNER,
    )  # fmt: skip
    inside = (rows < kept)[:, None] & (columns < OUTER)[None, :]
    offsets = rows.to(tl.int64)[:, None] * OUTER + columns[None, :]
    tl.store(out + offsets, sums.to(out.dtype.element_ty), mask=inside)


def launch(
    x: Operand, weight: Operand, bias: Operand | None, index: Operand, count: Operand, *, tuning: Tuning
) -> Launch:
    rows, outer = index.shape[0], weight.shape[0]
    return Launch(
        kernel=gather_projection_kernel,
        grid=flat_grid(rows, outer, tuning),
        scalars=(rows,),
        outputs=(Operand(x.dtype, (rows, outer)),),
        constants=constants(weight, bias, tuning),
        warps=tuning.warps,
        stages=tuning.stages,
    )


def tunings(
    sm: int, x: Operand, weight: Operand, bias: Operand | None, index: Operand, count: Operand
) -> tuple[Tuning, ...]:
    return tunings_of(sm, weight)


STAGES = (Stage("gather_projection", ("x", "weight", "bias", "index", "count"), ("projected",), launch, tunings),)
OUTPUTS = ("projected",)
