"""select_tokens: the important tokens T of a layer (paper equations 7 and 9).

p = the smallest count whose largest accumulated scores sum to tau x total, held between the two ratios
T = the p tokens of largest normalised score (ties: lower index first) and all forced tokens
"""

from __future__ import annotations

import torch


@torch.library.custom_op("zipvl::select_tokens", mutates_args=())
def select_tokens(
    accumulated: torch.Tensor,
    normalised: torch.Tensor,
    forced: torch.Tensor,
    tau: torch.Tensor,
    ratio_min: torch.Tensor,
    ratio_max: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose T from the scores of n tokens.

    accumulated, normalised float32 [n]; forced bool [n]; tau, ratio_min, ratio_max float32 [1] with
    0 <= ratio_min <= ratio_max <= 1. tau >= 1 retains all; ratio_min >= 1 keeps every token; equal ratios force p.
    Returns (index int32 [n], ascending; count int32 [1]); entries of index at or after count are undefined.
    """
    n, device = accumulated.shape[0], accumulated.device
    if float(ratio_min) >= 1:
        every = torch.arange(n, dtype=torch.int32, device=device)
        return every, torch.full((1,), n, dtype=torch.int32, device=device)
    largest_first = accumulated.double().sort(descending=True).values
    retained = largest_first.cumsum(0)
    p = n if float(tau) >= 1 else int((retained < tau.double() * retained[-1]).sum()) + 1
    least, most = (max(1, int((ratio * n).round())) for ratio in (ratio_min, ratio_max))
    p = min(max(p, least), most)
    kept = forced.clone()
    kept[normalised.sort(descending=True, stable=True).indices[:p]] = True
    index = torch.zeros(n, dtype=torch.int32, device=device)
    chosen = kept.nonzero()[:, 0]
    index[: len(chosen)] = chosen.int()
    return index, kept.sum(dim=0, keepdim=True, dtype=torch.int32)


@select_tokens.register_fake
def _(
    accumulated: torch.Tensor,
    normalised: torch.Tensor,
    forced: torch.Tensor,
    tau: torch.Tensor,
    ratio_min: torch.Tensor,
    ratio_max: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(accumulated, dtype=torch.int32), tau.new_empty(1, dtype=torch.int32)
