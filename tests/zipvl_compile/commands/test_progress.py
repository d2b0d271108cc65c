"""Progress of timed work draws when it is told of something, and never beside what is measured."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from zipvl_compile.commands import progress


def test_no_thread_draws_between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **given: Console(file=drawn, force_terminal=True, width=100))
    before = set(threading.enumerate())
    with progress.stage_progress() as report:
        report("128 tokens", 1, 4, "")
        assert set(threading.enumerate()) == before
        assert "128 tokens" in drawn.getvalue()
