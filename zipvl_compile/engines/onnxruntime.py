"""ONNX Runtime: the exported graph is the engine; building it is writing it. bundling.proof then runs all of them."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import onnx_ir as ir

from zipvl_compile.engines.base import Availability, EngineBuilder
from zipvl_serving.contract import GraphName


class OnnxRuntimeBuilder(EngineBuilder):
    name = "onnxruntime"
    executor = "onnxruntime"
    dtypes = ("float32",)
    distribution = "onnxruntime"

    @staticmethod
    def availability() -> Availability:
        try:
            return Availability(True, importlib.metadata.version("onnxruntime"))
        except importlib.metadata.PackageNotFoundError:
            return Availability(False, "pip install onnxruntime")

    def build(self, graph: GraphName, model: ir.Model, folder: Path) -> str:
        file = folder / f"{graph}.onnx"
        ir.save(model, file)
        return file.name
