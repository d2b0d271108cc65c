"""A literal transcription of the paper's Algorithm 1: full probe rows, sorts, no tricks, double precision.

Only two things are added that the project's contract adds: forced tokens on top of T, and p held between two ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Selection:
    accumulated: torch.Tensor
    normalised: torch.Tensor
    p: int
    important: list[int]
    """T, ascending, forced tokens included."""


def probe_attention(queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, scale: float) -> torch.Tensor:
    """Equation A: softmax(Q_probe K^T / sqrt(d)) [heads, m, n]; queries [m, heads, d], keys [n, kv_heads, d]."""
    m, heads, _ = queries.shape
    n, kv_heads, _ = keys.shape
    attention = torch.zeros(heads, m, n, dtype=torch.float64)
    for head in range(heads):
        key = keys[:, head * kv_heads // heads].double()
        for row in range(m):
            last = int(positions[row])
            scores = key[: last + 1] @ queries[row, head].double() * scale
            attention[head, row, : last + 1] = torch.softmax(scores, dim=0)
    return attention


def important_count(accumulated: torch.Tensor, tau: float) -> int:
    """Equation 7: the fewest tokens whose largest accumulated scores reach tau of the total."""
    total = float(accumulated.sum())
    retained = 0.0
    for count, score in enumerate(sorted(accumulated.tolist(), reverse=True), start=1):
        retained += score
        if retained >= tau * total:
            return count
    return len(accumulated)


def select(
    accumulated: torch.Tensor,
    normalised: torch.Tensor,
    forced: torch.Tensor,
    tau: float,
    ratio_min: float = 0.0,
    ratio_max: float = 1.0,
) -> Selection:
    """Equations 7 and 9, then the forced tokens."""
    n = len(accumulated)
    p = n if tau >= 1 else important_count(accumulated, tau)
    p = min(max(p, 1, round(ratio_min * n)), max(1, round(ratio_max * n)))
    best = sorted(range(n), key=lambda j: (-float(normalised[j]), j))[:p]
    important = sorted({*best, *(j for j in range(n) if forced[j])})
    return Selection(accumulated, normalised, p, important)


def scores(
    queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 6 and 8 on the probe rows: accumulated and normalised, double [n]."""
    attention = probe_attention(queries, keys, positions, scale)
    accumulated = attention.sum(dim=(0, 1))
    nonzero = torch.stack([(positions >= j).sum() for j in range(keys.shape[0])])
    return accumulated, accumulated / nonzero.clamp(min=1)
