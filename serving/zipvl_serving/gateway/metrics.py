"""The engine's metrics in Prometheus' text format."""

from __future__ import annotations

import threading
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from zipvl_serving.metrics import METRICS, OUTCOMES, PREFIX, Metrics

_KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class MetricsPublisher:
    """Keeps the totals of what an engine counts; each has the label `model`.

    A thread takes over the engine's changes every `flush_s` seconds, so that they do not pile up where nobody scrapes.
    """

    def __init__(self, model: str, metrics: Metrics, flush_s: float = 1.0) -> None:
        disable_created_metrics()
        self._model, self._metrics = model, metrics
        self._registry = CollectorRegistry()
        self._published = {name: self._register(name) for name in METRICS}
        for outcome in OUTCOMES:  # a rate needs the zero before the first one
            self._child("requests_total", outcome)
        self._flushing = threading.Lock()
        self._closed = threading.Event()
        self._flush_s = flush_s
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def text(self) -> str:
        """All metrics, up to date."""
        self.flush()
        return generate_latest(self._registry).decode()

    def flush(self) -> None:
        """Take over what is new."""
        with self._flushing:
            changes = self._metrics.take()
            for (name, label), amount in changes.counts.items():
                self._child(name, label).inc(amount)
            for (name, label), value in changes.gauges.items():
                self._child(name, label).set(value)
            for (name, label), values in changes.observations.items():
                child = self._child(name, label)
                for value in values:
                    child.observe(value)

    def close(self) -> None:
        """Stop the thread; `text` still works."""
        self._closed.set()
        self._thread.join()

    def _register(self, name: str) -> Any:
        spec = METRICS[name]
        labels = ["model", spec.label] if spec.label else ["model"]
        extra = {"buckets": spec.buckets} if spec.buckets else {}
        metric = _KINDS[spec.kind](PREFIX + name, spec.help, labels, registry=self._registry, **extra)
        if not spec.label:
            metric.labels(self._model)
        return metric

    def _child(self, name: str, label: str) -> Any:
        labels = (self._model, label) if METRICS[name].label else (self._model,)
        return self._published[name].labels(*labels)

    def _run(self) -> None:
        while not self._closed.wait(self._flush_s):
            self.flush()
