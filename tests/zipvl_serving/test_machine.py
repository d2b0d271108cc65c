"""How many cores and how much memory a process may use, by its pinning and its container's limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zipvl_serving.machine import memory_bytes, usable_cores


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("400000 100000", 4), ("150000 100000", 2), ("1000 100000", 1), ("900000 100000", 8), ("", 8)],
)
def test_the_smaller_of_pinning_and_limit(
    limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    file = tmp_path / "cpu.max"
    file.write_text(limit)
    assert usable_cores(file) == cores
    assert usable_cores(tmp_path / "none") == 8


def test_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    installed = memory_bytes(file)
    assert installed > 1 << 28
    for limit, expected in (("max", installed), ("268435456\n", 1 << 28), (str(1 << 60), installed)):
        file.write_text(limit)
        assert memory_bytes(file) == expected
