"""probe_scores: how much attention the probe queries pay to every token (paper equations 6, 8 and A).

A           = softmax(q k^T * scale), causal, one row per probe and head
accumulated = sum of A over probes and heads, per column j
normalised  = accumulated_j / number of probes at or after j
"""

from __future__ import annotations

import torch


@torch.library.custom_op("zipvl::probe_scores", mutates_args=())
def probe_scores(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, ratio_min: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of n tokens read from m probe queries.

    q [m, heads, d] rotated queries; k [n, kv_heads, d] rotated keys (heads is a multiple of kv_heads);
    positions int64 [m], the probes' places in 0..n-1, the last token among them; ratio_min float32 [1]: at 1 every
    token is kept whatever its score, and zeros are returned.
    Returns (accumulated, normalised), both float32 [n].
    """
    n, kv_heads, _ = k.shape
    if float(ratio_min) >= 1:
        return q.new_zeros(n, dtype=torch.float32), q.new_zeros(n, dtype=torch.float32)
    keys = k.repeat_interleave(q.shape[1] // kv_heads, dim=1)
    scores = torch.einsum("mhd,nhd->hmn", q.float(), keys.float()) * scale
    seen = torch.arange(n, device=k.device) <= positions[:, None]
    attention = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    accumulated = attention.sum(dim=(0, 1))
    return accumulated, accumulated / seen.sum(dim=0).clamp(min=1)


@probe_scores.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, ratio_min: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    n = k.shape[0]
    return q.new_empty(n, dtype=torch.float32), q.new_empty(n, dtype=torch.float32)
