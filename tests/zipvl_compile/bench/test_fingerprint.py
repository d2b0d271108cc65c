"""The fingerprint says what figures depend on, and never names somebody else's commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import zipvl_compile
from zipvl_compile.bench.fingerprint import fingerprint, finished


def test_it_says_what_figures_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SECRET", "x")
    start = fingerprint()
    assert start["variables"]["OMP_NUM_THREADS"] == "7"
    assert "SECRET" not in str(start)
    assert start["cores"] >= 1
    assert start["versions"]["onnxruntime"]
    end = finished(start)
    assert end["load_average"]["start"] == start["load_average"]["start"]
    assert len(end["load_average"]["end"]) == 3
    assert "end" not in start["load_average"]


def test_an_installed_package_has_no_commit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel may lie inside anybody's repository."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    package = tmp_path / "site-packages" / "zipvl_compile" / "__init__.py"
    package.parent.mkdir(parents=True)
    monkeypatch.setattr(zipvl_compile, "__file__", str(package))
    assert fingerprint()["revision"] is None
