"""gather_projection: a linear layer on the tokens of T only (a lazy Q or V projection).

    Y[i] = X[index[i]] W^T + b for i < count

The published method never reads Q and V outside T, so leaving them out changes nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


@torch.library.custom_op("zipvl::gather_projection", mutates_args=())
def gather_projection(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, index: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    """Project the rows of T.

    x [n, inner]; weight [outer, inner]; bias [outer] or None; index int32 [n]; count int32 [1].
    Returns [n, outer] whose first `count` rows belong to the tokens of T; the rest is undefined.
    """
    out = x.new_zeros(x.shape[0], weight.shape[0])
    rows = index[: int(count)].long()
    out[: len(rows)] = F.linear(x[rows], weight, bias)
    return out


@gather_projection.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, index: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])
