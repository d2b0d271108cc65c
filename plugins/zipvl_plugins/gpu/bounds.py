"""Integers read on the device, held to what tensors have: no kernel trusts a count, an index, a place or a page id.

TensorRT times plugins on inputs of its own making. What a kernel then computes means nothing; what it touches must
exist.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clamp(values, lowest, highest):
    """Integers held to lowest..highest; tl.clamp takes floats only."""
    return tl.minimum(tl.maximum(values, lowest), highest)
