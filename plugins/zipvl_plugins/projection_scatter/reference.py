"""projection_scatter: the attention's output projection on T, zero elsewhere (Algorithm 1's padded output).

Y[index[i]] = O[i] W^T + b for i < count;  every other row of Y is zero
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


@torch.library.custom_op("zipvl::projection_scatter", mutates_args=())
def projection_scatter(
    o: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, index: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    """Project compacted rows and put them back at their tokens.

    o [n, inner], rows at or after `count` undefined; weight [outer, inner]; bias [outer] or None; index int32 [n];
    count int32 [1]. Returns [n, outer].
    """
    rows = index[: int(count)].long()
    out = o.new_zeros(index.shape[0], weight.shape[0])
    out[rows] = F.linear(o[: len(rows)], weight, bias)
    return out


@projection_scatter.register_fake
def _(
    o: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, index: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    return o.new_empty(index.shape[0], weight.shape[0])
