"""The ops where T is every token: plain linear layers and plain causal attention, and no score is computed.

For executors that know before a prompt runs that it is dense (a ratio floor of 1). Each body takes those arguments of
its op that it reads, by name, so that whoever puts it into a program can drop what computed the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from zipvl_plugins import flash_attention, ops


def select_tokens(forced: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n = forced.shape[0]
    every = torch.arange(n, dtype=torch.int32, device=forced.device)
    return every, torch.full((1,), n, dtype=torch.int32, device=forced.device)


def gather_rows(x: torch.Tensor) -> torch.Tensor:
    return x


def gather_projection(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def projection_scatter(o: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(o, weight, bias)


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, count: torch.Tensor, scale: float
) -> torch.Tensor:
    """By flash-attn where it is installed, else by torch's own."""
    if flash_attention.takes(q):
        return flash_attention.causal(q, k, v, scale)
    if q.is_cuda and q.dtype == torch.float32:  # torch's fused attention takes no float32 with shared key heads
        attended: torch.Tensor = ops.reference("sparse_attention")(q, k, v, count, scale)
        return attended
    query, key, value = (rows[None].transpose(1, 2) for rows in (q, k, v))
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return attended[0].transpose(0, 1).flatten(1)


_BODIES = (select_tokens, gather_rows, gather_projection, projection_scatter, sparse_attention)
BODIES: dict[str, Callable[..., Any]] = {body.__name__: body for body in _BODIES}
"""By op. probe_scores has none: nothing reads it then."""
