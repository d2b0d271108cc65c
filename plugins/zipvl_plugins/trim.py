"""Rows of T cut to their count: for prompts so long that room for every token of every layer would not fit.

Waits for the device once per call: a layer of 32K tokens takes a thousand times longer than such a wait. 13B at 128K
tokens keeps 107 GB of K and V untrimmed, and 40 GB at ratio .37.
"""

from __future__ import annotations

import torch

TRIM_FROM = 32768
"""Prompt tokens from which it pays."""


def trim(rows: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The first `count` (int32 [1]) rows in memory of their own, so that the rest can be given back."""
    kept = int(count)
    return rows if kept == len(rows) else rows[:kept].clone()
