"""probe_scores on a GPU, without a heads x m x n matrix: log-sum-exp of every probe row, then sums per column.

A_rj = 2^(s_rj - L_r), s = log2(e) * scale * q k^T where column j <= place of probe r, L_r = log2 sum_j 2^s_rj
accumulated_j = sum_r A_rj;  normalised_j = accumulated_j / number of probes at or after j

Source: paper equations 6, 8 and A; reference.py beside this file. The m x group query rows of a kv head are one matrix,
probe by probe, so that a group's queries share the keys they load. Three kernels: log-sum-exp of the rows, per split of
the columns; sums per column over a block of rows, from scores computed a second time; the sum of those, in one order.

A 13B layer (40 heads, d = 128, m = 128) on an A100, per pass over 4096 tokens: 42 MB of keys (27 us at 1.56 TB/s),
5.4 GFLOP (17 us at the peak), 21 M exponentials (9 us at 16 a clock and SM). 45 us if they overlap badly: 90 us for
both passes, of the 11 ms that a dense layer takes. The splits are so many that 16 x 40 blocks fill 108 SMs at any n.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from zipvl_plugins.gpu.bounds import clamp
from zipvl_plugins.gpu.dot import dot
from zipvl_plugins.gpu.launch import Launch, Operand, Size, Stage, Tuning, cdiv

SPLITS = 16
"""Parts that the columns are cut into. Not tuned: the shape of scratch hangs on it, as on the rows of a block."""
_NOTHING = tl.constexpr(-1e30)
"""log2 of a sum over no column: finite, so that no NaN comes of it, and nothing beside that of any column."""


@triton.jit
def _probe_rows(
    q, positions, n, m,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows of this block: their numbers, their queries [ROWS, BLOCK_DIM] and places, -1 past the last row."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_DIM)
    probes = rows // GROUP
    places = clamp(tl.load(positions + probes, mask=probes < m, other=-1).to(tl.int32), -1, n - 1)
    heads = tl.program_id(1) * GROUP + rows % GROUP
    offsets = (probes.to(tl.int64) * (KV_HEADS * GROUP) + heads) * HEAD_DIM
    inside = (probes < m)[:, None] & (dims < HEAD_DIM)[None, :]
    queries = tl.load(q + offsets[:, None] + dims[None, :], mask=inside, other=0.0)
    return rows, queries, places


@triton.jit
def _keys(
    k, start,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Where the keys of this block's kv head are, from column `start` on: [BLOCK_N, BLOCK_DIM] pointers."""
    columns = start.to(tl.int64) + tl.arange(0, BLOCK_N)
    return k + (columns * KV_HEADS + tl.program_id(1))[:, None] * HEAD_DIM + tl.arange(0, BLOCK_DIM)[None, :]


@triton.jit
def _split(places, n, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Columns of this block: where they start, where the last one that any row sees ends, where they stop."""
    length = tl.cdiv(tl.cdiv(n, SPLITS), BLOCK_N) * BLOCK_N
    start = tl.program_id(2) * length
    stop = tl.minimum(start + length, n)
    return start, tl.minimum(stop, tl.max(places) + 1), stop


@triton.jit(do_not_specialize=["n", "m"])
def probe_scores_lse_kernel(
    q, k, positions, ratio_min, n, m, lse,
    SCALE_LOG2E: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    if tl.load(ratio_min) >= 1:
        return
    rows, queries, places = _probe_rows(q, positions, n, m, KV_HEADS, GROUP, HEAD_DIM, BLOCK_DIM, ROWS)
    start, seen_stop, _ = _split(places, n, SPLITS, BLOCK_N)
    pointers = _keys(k, start, KV_HEADS, HEAD_DIM, BLOCK_DIM, BLOCK_N)
    dims = tl.arange(0, BLOCK_DIM)
    peak = tl.full((ROWS,), _NOTHING, tl.float32)
    total = tl.full((ROWS,), 1.0, tl.float32)
    for first in range(start, seen_stop, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        keys = tl.load(pointers, mask=(columns < n)[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        products = dot(queries, tl.trans(keys), tl.zeros((ROWS, BLOCK_N), tl.float32))
        products = tl.where(columns[None, :] <= places[:, None], products, float("-inf"))
        higher = tl.maximum(peak, tl.max(products, 1) * SCALE_LOG2E)
        mass = tl.sum(tl.exp2(products * SCALE_LOG2E - higher[:, None]), 1)
        total = total * tl.exp2(peak - higher) + mass
        peak = higher
        pointers += BLOCK_N * KV_HEADS * HEAD_DIM
    slots = (tl.program_id(2) * KV_HEADS + tl.program_id(1)) * (m * GROUP) + rows
    tl.store(lse + slots, peak + tl.log2(total), mask=rows < m * GROUP)


@triton.jit(do_not_specialize=["n", "m"])
def probe_scores_sums_kernel(
    q, k, positions, ratio_min, lse, n, m, sums,
    SCALE_LOG2E: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    if tl.load(ratio_min) >= 1:
        return
    rows, queries, places = _probe_rows(q, positions, n, m, KV_HEADS, GROUP, HEAD_DIM, BLOCK_DIM, ROWS)
    start, seen_stop, stop = _split(places, n, SPLITS, BLOCK_N)
    splits = tl.arange(0, SPLITS) * KV_HEADS + tl.program_id(1)
    slots = splits[:, None] * (m * GROUP) + rows[None, :]
    split_lse = tl.load(lse + slots, mask=(rows < m * GROUP)[None, :], other=0.0)
    peak = tl.max(split_lse, 0)
    row_lse = peak + tl.log2(tl.sum(tl.exp2(split_lse - peak[None, :]), 0))
    pointers = _keys(k, start, KV_HEADS, HEAD_DIM, BLOCK_DIM, BLOCK_N)
    dims = tl.arange(0, BLOCK_DIM)
    part = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    sums += part * n + start + tl.arange(0, BLOCK_N)
    for first in range(start, seen_stop, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        keys = tl.load(pointers, mask=(columns < n)[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        products = dot(keys, tl.trans(queries), tl.zeros((BLOCK_N, ROWS), tl.float32))
        logs = products * SCALE_LOG2E - row_lse[None, :]
        attention = tl.exp2(tl.where(columns[:, None] <= places[None, :], logs, float("-inf")))
        tl.store(sums, tl.sum(attention, 1), mask=columns < n)
        sums += BLOCK_N
        pointers += BLOCK_N * KV_HEADS * HEAD_DIM
    unseen = start + tl.cdiv(tl.maximum(seen_stop - start, 0), BLOCK_N) * BLOCK_N
    for first in range(unseen, stop, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        tl.store(sums, tl.zeros((BLOCK_N,), tl.float32), mask=columns < n)
        sums += BLOCK_N


@triton.jit(do_not_specialize=["n", "m", "parts"])
def probe_scores_combine_kernel(
    sums, positions, ratio_min, n, m, parts, accumulated, normalised, BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr
):
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < n
    computed = (tl.load(ratio_min) < 1).to(tl.int32)
    mass = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, parts * computed, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        offsets = rows.to(tl.int64)[:, None] * n + columns[None, :]
        mass += tl.sum(tl.load(sums + offsets, mask=(rows < parts)[:, None] & inside[None, :], other=0.0), 0)
    probes = tl.zeros((BLOCK_N,), tl.int32)
    for first in range(0, m * computed, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        places = tl.load(positions + rows, mask=rows < m, other=-1).to(tl.int32)
        probes += tl.sum((places[:, None] >= columns[None, :]).to(tl.int32), 0)
    tl.store(accumulated + columns, mass, mask=inside)
    tl.store(normalised + columns, mass / tl.maximum(probes, 1).to(tl.float32), mask=inside)


def launch_lse(
    q: Operand, k: Operand, positions: Operand, ratio_min: Operand, *, tuning: Tuning, scale: float
) -> Launch:
    """lse float32 [SPLITS, kv_heads, m x group]: log2 of the sum of 2^s over a split's columns, per row."""
    lse = Operand("float32", (SPLITS, k.shape[1], _rows(q, k)))
    return _launch_scores(probe_scores_lse_kernel, q, k, lse, tuning, scale)


def launch_sums(
    q: Operand, k: Operand, positions: Operand, ratio_min: Operand, lse: Operand, *, tuning: Tuning, scale: float
) -> Launch:
    """sums float32 [kv_heads x blocks of rows, n]: attention that a block of rows pays to every column."""
    sums = Operand("float32", (cdiv(_rows(q, k), _block_rows(q)) * k.shape[1], k.shape[0]))
    return _launch_scores(probe_scores_sums_kernel, q, k, sums, tuning, scale)


def launch_combine(sums: Operand, positions: Operand, ratio_min: Operand, *, tuning: Tuning) -> Launch:
    """accumulated, normalised float32 [n]."""
    parts, n = sums.shape
    return Launch(
        kernel=probe_scores_combine_kernel,
        grid=(cdiv(n, tuning.blocks["BLOCK_N"]),),
        scalars=(n, positions.shape[0], parts),
        outputs=(Operand("float32", (n,)), Operand("float32", (n,))),
        constants=dict(tuning.blocks),
        warps=tuning.warps,
        stages=tuning.stages,
    )


def _rows(q: Operand, k: Operand) -> Size:
    """Query rows that share a kv head's keys."""
    return q.shape[0] * (q.shape[1] // k.shape[1])


def _block_rows(q: Operand) -> int:
    """Rows that one block takes: all of 128 probes where no heads share keys; float32 has no tensor core to feed."""
    return 32 if q.dtype == "float32" else 128


def _launch_scores(kernel: object, q: Operand, k: Operand, out: Operand, tuning: Tuning, scale: float) -> Launch:
    kv_heads, head_dim = k.shape[1:]
    return Launch(
        kernel=kernel,
        grid=(cdiv(_rows(q, k), _block_rows(q)), kv_heads, SPLITS),
        scalars=(k.shape[0], q.shape[0]),
        outputs=(out,),
        constants={
            "SCALE_LOG2E": scale * math.log2(math.e),
            "KV_HEADS": kv_heads,
            "GROUP": q.shape[1] // kv_heads,
            "HEAD_DIM": head_dim,
            "BLOCK_DIM": max(16, triton.next_power_of_2(head_dim)),
            "SPLITS": SPLITS,
            "ROWS": _block_rows(q),
            **tuning.blocks,
        },
        warps=tuning.warps,
        stages=tuning.stages,
    )


def tunings_scores(sm: int, q: Operand, k: Operand, *others: Operand) -> tuple[Tuning, ...]:
    if q.dtype == "float32":
        return (Tuning({"BLOCK_N": 32}, warps=4, stages=1),)
    tunings = (
        Tuning({"BLOCK_N": 64}, warps=8, stages=3),
        Tuning({"BLOCK_N": 64}, warps=4, stages=2),
        Tuning({"BLOCK_N": 64}, warps=8, stages=2),
    )
    by_size = tunings[::-1] if sm == 89 else tunings  # its 100 KiB of shared memory hold two blocks of the last
    return (*by_size, Tuning({"BLOCK_N": 32}, warps=8, stages=2))


def tunings_combine(sm: int, *operands: Operand) -> tuple[Tuning, ...]:
    return (
        Tuning({"BLOCK_N": 32, "BLOCK_ROWS": 32}, warps=4, stages=1),
        Tuning({"BLOCK_N": 128, "BLOCK_ROWS": 16}, warps=4, stages=1),
    )


_INPUTS = ("q", "k", "positions", "ratio_min")
STAGES = (
    Stage("probe_scores_lse", _INPUTS, ("lse",), launch_lse, tunings_scores, ("scale",)),
    Stage("probe_scores_sums", (*_INPUTS, "lse"), ("sums",), launch_sums, tunings_scores, ("scale",)),
    Stage(
        "probe_scores_combine", ("sums", "positions", "ratio_min"), ("accumulated", "normalised"),
        launch_combine, tunings_combine,
    ),
)  # fmt: skip
OUTPUTS = ("accumulated", "normalised")
