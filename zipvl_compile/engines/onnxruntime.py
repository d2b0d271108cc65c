"""ONNX Runtime: the exported graph is the engine; building it is writing it. bundling.proof then runs all of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_compile.engines.base import Availability, EngineBuilder
from zipvl_serving.contract import GraphName

if TYPE_CHECKING:
    import onnx_ir as ir

_BUILDS_WITH = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir")
"""A machine that only serves has none of these."""


class OnnxRuntimeBuilder(EngineBuilder):
    name = "onnxruntime"
    executor = "onnxruntime"
    dtypes = ("float32",)
    distribution = "onnxruntime"

    @staticmethod
    def availability() -> Availability:
        missing = [name for name in _BUILDS_WITH if importlib.util.find_spec(name) is None]
        try:
            version = importlib.metadata.version("onnxruntime")
        except importlib.metadata.PackageNotFoundError:
            return Availability(False, "pip install onnxruntime")
        if missing:
            return Availability(False, f"{version} serves here, but builds need {', '.join(missing)}: pip install them")
        return Availability(True, version)

    def build(self, graph: GraphName, model: ir.Model, folder: Path) -> str:
        import onnx_ir as ir

        file = folder / f"{graph}.onnx"
        ir.save(model, file)
        return file.name
