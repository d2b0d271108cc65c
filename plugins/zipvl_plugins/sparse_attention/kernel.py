"""sparse_attention on a GPU: O_i = sum over j <= i of softmax(q_i k_j * scale) v_j among the count rows of T.

Source: reference.py beside this file; FlashAttention-2 (Dao, 2023): a program holds BLOCK_ROWS queries of one head and
walks over the keys with a running maximum and sum in base 2. For a block of scores S = q K^T * scale * log2 e:

    m' = max(m, rowmax S),   l' = l 2^(m - m') + rowsum 2^(S - m'),   A' = A 2^(m - m') + 2^(S - m') V;   O = A / l

Key blocks before the program's first row need no mask; those beside its rows have the causal one. That alone keeps
rows past `count` out of every stored row: they come later, and are loaded as zeros.

A head is cut into a left and a right part of 64 + 64 (128), 64 + 32 (96) or 64 + 16 (80) columns: little is padded, and
two accumulators of 128 x 64 leave the compiler the registers that one of 128 x 128 does not.

Bound by compute: 2 x count^2 x heads x d FLOP (half of the full square); 13B at 131,072 tokens and a ratio of 0.37:
24 TFLOP a layer, 0.12 s at 65 % of an A100's 312 TFLOP/s. The grid is flat and made for n rows; programs past the work
of `count` exit. Longest rows go first, so the last programs to finish are short ones.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from zipvl_plugins.gpu.bounds import clamp
from zipvl_plugins.gpu.dot import dot
from zipvl_plugins.gpu.launch import Launch, Operand, Stage, Tuning, cdiv

SECTION_BYTES = 16 << 20
"""Heads whose K and V fit here run side by side and share them in the L2 cache; an A100 has 20 MiB on each side."""


@triton.jit(do_not_specialize=["n"])
def sparse_attention_kernel(
    q, k, v, count, n, out,
    SCALE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, KV_ROW_BYTES: tl.constexpr,
    SECTION_BYTES: tl.constexpr, BLOCK_LEFT: tl.constexpr, BLOCK_RIGHT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    kept = clamp(tl.load(count), 0, n)
    row_blocks = tl.cdiv(kept, BLOCK_ROWS)
    if tl.program_id(0) >= row_blocks * HEADS:
        return
    GROUP: tl.constexpr = HEADS // KV_HEADS
    section = tl.minimum(tl.maximum(SECTION_BYTES // (kept * KV_ROW_BYTES), 1), KV_HEADS) * GROUP
    first_head = tl.program_id(0) // (section * row_blocks) * section
    place = tl.program_id(0) % (section * row_blocks)
    section = tl.minimum(section, HEADS - first_head)
    head = first_head + place % section
    first = (row_blocks - 1 - place // section) * BLOCK_ROWS
    last = tl.minimum(first + BLOCK_ROWS, kept)

    rows = tl.arange(0, BLOCK_ROWS)
    corner = tl.cast(first, tl.int64) * (HEADS * WIDTH) + head * WIDTH
    left = _load(q + corner, rows, rows < last - first, HEADS * WIDTH, WIDTH, BLOCK_LEFT)
    attended_left = tl.zeros([BLOCK_ROWS, BLOCK_LEFT], tl.float32)
    if BLOCK_RIGHT > 0:
        right = _load(
            q + corner + BLOCK_LEFT, rows, rows < last - first, HEADS * WIDTH, WIDTH - BLOCK_LEFT, BLOCK_RIGHT
        )
        attended_right = tl.zeros([BLOCK_ROWS, BLOCK_RIGHT], tl.float32)
    else:
        right, attended_right = left, 0.0
    peak = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    k += head // GROUP * WIDTH
    v += head // GROUP * WIDTH
    for DIAGONAL in tl.static_range(2):
        attended_left, attended_right, total, peak = _attend(
            attended_left, attended_right, total, peak, left, right, k, v, first + rows,
            first if DIAGONAL else 0, last if DIAGONAL else first,
            SCALE, KV_HEADS * WIDTH, WIDTH, BLOCK_LEFT, BLOCK_RIGHT, BLOCK_COLUMNS, DIAGONAL,
        )  # fmt: skip
    # `count` is read again: a mask kept through the loops would cost registers, of which they have none to spare.
    written = rows < clamp(tl.load(count, volatile=True), 0, n) - first
    _store(out + corner, attended_left / total[:, None], rows, written, HEADS * WIDTH, WIDTH, BLOCK_LEFT)
    if BLOCK_RIGHT > 0:
        _store(
            out + corner + BLOCK_LEFT, attended_right / total[:, None], rows, written,
            HEADS * WIDTH, WIDTH - BLOCK_LEFT, BLOCK_RIGHT,
        )  # fmt: skip


@triton.jit
def _attend(
    attended_left, attended_right, total, peak, left, right, k, v, rows, begin, end,
    SCALE: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Carry attended, total and peak over the keys from begin to end: whole blocks unmasked, or the DIAGONAL ones."""
    columns = tl.arange(0, BLOCK_COLUMNS)
    for start in range(begin, end, BLOCK_COLUMNS):
        place = tl.cast(start, tl.int64) * STRIDE
        readable = columns < end - start if DIAGONAL else None
        keys = _load(k + place, columns, readable, STRIDE, WIDTH, BLOCK_LEFT)
        scores = dot(left, tl.trans(keys), tl.zeros([left.shape[0], BLOCK_COLUMNS], tl.float32))
        if BLOCK_RIGHT > 0:
            keys = _load(k + place + BLOCK_LEFT, columns, readable, STRIDE, WIDTH - BLOCK_LEFT, BLOCK_RIGHT)
            scores = dot(right, tl.trans(keys), scores)
        if DIAGONAL:
            scores = tl.where((start + columns)[None, :] <= rows[:, None], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1) * SCALE)
        weights = tl.exp2(scores * SCALE - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, 1)
        peak = higher
        weights = weights.to(left.dtype)
        values = _load(v + place, columns, readable, STRIDE, WIDTH, BLOCK_LEFT)
        attended_left = dot(weights, values, attended_left * shrink[:, None])
        if BLOCK_RIGHT > 0:
            values = _load(v + place + BLOCK_LEFT, columns, readable, STRIDE, WIDTH - BLOCK_LEFT, BLOCK_RIGHT)
            attended_right = dot(weights, values, attended_right * shrink[:, None])
    return attended_left, attended_right, total, peak


@triton.jit
def _load(corner, rows, readable, STRIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """[rows, BLOCK_WIDTH] at corner, zero past WIDTH and in rows that are not readable; None where all are."""
    columns = tl.arange(0, BLOCK_WIDTH)
    at = corner + rows[:, None] * STRIDE + columns[None, :]
    if WIDTH < BLOCK_WIDTH:
        inside = (columns < WIDTH)[None, :]
        if readable is not None:
            inside = inside & readable[:, None]
        return tl.load(at, mask=inside, other=0.0)
    if readable is not None:
        return tl.load(at, mask=readable[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def _store(corner, values, rows, written, STRIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    columns = tl.arange(0, BLOCK_WIDTH)
    inside = written[:, None] & (columns < WIDTH)[None, :]
    tl.store(corner + rows[:, None] * STRIDE + columns[None, :], values.to(corner.dtype.element_ty), mask=inside)


def launch(q: Operand, k: Operand, v: Operand, count: Operand, *, tuning: Tuning, scale: float) -> Launch:
    (n, heads, width), kv_heads = q.shape, k.shape[1]
    return Launch(
        kernel=sparse_attention_kernel,
        grid=(cdiv(n, tuning.blocks["BLOCK_ROWS"]) * heads,),
        scalars=(n,),
        outputs=(Operand(q.dtype, (n, heads * width)),),
        constants={
            "SCALE": scale * math.log2(math.e),
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "WIDTH": width,
            "KV_ROW_BYTES": 2 * width * (4 if q.dtype == "float32" else 2),
            "SECTION_BYTES": SECTION_BYTES,
            **_halves(width),
            **tuning.blocks,
        },
        warps=tuning.warps,
        stages=tuning.stages,
    )


def tunings(sm: int, q: Operand, k: Operand, v: Operand, count: Operand) -> tuple[Tuning, ...]:
    """Estimated for sm_80 and d 128, not measured: while its tensor cores are busy for 100 cycles, shared memory is
    read for 75 by four warps of 32 rows, two blocks an SM (on sm_89 one), and for 113 by eight warps of 16 rows."""
    width = q.shape[2]
    if q.dtype == "float32":
        return (_tuning(32, 32, warps=4, stages=1), _tuning(64, 32, warps=8, stages=1))
    small = _tuning(64, 32, 4, 2)
    if sm >= 90:
        if width <= 64:
            return (_tuning(128, 128, 8, 2), _tuning(128, 64, 4, 3), _tuning(128, 64, 8, 3), small)
        whole = {"BLOCK_LEFT": 128, "BLOCK_RIGHT": 0} if width == 128 else {}
        return (_tuning(128, 64, 8, 3, **whole), _tuning(128, 128, 8, 2), _tuning(64, 64, 4, 3), small)
    if width <= 64:
        return (_tuning(128, 64, 4, 3), _tuning(128, 64, 8, 3), _tuning(128, 32, 4, 3))
    if sm == 80:
        return (_tuning(128, 32, 4, 3), _tuning(128, 64, 8, 3), _tuning(128, 32, 8, 3), small)
    return (_tuning(128, 64, 8, 2), _tuning(128, 32, 8, 3), small)


def _halves(width: int) -> dict[str, int]:
    """Blocks of a power of two, as Triton has them, that cover a head; 0 where the left one does."""
    if width <= 64:
        return {"BLOCK_LEFT": max(16, triton.next_power_of_2(width)), "BLOCK_RIGHT": 0}
    left = triton.next_power_of_2(width) // 2
    return {"BLOCK_LEFT": left, "BLOCK_RIGHT": max(16, triton.next_power_of_2(width - left))}


def _tuning(rows: int, columns: int, warps: int, stages: int, **halves: int) -> Tuning:
    return Tuning({"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns, **halves}, warps, stages)


STAGES = (Stage("sparse_attention", ("q", "k", "v", "count"), ("attended",), launch, tunings, ("scale",)),)
OUTPUTS = ("attended",)
