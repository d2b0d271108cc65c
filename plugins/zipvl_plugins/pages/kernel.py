"""append_rows and store_rows on a GPU: K and V rows copied into pages.

Source: reference.py beside this file. Bound by memory: every row read and written once. One launch appends for all
layers; 13B in half precision (40 layers, 40 heads of 128), 16 sequences: 26 MB, 13 us at 2.04 TB/s.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zipvl_plugins.gpu.launch import Choose, Launch, Operand, Stage, Tuning, best, cdiv, run_stage
from zipvl_plugins.pages import reference


@triton.jit(do_not_specialize=["rows"])
def append_rows_kernel(
    key_pages, value_pages, keys, values, page_ids, slots, rows,
    WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    sequence, layer = tl.program_id(1), tl.program_id(2)
    which = layer * tl.num_programs(1) + sequence
    columns = tl.program_id(0) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    inside = columns < WIDTH
    source = (layer.to(tl.int64) * rows + sequence) * WIDTH + columns
    place = tl.load(page_ids + which).to(tl.int64) * PAGE_SIZE + tl.load(slots + which)
    target = place * WIDTH + columns
    tl.store(key_pages + target, tl.load(keys + source, mask=inside), mask=inside)
    tl.store(value_pages + target, tl.load(values + source, mask=inside), mask=inside)


@triton.jit(do_not_specialize=["count"])
def store_rows_kernel(
    key_pages, value_pages, keys, values, page_ids, count,
    WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    inside = (rows < count)[:, None] & (columns < WIDTH)[None, :]
    source = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    page = tl.load(page_ids + rows // PAGE_SIZE, mask=rows < count, other=0).to(tl.int64)
    target = (page * PAGE_SIZE + rows % PAGE_SIZE)[:, None] * WIDTH + columns[None, :]
    tl.store(key_pages + target, tl.load(keys + source, mask=inside), mask=inside)
    tl.store(value_pages + target, tl.load(values + source, mask=inside), mask=inside)


def launch_append_rows(
    key_pages: Operand, value_pages: Operand, keys: Operand, values: Operand, page_ids: Operand, slots: Operand,
    *, tuning: Tuning,
) -> Launch:  # fmt: skip
    (_, page_size, kv_heads, d), (layers, batch) = key_pages.shape, page_ids.shape
    return Launch(
        kernel=append_rows_kernel,
        grid=(cdiv(kv_heads * d, tuning.blocks["BLOCK_WIDTH"]), batch, layers),
        scalars=(keys.shape[1],),
        outputs=(),
        constants={"WIDTH": kv_heads * d, "PAGE_SIZE": page_size, **tuning.blocks},
        warps=tuning.warps,
        stages=tuning.stages,
    )


def launch_store_rows(
    key_pages: Operand, value_pages: Operand, keys: Operand, values: Operand, page_ids: Operand,
    *, tuning: Tuning, count: int,
) -> Launch:  # fmt: skip
    _, page_size, kv_heads, d = key_pages.shape
    blocks = tuning.blocks
    return Launch(
        kernel=store_rows_kernel,
        grid=(cdiv(count, blocks["BLOCK_ROWS"]), cdiv(kv_heads * d, blocks["BLOCK_WIDTH"])),
        scalars=(count,),
        outputs=(),
        constants={"WIDTH": kv_heads * d, "PAGE_SIZE": page_size, **blocks},
        warps=tuning.warps,
        stages=tuning.stages,
    )


def tunings_append_rows(sm: int, *operands: Operand) -> tuple[Tuning, ...]:
    return Tuning({"BLOCK_WIDTH": 1024}, warps=4, stages=1), Tuning({"BLOCK_WIDTH": 256}, warps=1, stages=1)


def tunings_store_rows(sm: int, *operands: Operand) -> tuple[Tuning, ...]:
    return (
        Tuning({"BLOCK_ROWS": 16, "BLOCK_WIDTH": 128}, warps=4, stages=1),
        Tuning({"BLOCK_ROWS": 4, "BLOCK_WIDTH": 512}, warps=4, stages=1),
    )


POOLS_AND_ROWS = ("key_pages", "value_pages", "keys", "values", "page_ids")
APPEND_ROWS = Stage("append_rows", (*POOLS_AND_ROWS, "slots"), (), launch_append_rows, tunings_append_rows)
STORE_ROWS = Stage("store_rows", POOLS_AND_ROWS, (), launch_store_rows, tunings_store_rows, ("count",))


def append_rows(
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_ids: torch.Tensor,
    slots: torch.Tensor,
    *,
    choose: Choose = best,
) -> None:
    """reference.append_rows by its kernel; `choose` takes a tuning. Never waits for the device."""
    rows = [tensor.contiguous() for tensor in (keys, values, page_ids, slots)]
    run_stage(APPEND_ROWS, [key_pages, value_pages, *rows], {}, choose)


def store_rows(
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_ids: torch.Tensor,
    count: int,
    *,
    choose: Choose = best,
) -> None:
    """reference.store_rows by its kernel; `choose` takes a tuning. Never waits for the device."""
    rows = [tensor.contiguous() for tensor in (keys, values, page_ids)]
    run_stage(STORE_ROWS, [key_pages, value_pages, *rows], {"count": count}, choose)


def use_kernels() -> None:
    """From here on torch.ops.zipvl.append_rows and store_rows on CUDA tensors are these kernels."""
    reference.append_rows.register_kernel("cuda")(append_rows)
    reference.store_rows.register_kernel("cuda")(store_rows)
