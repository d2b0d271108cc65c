"""What the tests of builds share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from zipvl_compile.graphs import export

_EXPORTED: dict[Any, Any] = {}
"""Graphs by their contract: nothing else that these tests change has a say in them."""


def _remember_exports(monkeypatch: pytest.MonkeyPatch, *, reuse: bool) -> None:
    real = export.export_graph

    def remembered(build: Any, spec: Any, executor: Any) -> Any:
        if not (reuse and spec in _EXPORTED):
            _EXPORTED[spec] = real(build, spec, executor)
        return _EXPORTED[spec].clone()

    monkeypatch.setattr(export, "export_graph", remembered)


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export each graph at most once for all tests."""
    _remember_exports(monkeypatch, reuse=True)


@pytest.fixture
def real_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export, and remember it for the tests that need not."""
    _remember_exports(monkeypatch, reuse=False)


@pytest.fixture
def recipe(tiny_checkpoint: Path, tiny_recipe: Path, tmp_path: Path) -> Path:
    """A copy of recipe and checkpoint to change."""
    shutil.copytree(tiny_checkpoint, tmp_path / "source" / "checkpoint")
    return Path(shutil.copy(tiny_recipe, tmp_path / "source"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Where bundles go: empty, to see what is left in it."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def cache(tiny_bundle: Path, session_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache to change that holds the tiny bundle."""
    shutil.copytree(session_cache, tmp_path / "cache")
    monkeypatch.setenv("ZIPVL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZIPVL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
