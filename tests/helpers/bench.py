"""Small workloads and results, made without measuring anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zipvl_compile.bench.results import Cell, Kind, Results, Target, gains
from zipvl_compile.bench.target import Opened
from zipvl_compile.bench.workload import TTFT, Throughput
from zipvl_serving.bundle import Bundle
from zipvl_serving.sessions.base import Session, open_session


class Clock:
    """Every look at it is one second after the last."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def quiet(stage: str, done: int, of: int, figures: str) -> None:
    """Reports nothing."""


def ttft_workload(**values: Any) -> TTFT:
    given = {"modes": ["dense", {"tau": 0.8}], "lengths": [40, 80], "rounds": 2, "breakdown": 0, **values}
    return TTFT.model_validate({"name": "w", "kind": "ttft", **given})


def throughput_workload(**values: Any) -> Throughput:
    given = {
        "modes": ["dense", {"tau": 0.8}], "lengths": [40], "kv_budget": "128KiB", "new_tokens": 12, "steps": 2,
        "rounds": 3, "prefills": 2, **values,
    }  # fmt: skip
    return Throughput.model_validate({"name": "w", "kind": "throughput", **given})


def opened(path: Path, session: Session | None = None, *, random_weights: bool = False) -> Opened:
    """A bundle as `bench` opens it; its manifest may say that its weights are random."""
    bundle = Bundle.open(path)
    if random_weights:
        recipe = {**bundle.manifest.recipe, "model": {**bundle.manifest.recipe["model"], "weights": "random"}}
        bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"recipe": recipe}))
    return Opened(bundle, session or open_session(bundle, threads=1, spinning=False), 1, str(path))


def small_results(kind: Kind = "ttft", factor: float = 1.0, **changes: Any) -> Results:
    """Two modes at two lengths; `factor` on every time of the second mode."""
    cells = []
    for tokens in (128, 256):
        for mode, share in (("dense", 1.0), ("zipvl tau .9", 0.5 * factor)):
            seconds = [share * tokens * (1 + part / 100) / 1000 for part in range(4)]
            facts: dict[str, Any] = {
                "dense": mode == "dense",
                "ratio_per_layer": [1.0, 1.0] if mode == "dense" else [0.5, 0.25],
                "kv_bytes": 4096,
                "breakdown": {
                    "projections": share * 0.01,
                    "probe_scores": 0.0 if mode == "dense" else 0.005,
                    "sparse_attention": share * 0.02,
                },
                "breakdown_samples": {"projections": [share * 0.01] * 3},
                "selection_over_baseline": {"median": 0.0 if mode == "dense" else 0.16, "low": 0.1, "high": 0.2},
                "accuracy": {"color": {"exact": 0.9, "content": 0.95, "ratio": 0.5, "questions": 20}},
            }
            samples = {"ttft_s": seconds}
            if kind == "throughput":
                samples = {"tokens_per_s": [1 / s for s in seconds], "decode_tokens_per_s": [2 / s for s in seconds]}
                samples["max_batch"] = [4.0 / share]
                admission = {"pages": 64, "pages_reserved": 60, "page_high_water": 50, "stopped_by": "pages"}
                facts |= admission
            cells.append(Cell.of(mode, {"tokens": tokens}, samples, **facts))
    given: dict[str, Any] = {
        "kind": kind,
        "name": "w",
        "created": "2026-11-21T00:00:00+00:00",
        "environment": {"processor": "here", "cores": 2, "load_average": {"start": [factor, 0, 0]}},
        "target": Target(name="tiny", source="tiny", digest="d" * 64, weights="checkpoint", description={"dtype": "f"}),
        "workload": {"rounds": 4},
        "baseline": "dense",
        "cells": cells,
        "ratios": gains(cells, "dense"),
        "notes": ["a note"],
    }
    return Results(**{**given, **changes})
