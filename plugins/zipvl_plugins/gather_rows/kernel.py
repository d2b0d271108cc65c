"""gather_rows on a GPU: Y[i] = X[index[i]] for i < count, rows copied as they are.

Source: reference.py beside this file. Bound by memory: count rows read and written once.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from zipvl_plugins.gpu.bounds import clamp
from zipvl_plugins.gpu.launch import Launch, Operand, Stage, Tuning, cdiv


@triton.jit(do_not_specialize=["n"])
def gather_rows_kernel(
    x, index, count, n, out, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):  # fmt: skip
    kept = clamp(tl.load(count), 0, n)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    if tl.program_id(0) * BLOCK_ROWS >= kept:
        return
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    inside = (rows[:, None] < kept) & (columns[None, :] < WIDTH)
    tokens = clamp(tl.load(index + rows, mask=rows < kept, other=0), 0, n - 1).to(tl.int64)
    values = tl.load(x + tokens[:, None] * WIDTH + columns[None, :], mask=inside)
    tl.store(out + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], values, mask=inside)


def launch(x: Operand, index: Operand, count: Operand, *, tuning: Tuning) -> Launch:
    width = math.prod(x.shape[1:])
    blocks = tuning.blocks
    return Launch(
        kernel=gather_rows_kernel,
        grid=(cdiv(x.shape[0], blocks["BLOCK_ROWS"]), cdiv(width, blocks["BLOCK_WIDTH"])),
        scalars=(x.shape[0],),
        outputs=(x,),
        constants={"WIDTH": width, **blocks},
        warps=tuning.warps,
        stages=tuning.stages,
    )


def tunings(sm: int, x: Operand, index: Operand, count: Operand) -> tuple[Tuning, ...]:
    return (
        Tuning({"BLOCK_ROWS": 16, "BLOCK_WIDTH": 128}, warps=4, stages=1),
        Tuning({"BLOCK_ROWS": 4, "BLOCK_WIDTH": 512}, warps=4, stages=1),
    )


STAGES = (Stage("gather_rows", ("x", "index", "count"), ("gathered",), launch, tunings),)
OUTPUTS = ("gathered",)
