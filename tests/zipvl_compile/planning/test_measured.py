"""What `plan` says of a decoder's shape on a CPU against what `bench` measured of it (benchmarks/results)."""

from __future__ import annotations

import pytest

from benchmarks.plan_measured import SECTION, page_section, quickest, throughput, ttft


def test_ttft() -> None:
    pairs = ttft()
    assert len(pairs) == 10
    for cell, row in pairs:
        assert row.ttft_s == pytest.approx(quickest(cell, "ttft_s"), rel=0.15), (cell.mode, cell.at)


def test_admission_is_the_schedulers() -> None:
    """bench fills a scheduler until its pool admits no more: the same number, exactly."""
    pairs = throughput()
    assert [cell.figures["max_batch"].median for cell, _ in pairs] == [row.max_batch for _, row in pairs]
    assert len(pairs) == 2 and {row.bounded_by for _, row in pairs} == {"pool"}


def test_decode() -> None:
    for cell, row in throughput():
        assert row.decode_tokens_per_s == pytest.approx(quickest(cell, "decode_tokens_per_s"), rel=0.15), cell.mode


def test_the_page_holds_what_the_program_prints() -> None:
    assert SECTION.read() == page_section()
