"""projection_scatter on a GPU: Y[index[i]] = O[i] W^T + b for i < count; every other row of Y is zero.

Source: reference.py beside this file. A matrix product that writes through the index, and the zeros of its padding.
Programs of compacted rows a..b own the tokens after index[a - 1] (from 0 for the first) up to index[b] (to n - 1 for
the last). The index ascends, so every token has one owner, whose own rows say which of its tokens are in T: each
element of Y is written once, by one program, in no order that matters. The zeros go out first and drain under the
product.

Bound by compute: 2 x count x inner x outer FLOP. The grid is flat and made for n rows; programs past the tiles of
`count` exit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zipvl_plugins.gpu.bounds import clamp
from zipvl_plugins.gpu.gemm import constants, flat_grid, project, tile_of, tunings_of
from zipvl_plugins.gpu.launch import Launch, Operand, Stage, Tuning

BLOCK_TOKENS = 32
"""Tokens that a program looks at together when it writes zeros."""


@triton.jit(do_not_specialize=["n"])
def projection_scatter_kernel(
    o, weight, bias, index, count, n, out,
    INNER: tl.constexpr, OUTER: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INNER: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    kept = clamp(tl.load(count), 0, n)
    row_blocks = tl.maximum(tl.cdiv(kept, BLOCK_ROWS), 1)  # zeros need an owner even where T is empty
    column_blocks: tl.constexpr = (OUTER + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS  # no constexpr by tl.cdiv in Triton 3.6
    if tl.program_id(0) >= row_blocks * column_blocks:
        return
    row_block, column_block = tile_of(tl.program_id(0), row_blocks, column_blocks)
    first = row_block * BLOCK_ROWS
    rows = first + tl.arange(0, BLOCK_ROWS)
    columns = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    in_width = (columns < OUTER)[None, :]
    tokens = tl.load(index + rows, mask=rows < kept, other=-1)

    begin = clamp(tl.load(index + first - 1, mask=row_block > 0, other=-1), -1, n - 1) + 1
    last = tl.load(index + first + BLOCK_ROWS - 1, mask=row_block + 1 < row_blocks, other=n - 1)
    end = clamp(last, -1, n - 1) + 1
    zeros = tl.zeros([BLOCK_TOKENS, BLOCK_COLUMNS], out.dtype.element_ty)
    for start in range(begin, end, BLOCK_TOKENS):
        owned = start + tl.arange(0, BLOCK_TOKENS)
        in_t = tl.max((owned[:, None] == tokens[None, :]).to(tl.int32), 1) > 0
        empty = (owned < end) & ~in_t
        tl.store(out + owned.to(tl.int64)[:, None] * OUTER + columns[None, :], zeros, mask=empty[:, None] & in_width)

    compacted = tl.where(rows < kept, rows, 0).to(tl.int64)
    sums = project(
        o, compacted, weight, bias, columns, INNER, OUTER, HAS_BIAS, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_INNER
    )  # fmt: skip
    # The index is read again: tokens kept through the product would cost registers, of which it has none to spare.
    tokens = tl.load(index + rows, mask=rows < kept, other=-1)
    offsets = tokens.to(tl.int64)[:, None] * OUTER + columns[None, :]
    exists = (tokens >= 0) & (tokens < n)
    tl.store(out + offsets, sums.to(out.dtype.element_ty), mask=exists[:, None] & in_width)


def launch(
    o: Operand, weight: Operand, bias: Operand | None, index: Operand, count: Operand, *, tuning: Tuning
) -> Launch:
    n, outer = index.shape[0], weight.shape[0]
    return Launch(
        kernel=projection_scatter_kernel,
        grid=flat_grid(n, outer, tuning),
        scalars=(n,),
        outputs=(Operand(o.dtype, (n, outer)),),
        constants={**constants(weight, bias, tuning), "BLOCK_TOKENS": BLOCK_TOKENS},
        warps=tuning.warps,
        stages=tuning.stages,
    )


def tunings(
    sm: int, o: Operand, weight: Operand, bias: Operand | None, index: Operand, count: Operand
) -> tuple[Tuning, ...]:
    return tunings_of(sm, weight)


STAGES = (Stage("projection_scatter", ("o", "weight", "bias", "index", "count"), ("scattered",), launch, tunings),)
OUTPUTS = ("scattered",)
