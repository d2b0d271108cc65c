"""The house: imports point down only, and files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "zipvl_compile": ROOT / "zipvl_compile",
    "zipvl_serving": ROOT / "serving" / "zipvl_serving",
    "zipvl_plugins": ROOT / "plugins" / "zipvl_plugins",
}
MAY_IMPORT = {
    "zipvl_compile": {"zipvl_compile", "zipvl_serving", "zipvl_plugins"},
    "zipvl_serving": {"zipvl_serving", "zipvl_plugins"},
    "zipvl_plugins": {"zipvl_plugins"},
}
BUILD_ONLY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub", "sklearn"}
TORCHLESS_SESSIONS = {"__init__.py", "base.py", "onnxruntime.py"}
"""The others are loaded by name, where a bundle's engine has torch's tensors; tests/zipvl_serving/test_imports.py."""


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down(floor: str) -> None:
    files = list(FLOORS[floor].rglob("*.py"))
    assert files
    for file in files:
        above = (_imports(file) & set(FLOORS)) - MAY_IMPORT[floor]
        assert not above, f"{file} imports {above}"


def test_serving_names_no_build_tool() -> None:
    sessions = FLOORS["zipvl_serving"] / "sessions"
    for file in FLOORS["zipvl_serving"].rglob("*.py"):
        on_torch = file.parent == sessions and file.name not in TORCHLESS_SESSIONS
        assert not _imports(file) & (BUILD_ONLY - {"torch"} if on_torch else BUILD_ONLY), file


def test_every_file_is_small() -> None:
    for floor in FLOORS.values():
        for file in floor.rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 500, file
