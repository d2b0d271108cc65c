"""select_tokens on a GPU: two threshold searches and a compaction by one block, no sort, no host.

p = the smallest count whose largest accumulated scores sum to tau x total, held between the two ratios
T = the p tokens of largest normalised score (ties: lower index first) and all forced tokens

Source: paper equations 7 and 9; reference.py beside this file; docs/contract.md, "Selection, exactly".
Floats that are not negative order as their bits do. A round tries 16 thresholds on every score at once and so settles
4 bits; after 8 rounds the threshold is one of the scores. Weights are added in one fixed order whatever the threshold,
so they never grow with it: a threshold that was reached stays reached, to the last bit.

An estimate for the one SM of an A100 that this runs on: a round is 48 n instructions at 128 a clock, 1.1 us per 4096
tokens, and 1.2 us to reduce. 17 rounds and the shorter passes are some 45 us of the 11 ms that a dense 13B layer takes
at 4096 tokens, 1.3 ms of its 1.3 s at 131072: more blocks would save less than the launches between their rounds cost.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zipvl_plugins.gpu.launch import Launch, Operand, Stage, Tuning

_THRESHOLDS = tl.constexpr(16)
_ROUNDS = tl.constexpr(8)
_FIRST_SHIFT = tl.constexpr(27)
"""The first round tries the four bits below the sign, the last one the three that are left."""
_SMALLEST_NORMAL = tl.constexpr(1.1754944e-38)
_NEARLY_ONE = tl.constexpr(1 - 2**-20)
"""Takes what rounding may have added off a count before it is rounded up."""
_ROUNDER = tl.constexpr(2.0**23)
"""Added to a smaller float and taken off again, it leaves the nearest integer, the even one of two."""


@triton.jit
def _scores(scores, start, n, BLOCK: tl.constexpr):
    """Tokens start, start + 1, ... and their scores; past the last token -1, which reaches no threshold."""
    tokens = start + tl.arange(0, BLOCK)
    return tokens, tl.load(scores + tokens, mask=tokens < n, other=-1.0)


@triton.jit
def _weights(scores, thresholds, n, BY_MASS: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """For each of COUNT thresholds, given as bits, the sum or the number of scores at or above it, float32."""
    weights = tl.zeros((COUNT, BLOCK), tl.float32)
    lowest = thresholds.to(tl.float32, bitcast=True)
    for start in range(0, n, BLOCK):
        _, values = _scores(scores, start, n, BLOCK)
        weight = values[None, :] if BY_MASS else 1.0
        weights += tl.where(values[None, :] >= lowest[:, None], weight, 0.0)
    return tl.sum(weights, 1)


@triton.jit
def _largest_threshold(scores, target, n, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Bits of the largest score such that scores at or above it weigh at least the target; 0 where none weighs."""
    threshold = 0
    for step in range(_ROUNDS):
        shift = tl.maximum(_FIRST_SHIFT - 4 * step, 0)
        tried = threshold + (tl.arange(0, _THRESHOLDS) << shift)
        weights = _weights(scores, tried, n, BY_MASS, _THRESHOLDS, BLOCK)
        reached = tl.sum(((weights >= target) & (weights > 0)).to(tl.int32), 0)
        threshold += tl.maximum(reached - 1, 0) << shift
    return threshold


@triton.jit
def _count_retaining(accumulated, tau, n, BLOCK: tl.constexpr):
    """p of equation 7: scores above the threshold, and as many of those that equal it as are still needed."""
    lowest = tl.zeros((_THRESHOLDS,), tl.int32)
    target = tau * tl.max(_weights(accumulated, lowest, n, True, _THRESHOLDS, BLOCK), 0)
    threshold = _largest_threshold(accumulated, target, n, True, BLOCK)
    at_and_above = threshold + tl.arange(0, 2)
    counts = _weights(accumulated, at_and_above, n, False, 2, BLOCK)
    above = tl.min(counts, 0)
    missing_mass = target - tl.min(_weights(accumulated, at_and_above, n, True, 2, BLOCK), 0)
    value = tl.maximum(threshold.to(tl.float32, bitcast=True), _SMALLEST_NORMAL)
    missing = tl.ceil(missing_mass / value * _NEARLY_ONE)
    tied = tl.max(counts, 0) - above
    return (above + tl.maximum(tl.minimum(missing, tied), 1.0)).to(tl.int32)


@triton.jit
def _share(ratio, n):
    """round(ratio x n), half to even, at least 1.

    The maximum keeps product and sum apart: fused, they would not round the product to float32 as the reference does.
    """
    return (tl.maximum(ratio * n, 1.0) + _ROUNDER - _ROUNDER).to(tl.int32)


@triton.jit(do_not_specialize=["n"])
def select_tokens_kernel(
    accumulated, normalised, forced, tau, ratio_min, ratio_max, n, index, count, BLOCK: tl.constexpr
):
    if tl.load(ratio_min) >= 1:
        for start in range(0, n, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            tl.store(index + tokens, tokens, mask=tokens < n)
        tl.store(count, n)
        return
    least = _share(tl.load(ratio_min), n)
    most = _share(tl.load(ratio_max), n)
    retained = tl.load(tau)
    wanted = n
    if (retained < 1) & (least < most):
        wanted = _count_retaining(accumulated, retained, n, BLOCK)
    p = tl.minimum(tl.maximum(wanted, least), most)
    threshold = _largest_threshold(normalised, p.to(tl.float32), n, False, BLOCK)
    above = threshold + tl.full((1,), 1, tl.int32)
    places = p - tl.sum(_weights(normalised, above, n, False, 1, BLOCK), 0).to(tl.int32)
    lowest = threshold.to(tl.float32, bitcast=True)
    ties = 0
    kept = 0
    for start in range(0, n, BLOCK):
        tokens, values = _scores(normalised, start, n, BLOCK)
        tied = (values == lowest).to(tl.int32)
        chosen = (values > lowest) | ((tied > 0) & (ties + tl.cumsum(tied, 0) <= places))
        chosen |= tl.load(forced + tokens, mask=tokens < n, other=0) != 0
        taken = chosen.to(tl.int32)
        tl.store(index + kept + tl.cumsum(taken, 0) - 1, tokens, mask=chosen)
        ties += tl.sum(tied, 0)
        kept += tl.sum(taken, 0)
    tl.store(count, kept)


def launch(
    accumulated: Operand,
    normalised: Operand,
    forced: Operand,
    tau: Operand,
    ratio_min: Operand,
    ratio_max: Operand,
    *,
    tuning: Tuning,
) -> Launch:
    """index int32 [n], of which the first count entries are written; count int32 [1]. `forced` may be any integer."""
    n = accumulated.shape[0]
    return Launch(
        kernel=select_tokens_kernel,
        grid=(1,),
        scalars=(n,),
        outputs=(Operand("int32", (n,)), Operand("int32", (1,))),
        constants=dict(tuning.blocks),
        warps=tuning.warps,
        stages=tuning.stages,
    )


def tunings(sm: int, *operands: Operand) -> tuple[Tuning, ...]:
    return (
        Tuning({"BLOCK": 1024}, warps=8, stages=1),
        Tuning({"BLOCK": 2048}, warps=16, stages=1),
        Tuning({"BLOCK": 512}, warps=4, stages=1),
    )


_INPUTS = ("accumulated", "normalised", "forced", "tau", "ratio_min", "ratio_max")
STAGES = (Stage("select_tokens", _INPUTS, ("index", "count"), launch, tunings),)
OUTPUTS = ("index", "count")
