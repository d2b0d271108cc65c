"""The tiny bundle on torch, and the same on ONNX Runtime to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import bundles

from zipvl_serving.bundle import Bundle
from zipvl_serving.sessions.base import Session, open_session


@pytest.fixture(scope="session")
def torch_bundle(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to read; copy it to change it."""
    out = tmp_path_factory.mktemp("torch") / "bundle"
    return bundles.build_recipe(tiny_recipe, out, "target.backend=torch", "model.dtype=float32").bundle


@pytest.fixture(scope="session")
def on_torch(torch_bundle: Path) -> Session:
    return open_session(Bundle.open(torch_bundle), threads=1)


@pytest.fixture(scope="session")
def on_onnxruntime(tiny_bundle: Path) -> Session:
    return open_session(Bundle.open(tiny_bundle), threads=1)
