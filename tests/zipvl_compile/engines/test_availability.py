"""Which backends can build here, and what is said of those that cannot."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from zipvl_compile.engines.base import availabilities


def test_a_machine_that_only_serves_says_what_builds_need(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_torch(name: str, *arguments: Any) -> Any:
        return None if name in ("torch", "onnx_ir") else find(name, *arguments)

    assert availabilities()["onnxruntime"].usable
    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    state = availabilities()["onnxruntime"]
    assert not state.usable and "serves here, but builds need torch, onnx_ir" in state.detail
