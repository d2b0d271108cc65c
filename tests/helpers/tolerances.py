"""Relative errors that a kernel may have in the interpreter, against the reference in higher precision."""

from __future__ import annotations

import torch

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""The interpreter cuts bfloat16 off where a GPU rounds: twice the error, all of it in one direction."""
