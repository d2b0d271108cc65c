"""The matrix product of all kernels, in float32, by Triton's compiler and by its interpreter alike."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, accumulated: tl.tensor) -> tl.tensor:
    """accumulated + a b; float32 operands are multiplied as they are, not as TF32."""
    if INTERPRETED:  # which keeps bfloat16 as integers, numpy having none, and would multiply those
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulated, input_precision="ieee")
