"""What the server counts: collected here cheaply, published by whoever serves (Prometheus, Triton)."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

PREFIX = "zipvl_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class MetricSpec:
    """One metric; `label` is its label's name beside `model`, or None."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str | None = None
    buckets: tuple[float, ...] = ()


METRICS = {
    spec.name: spec
    for spec in (
        MetricSpec("requests_waiting", "gauge", "Requests taken in that have no place in the batch yet"),
        MetricSpec("requests_running", "gauge", "Requests in the batch"),
        MetricSpec("requests_total", "counter", "Requests that ended", "outcome"),
        MetricSpec("kv_pages_capacity", "gauge", "Pages of the KV pool"),
        MetricSpec("kv_pages_used", "gauge", "Pages of the KV pool that hold rows"),
        MetricSpec("kv_pages_reserved", "gauge", "Pages of the KV pool that running requests may need at most"),
        MetricSpec("prompt_tokens_total", "counter", "Prompt tokens prefilled, visual tokens included"),
        MetricSpec("generated_tokens_total", "counter", "Tokens generated"),
        MetricSpec("steps_total", "counter", "Steps of the scheduler"),
        MetricSpec("image_cache_hits_total", "counter", "Images whose embeddings were in the cache"),
        MetricSpec("image_cache_misses_total", "counter", "Images that the vision engine had to embed"),
        MetricSpec("image_cache_bytes", "gauge", "Bytes of image embeddings in the cache"),
        MetricSpec("queue_seconds", "histogram", "Arrival to the start of prefill", buckets=_SECONDS),
        MetricSpec("ttft_seconds", "histogram", "Arrival to the first token (TTFT)", buckets=_SECONDS),
        MetricSpec("itl_seconds", "histogram", "Token to token within a stream (ITL)", buckets=_SECONDS),
        MetricSpec("request_seconds", "histogram", "Arrival to the last token", buckets=_SECONDS),
        MetricSpec("kept_ratio", "histogram", "Share of a prompt's tokens that a layer kept", "layer",
                   tuple(tenth / 10 for tenth in range(1, 11))),
        MetricSpec("step_overhead_seconds", "histogram", "Time of a step spent outside the engine",
                   buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01)),
    )
}  # fmt: skip
"""By name, without PREFIX."""

OUTCOMES = ("stop", "length", "deadline", "cancelled", "refused", "failed")
"""Values of the label `outcome`."""

Key = tuple[str, str]
"""A metric's name and the value of its label, empty where it has none."""


@dataclass
class Changes:
    """What happened since the last time."""

    counts: dict[Key, float] = field(default_factory=lambda: defaultdict(float))
    gauges: dict[Key, float] = field(default_factory=dict)
    observations: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))


class Metrics:
    """Collects from any thread; `take` hands over what is new, a few times a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes = Changes()

    def count(self, name: str, amount: float = 1, label: str = "") -> None:
        with self._lock:
            self._changes.counts[name, label] += amount

    def gauge(self, name: str, value: float, label: str = "") -> None:
        with self._lock:
            self._changes.gauges[name, label] = value

    def observe(self, name: str, *values: float, label: str = "") -> None:
        with self._lock:
            self._changes.observations[name, label].extend(values)

    def take(self) -> Changes:
        """Everything since the last call."""
        with self._lock:
            taken, self._changes = self._changes, Changes()
        return taken
