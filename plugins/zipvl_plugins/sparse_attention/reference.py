"""sparse_attention: causal attention among the tokens of T (Algorithm 1, FlashAttention(Q[T], K[T], V[T])).

O_i = sum over j <= i of softmax(q_i k_j * scale) v_j,   i, j < count, in compacted order
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


@torch.library.custom_op("zipvl::sparse_attention", mutates_args=())
def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, count: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention over compacted rows; positions were rotated in before compaction, so order is all that is left.

    q [n, heads, d]; k, v [n, kv_heads, d]; count int32 [1]. Rows at or after `count` are never read.
    Returns [n, heads * d]; rows at or after `count` are undefined.
    """
    rows = int(count)
    query, key, value = (t[None, :rows].transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    out = q.new_zeros(q.shape[0], q.shape[1] * q.shape[2])
    out[:rows] = attended[0].transpose(0, 1).flatten(1)
    return out


@sparse_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, count: torch.Tensor, scale: float) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
