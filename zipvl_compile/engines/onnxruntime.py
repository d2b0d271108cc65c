"""ONNX Runtime: the exported graph is the engine; building it is writing it and loading it once."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import onnx_ir as ir

from zipvl_compile.engines.base import Availability, EngineBuilder
from zipvl_serving.contract import GraphName
from zipvl_serving.errors import ZipvlError


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
        import onnxruntime

        file = folder / f"{graph}.onnx"
        ir.save(model, file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own bare types
            raise ZipvlError(f"ONNX Runtime refuses the {graph} graph: {str(error).splitlines()[0]}") from error
        return file.name
