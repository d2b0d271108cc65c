"""gather_rows: the rows of T, in order. Y[i] = X[index[i]] for i < count."""

from __future__ import annotations

import torch


@torch.library.custom_op("zipvl::gather_rows", mutates_args=())
def gather_rows(x: torch.Tensor, index: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Compact the rows of T to the front.

    x [n, ...]; index int32 [n]; count int32 [1]. Returns a tensor of x's shape whose first `count` rows are the rows
    of T in their original order; the rest is undefined.
    """
    out = torch.zeros_like(x)
    rows = index[: int(count)].long()
    out[: len(rows)] = x[rows]
    return out


@gather_rows.register_fake
def _(x: torch.Tensor, index: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)
