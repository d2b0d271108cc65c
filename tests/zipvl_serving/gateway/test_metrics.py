"""Metrics in Prometheus' text format."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from zipvl_serving.gateway.metrics import MetricsPublisher
from zipvl_serving.metrics import METRICS, OUTCOMES, Changes, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def publisher(metrics: Metrics) -> Iterator[MetricsPublisher]:
    publisher = MetricsPublisher("tiny", metrics)
    yield publisher
    publisher.close()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Value by name and the values of the labels."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_everything_is_there_from_the_start(publisher: MetricsPublisher) -> None:
    found = samples(publisher.text())
    for name, spec in METRICS.items():
        if spec.kind == "histogram":
            assert spec.label or found[f"zipvl_{name}_count", "tiny"] == 0
        elif not spec.label:
            assert found[f"zipvl_{name}", "tiny"] == 0
    assert {key[2] for key in found if key[0] == "zipvl_requests_total"} == set(OUTCOMES)
    assert not any(key[0].endswith("_created") for key in found)


def test_counts_add_up_and_gauges_follow(publisher: MetricsPublisher, metrics: Metrics) -> None:
    for value in (3, 5):
        metrics.count("requests_total", label="stop")
        metrics.count("generated_tokens_total", value)
        metrics.gauge("kv_pages_used", value)
        metrics.observe("kept_ratio", 0.25, 0.95, label="1")
        metrics.observe("ttft_seconds", 0.02)
        publisher.flush()
    found = samples(publisher.text())
    assert found["zipvl_requests_total", "tiny", "stop"] == 2
    assert found["zipvl_generated_tokens_total", "tiny"] == 8
    assert found["zipvl_kv_pages_used", "tiny"] == 5
    assert found["zipvl_ttft_seconds_bucket", "0.025", "tiny"] == 2
    assert found["zipvl_kept_ratio_bucket", "1", "0.3", "tiny"] == 2
    assert found["zipvl_kept_ratio_count", "1", "tiny"] == 4


def test_changes_do_not_wait_for_a_scrape(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, take = threading.Event(), metrics.take

    def noted_take() -> Changes:
        changes = take()
        if changes.observations:
            taken.set()
        return changes

    monkeypatch.setattr(metrics, "take", noted_take)
    metrics.observe("itl_seconds", 0.1)
    publisher = MetricsPublisher("tiny", metrics, flush_s=0.001)
    assert taken.wait(10)
    publisher.close()
