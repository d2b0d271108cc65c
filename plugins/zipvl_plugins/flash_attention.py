"""Attention by the package flash-attn, where it is installed: dense prefill, and decode over large pages."""

from __future__ import annotations

import functools
import importlib.util

import torch

_PAGE_MULTIPLE = 256
"""Tokens: the package reads pages of a multiple of this."""
_DTYPES = (torch.float16, torch.bfloat16)


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def takes(q: torch.Tensor) -> bool:
    """Whether it is installed and computes on this device and dtype."""
    return q.is_cuda and q.dtype in _DTYPES and installed()


def reads_pages(page_size: int, dtype: torch.dtype) -> bool:
    """Whether it is installed and attends to pages of so many tokens."""
    return page_size % _PAGE_MULTIPLE == 0 and dtype in _DTYPES and installed()


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """q [n, heads, d]; k, v [n, kv_heads, d] -> [n, heads * d]."""
    from flash_attn import flash_attn_func

    attended: torch.Tensor = flash_attn_func(q[None], k[None], v[None], softmax_scale=scale, causal=True)
    return attended[0].flatten(1)


def paged(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    context: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """paged_attention, arguments and result as the reference's.

    flash-attn attends to the cache alone, for its own append would write into pages that nobody has handed out; the
    token's own row joins by the log-sum-exp: of e^own + e^cached it holds the share sigmoid(own - cached).
    """
    from flash_attn import flash_attn_with_kvcache

    attended, cached = flash_attn_with_kvcache(
        q[:, None], key_pages, value_pages, cache_seqlens=context, block_table=block_table, softmax_scale=scale,
        return_softmax_lse=True,
    )  # fmt: skip
    keys, values = (rows.repeat_interleave(q.shape[1] // rows.shape[1], dim=1) for rows in (k, v))
    own = (q.float() * keys.float()).sum(dim=-1) * scale
    # Of an empty cache it says +inf.
    cached = cached[..., 0].float().masked_fill(context[:, None] == 0, float("-inf"))
    share = torch.sigmoid(own - cached)[..., None]
    return torch.lerp(attended[:, 0].float(), values.float(), share).to(q.dtype).flatten(1)
