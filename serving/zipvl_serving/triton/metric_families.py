"""The engine's metrics as Triton's own, on its /metrics."""

from __future__ import annotations

from typing import Any

from zipvl_serving.metrics import METRICS, PREFIX, Changes


class MetricFamilies:
    """Publishes changes of one model's metrics. Belongs to one thread.

    A metric without a label of its own is there from the start; the others appear with their first value.
    """

    def __init__(self, pb_utils: Any, model: str) -> None:
        self._model = model
        kinds = pb_utils.MetricFamily
        self._families = {
            name: kinds(name=PREFIX + name, description=spec.help, kind=getattr(kinds, spec.kind.upper()))
            for name, spec in METRICS.items()
        }
        self._metrics: dict[tuple[str, str], Any] = {}
        for name, spec in METRICS.items():
            if spec.label is None:
                self._metric(name, "")

    def publish(self, changes: Changes) -> None:
        for (name, label), amount in changes.counts.items():
            self._metric(name, label).increment(amount)
        for (name, label), value in changes.gauges.items():
            self._metric(name, label).set(value)
        for (name, label), values in changes.observations.items():
            metric = self._metric(name, label)
            for value in values:
                metric.observe(value)

    def _metric(self, name: str, label: str) -> Any:
        if (name, label) not in self._metrics:
            spec = METRICS[name]
            labels = {"model": self._model} | ({spec.label: label} if spec.label else {})
            options = {"buckets": list(spec.buckets)} if spec.kind == "histogram" else {}
            self._metrics[name, label] = self._families[name].Metric(labels=labels, **options)
        return self._metrics[name, label]
