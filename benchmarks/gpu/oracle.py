"""Results in higher precision, and how far an op's results are from them.

Everything is computed in float32 from the very inputs that the kernel had, attention by blocks of rows and probe scores
by heads, so that sizes up to 128K fit. `deviation` looks at what the contract defines and at nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest ||out - reference|| / ||reference||."""
MASS_TOLERANCE = 1e-5
"""Of the retained mass, in which the threshold search may differ from a sort."""
BLOCK = 1024

Arguments = dict[str, Any]


def deviation(op: str, arguments: Arguments, result: Any) -> float:
    """Relative error of a result; infinite where an exact op errs or the result is not finite."""
    found = _DEVIATIONS[op](arguments, result)
    return float("inf") if math.isnan(found) else found


def defined(op: str, arguments: Arguments, result: Any) -> list[torch.Tensor]:
    """The parts of a result that the contract defines."""
    if op == "select_tokens":
        index, count = result
        return [index[: int(count)], count]
    if op in ("gather_rows", "gather_projection", "sparse_attention"):
        return [result[: int(arguments["count"])]]
    return list(result) if isinstance(result, tuple) else [result]


def relative_error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((out.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30))


def _probe_scores(a: Arguments, result: tuple[torch.Tensor, torch.Tensor]) -> float:
    heads, n = a["q"].shape[1], a["k"].shape[0]
    seen = torch.arange(n, device=a["q"].device) <= a["positions"][:, None]
    accumulated = torch.zeros(n, dtype=torch.float64, device=a["q"].device)
    for head in range(heads):
        keys = a["k"][:, head * a["k"].shape[1] // heads].float()
        scores = (a["q"][:, head].float() @ keys.T) * a["scale"]
        accumulated += scores.masked_fill(~seen, float("-inf")).softmax(dim=-1).sum(dim=0, dtype=torch.float64)
    normalised = accumulated / seen.sum(dim=0).clamp(min=1)
    errors = relative_error(result[0], accumulated), relative_error(result[1], normalised)
    return float(torch.tensor(errors).max())  # NaN where either is, unlike Python's max


def _select_tokens(a: Arguments, result: tuple[torch.Tensor, torch.Tensor]) -> float:
    """0 where T is a set that the rule allows: p may differ only where the mass meets tau."""
    index, count = (value.cpu() for value in result)
    chosen = index[: int(count)].long()
    host = {name: value.cpu() for name, value in a.items()}
    n, tau, retained = len(index), float(host["tau"]), _mass(host["accumulated"])
    least, most = (max(1, int((host[name] * n).round())) for name in ("ratio_min", "ratio_max"))
    low, high = (
        n if tau >= 1 else min(max(int((retained < share * retained[-1]).sum()) + 1, least), most)
        for share in (tau - MASS_TOLERANCE, tau + MASS_TOLERANCE)
    )
    ranked = host["normalised"].sort(descending=True, stable=True).indices
    for p in range(low, min(high, most) + 1):
        kept = host["forced"].clone()
        kept[ranked[:p]] = True
        if int(kept.sum()) == len(chosen):
            return 0.0 if torch.equal(kept.nonzero()[:, 0], chosen) else float("inf")
    return float("inf")


def _mass(accumulated: torch.Tensor) -> torch.Tensor:
    """Mass of the 1, 2, ... largest scores."""
    return accumulated.double().sort(descending=True).values.cumsum(0)


def _gather_rows(a: Arguments, result: torch.Tensor) -> float:
    rows = a["index"][: int(a["count"])].long()
    return 0.0 if torch.equal(result[: len(rows)], a["x"][rows]) else float("inf")


def _gather_projection(a: Arguments, result: torch.Tensor) -> float:
    rows = a["index"][: int(a["count"])].long()
    return _product_error(result[: len(rows)], a["x"][rows], a)


def _projection_scatter(a: Arguments, result: torch.Tensor) -> float:
    rows = a["index"][: int(a["count"])].long()
    outside = torch.ones(len(result), dtype=torch.bool, device=result.device)
    outside[rows] = False
    if not bool((result[outside] == 0).all()):  # NaN is not 0 either
        return float("inf")
    return _product_error(result[rows], a["o"][: len(rows)], a)


def _product_error(out: torch.Tensor, x: torch.Tensor, a: Arguments) -> float:
    weight, bias = a["weight"].float(), None if a["bias"] is None else a["bias"].float()
    blocks = (slice(i, i + BLOCK) for i in _blocks(len(x)))
    return _summed_error((out[rows], F.linear(x[rows].float(), weight, bias)) for rows in blocks)


def _sparse_attention(a: Arguments, result: torch.Tensor) -> float:
    count, group = int(a["count"]), a["q"].shape[1] // a["k"].shape[1]

    def pieces() -> Any:
        for head in range(a["q"].shape[1]):
            query, key, value = (
                a[name][:count, head // (1 if name == "q" else group)].float() for name in ("q", "k", "v")
            )
            out = result[:count].view(count, -1, query.shape[1])[:, head]
            for i in _blocks(count):
                end = min(i + BLOCK, count)
                scores = query[i:end] @ key[:end].T * a["scale"]
                later = torch.arange(end, device=key.device) > torch.arange(i, end, device=key.device)[:, None]
                yield out[i:end], scores.masked_fill_(later, float("-inf")).softmax(dim=-1) @ value[:end]

    return _summed_error(pieces())


def _paged_attention(a: Arguments, result: torch.Tensor) -> float:
    group = a["q"].shape[1] // a["k"].shape[1]

    def pieces() -> Any:
        for b, rows in enumerate(a["context"].tolist()):
            pages = a["block_table"][b, : -(-rows // a["key_pages"].shape[1])].long()
            keys, values = (
                torch.cat([a[pool][pages].flatten(0, 1)[:rows], a[own][b : b + 1]]).float()
                for pool, own in (("key_pages", "k"), ("value_pages", "v"))
            )
            query = a["q"][b].float().unflatten(0, (-1, group))
            attention = (torch.einsum("kgd,nkd->kgn", query, keys) * a["scale"]).softmax(dim=-1)
            yield result[b], torch.einsum("kgn,nkd->kgd", attention, values).flatten()

    return _summed_error(pieces())


def _blocks(rows: int) -> range:
    return range(0, rows, BLOCK)


def _summed_error(pieces: Any) -> float:
    """The relative error over pieces (out, wanted) as if they were one tensor; sums stay on the device."""
    difference = norm = torch.zeros(())
    for out, wanted in pieces:
        difference = difference.to(out.device) + (out.float() - wanted).double().square().sum()
        norm = norm.to(out.device) + wanted.double().square().sum()
    return float((difference / norm.clamp(min=1e-60)).sqrt())


_DEVIATIONS: dict[str, Callable[[Arguments, Any], float]] = {
    "probe_scores": _probe_scores,
    "select_tokens": _select_tokens,
    "gather_rows": _gather_rows,
    "gather_projection": _gather_projection,
    "projection_scatter": _projection_scatter,
    "sparse_attention": _sparse_attention,
    "paged_attention": _paged_attention,
}
