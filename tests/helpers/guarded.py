"""Tensors in the middle of memory that nobody may read, and sets of tokens."""

from __future__ import annotations

import torch

GUARD = 4096
"""Elements on either side: more than a block of any kernel reaches past its tensor."""
NOWHERE = 2**31 - 1
PROJECTIONS = (
    (1, 1, 64, 64, False),
    (127, 1, 7, 5, True),
    (127, 127, 96, 130, False),
    (301, 190, 200, 257, True),
    (300, 129, 128, 24, False),
)
"""Linear layers on rows of T: n, p, inner, outer, with a bias or without."""


def guarded(values: torch.Tensor) -> torch.Tensor:
    """The same values with NaN before and after them in memory (integers: the largest)."""
    poison = float("nan") if values.is_floating_point() else NOWHERE
    memory = torch.full((values.numel() + 2 * GUARD,), poison, dtype=values.dtype)
    memory[GUARD : GUARD + values.numel()] = values.flatten()
    return memory[GUARD : GUARD + values.numel()].view(values.shape)


def random_rows(n: int, p: int, *inner: int) -> torch.Tensor:
    """float32 [n, *inner], NaN in rows at or after p."""
    rows = torch.randn(n, *inner)
    rows[p:] = float("nan")
    return rows


def subset(n: int, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """index int32 [n], past its end no token, and count int32 [1] of the chosen tokens, ascending."""
    index = torch.full((n,), NOWHERE, dtype=torch.int32)
    index[: len(chosen)] = chosen.int()
    return guarded(index), torch.tensor([len(chosen)], dtype=torch.int32)
