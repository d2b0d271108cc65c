"""Scores of n tokens as selection may meet them, float32 [n], none negative."""

from __future__ import annotations

from collections.abc import Callable

import torch

DISTRIBUTIONS: dict[str, Callable[[int], torch.Tensor]] = {
    "random": torch.rand,
    "heavy tail": lambda n: torch.randn(n).mul(6).exp(),
    "flat": lambda n: torch.full((n,), 0.3),
    "one hot": lambda n: torch.nn.functional.one_hot(torch.randint(n, ()), n).float(),
    "ties": lambda n: torch.randint(0, 4, (n,)).float(),
    "mostly zero": lambda n: torch.rand(n) * (torch.rand(n) < 0.1),
    "adjacent floats": lambda n: (
        torch.ones(n).view(torch.int32).add(torch.randint(-4, 5, (n,))).int().view(torch.float)
    ),
    "tiny": lambda n: torch.rand(n) * 1e-30,
}
