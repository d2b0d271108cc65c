"""paged_attention on a GPU: o = softmax(q [K_pages; k]^T * scale) [V_pages; v], one query per sequence.

Source: reference.py beside this file; split over the cached rows as in flash-decoding (Dao, Haziza, Massa and Sizov,
2023). With S_j the rows of split j and L_j = log2 sum_{i in S_j} 2^(s_i), s = q K^T * scale * log2 e:

    O_j = sum_{i in S_j} 2^(s_i - L_j) V_i                                          (splits)
    o = (2^s_new v + sum_j 2^(L_j) O_j) / (2^s_new + sum_j 2^(L_j))                 (combine)

All query heads of a kv head share one program, as the rows of a matrix product that has at least 16: K and V are read
once whatever the group. A split is SPLIT_ROWS rows whatever the batch, so no bit of a sequence's result depends on its
neighbours.

Bound by memory: kv_heads x d x 4 bytes of K and V per cached row in half precision, and of scratch (written, then read)
2 x group / SPLIT_ROWS as much. The products are 16 FLOP a byte up to a group of 16, a tenth of what an A100's tensor
cores do meanwhile. 13B (40 heads of 128), 16 sequences of 1,517 rows (4,096 tokens at 0.37): 0.50 GB, 0.24 ms a layer
at 2.04 TB/s.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from zipvl_plugins.gpu.bounds import clamp
from zipvl_plugins.gpu.dot import dot
from zipvl_plugins.gpu.launch import Launch, Operand, Stage, Tuning, cdiv

SPLIT_ROWS = 512
"""Cached rows that one program reads. No tuning: it orders the sums, and both kernels count splits by it."""


@triton.jit(do_not_specialize=["blocks", "pages"])
def paged_attention_splits_kernel(
    q, key_pages, value_pages, block_table, context, blocks, pages, partial, lse,
    SCALE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE_SIZE: tl.constexpr,
    SPLIT_ROWS: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = split * SPLIT_ROWS
    cached = clamp(tl.load(context + sequence), 0, blocks * PAGE_SIZE)
    if begin >= cached:
        return
    end = tl.minimum(begin + SPLIT_ROWS, cached)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    member = tl.arange(0, BLOCK_GROUP)
    columns = tl.arange(0, BLOCK_WIDTH)
    in_width = columns < WIDTH
    in_group = (member < GROUP)[:, None] & in_width[None, :]
    head = sequence * HEADS + kv_head * GROUP + member
    queries = tl.load(q + head[:, None] * WIDTH + columns[None, :], mask=in_group, other=0.0)

    peak = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    attended = tl.zeros([BLOCK_GROUP, BLOCK_WIDTH], tl.float32)
    for first in range(begin, end, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        readable = rows < end
        page = tl.load(block_table + sequence * blocks + rows // PAGE_SIZE, mask=readable, other=0)
        page = clamp(page, 0, pages - 1).to(tl.int64)
        place = (page * PAGE_SIZE + rows % PAGE_SIZE) * (KV_HEADS * WIDTH) + kv_head * WIDTH
        offsets = place[:, None] + columns[None, :]
        inside = readable[:, None] & in_width[None, :]
        keys = tl.load(key_pages + offsets, mask=inside, other=0.0)
        products = dot(queries, tl.trans(keys), tl.zeros([BLOCK_GROUP, BLOCK_ROWS], tl.float32))
        scores = tl.where(readable[None, :], products * SCALE, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(peak - higher)
        values = tl.load(value_pages + offsets, mask=inside, other=0.0)
        attended = dot(weights.to(values.dtype), values, attended * shrink[:, None])
        total = total * shrink + tl.sum(weights, 1)
        peak = higher

    place = head.to(tl.int64) * tl.num_programs(1) + split
    tl.store(partial + place[:, None] * WIDTH + columns[None, :], attended / total[:, None], mask=in_group)
    tl.store(lse + place, peak + tl.log2(total), mask=member < GROUP)


@triton.jit(do_not_specialize=["splits"])
def paged_attention_combine_kernel(
    partial, lse, q, k, v, context, splits, out,
    SCALE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    SPLIT_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1) * HEADS + tl.program_id(0)
    kv_head = tl.program_id(1) * KV_HEADS + tl.program_id(0) // (HEADS // KV_HEADS)
    columns = tl.arange(0, BLOCK_WIDTH)
    in_width = columns < WIDTH
    query = tl.load(q + head * WIDTH + columns, mask=in_width, other=0.0).to(tl.float32)
    key = tl.load(k + kv_head * WIDTH + columns, mask=in_width, other=0.0).to(tl.float32)
    peak = tl.sum(query * key) * SCALE
    total = tl.full([], 1.0, tl.float32)
    attended = tl.load(v + kv_head * WIDTH + columns, mask=in_width, other=0.0).to(tl.float32)
    cached = clamp(tl.load(context + tl.program_id(1)), 0, splits * SPLIT_ROWS)
    used = tl.cdiv(cached, SPLIT_ROWS)
    for first in range(0, used, BLOCK_SPLITS):
        split = first + tl.arange(0, BLOCK_SPLITS)
        written = split < used
        place = head.to(tl.int64) * splits + split
        height = tl.load(lse + place, mask=written, other=float("-inf"))
        inside = written[:, None] & in_width[None, :]
        rows = tl.load(partial + place[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
        higher = tl.maximum(peak, tl.max(height, 0))
        weights = tl.exp2(height - higher)
        shrink = tl.exp2(peak - higher)
        attended = attended * shrink + tl.sum(weights[:, None] * rows, 0)
        total = total * shrink + tl.sum(weights, 0)
        peak = higher
    tl.store(out + head * WIDTH + columns, (attended / total).to(out.dtype.element_ty), mask=in_width)


def launch_splits(
    q: Operand, key_pages: Operand, value_pages: Operand, block_table: Operand, context: Operand,
    *, tuning: Tuning, scale: float,
) -> Launch:  # fmt: skip
    (batch, heads, width), (_, page_size, kv_heads, _) = q.shape, key_pages.shape
    blocks = block_table.shape[1]
    splits = cdiv(blocks * page_size, SPLIT_ROWS)
    return Launch(
        kernel=paged_attention_splits_kernel,
        grid=(kv_heads, splits, batch),
        scalars=(blocks, key_pages.shape[0]),
        outputs=(Operand("float32", (batch, heads, splits, width)), Operand("float32", (batch, heads, splits))),
        constants={
            "SCALE": scale * math.log2(math.e),
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "WIDTH": width,
            "PAGE_SIZE": page_size,
            "SPLIT_ROWS": SPLIT_ROWS,
            "BLOCK_GROUP": max(16, triton.next_power_of_2(heads // kv_heads)),
            "BLOCK_WIDTH": max(16, triton.next_power_of_2(width)),
            **tuning.blocks,
        },
        warps=tuning.warps,
        stages=tuning.stages,
    )


def launch_combine(
    partial: Operand, lse: Operand, q: Operand, k: Operand, v: Operand, context: Operand,
    *, tuning: Tuning, scale: float,
) -> Launch:  # fmt: skip
    batch, heads, splits, width = partial.shape
    return Launch(
        kernel=paged_attention_combine_kernel,
        grid=(heads, batch),
        scalars=(splits,),
        outputs=(Operand(q.dtype, (batch, heads * width)),),
        constants={
            "SCALE": scale * math.log2(math.e),
            "HEADS": heads,
            "KV_HEADS": k.shape[1],
            "WIDTH": width,
            "SPLIT_ROWS": SPLIT_ROWS,
            "BLOCK_WIDTH": max(16, triton.next_power_of_2(width)),
            **tuning.blocks,
        },
        warps=tuning.warps,
        stages=tuning.stages,
    )


def tunings_splits(sm: int, *operands: Operand) -> tuple[Tuning, ...]:
    """Bytes in flight are what counts: at d = 128 a block takes 38 KiB, and an A100's SM holds four."""
    return (
        Tuning({"BLOCK_ROWS": 64}, warps=4, stages=3),
        Tuning({"BLOCK_ROWS": 32}, warps=4, stages=5),
        Tuning({"BLOCK_ROWS": 32}, warps=2, stages=5),
    )


def tunings_combine(sm: int, *operands: Operand) -> tuple[Tuning, ...]:
    return (
        Tuning({"BLOCK_SPLITS": 16}, warps=4, stages=1),
        Tuning({"BLOCK_SPLITS": 64}, warps=4, stages=2),
    )


STAGES = (
    Stage(
        "paged_attention_splits",
        ("q", "key_pages", "value_pages", "block_table", "context"),
        ("partial", "lse"),
        launch_splits,
        tunings_splits,
        ("scale",),
    ),
    Stage(
        "paged_attention_combine",
        ("partial", "lse", "q", "k", "v", "context"),
        ("attended",),
        launch_combine,
        tunings_combine,
        ("scale",),
    ),
)
OUTPUTS = ("attended",)
