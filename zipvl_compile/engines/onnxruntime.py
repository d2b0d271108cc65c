"""ONNX Runtime: the exported graph is the engine; building it is writing it. bundling.proof then runs all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_compile.engines.base import Availability, EngineFile, installed
from zipvl_compile.engines.onnx_graphs import OnnxGraphBuilder
from zipvl_compile.recipe.schema import Target
from zipvl_serving.contract import GRAPHS, GraphName
from zipvl_serving.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxRuntimeBuilder(OnnxGraphBuilder):
    name = "onnxruntime"
    executor = "onnxruntime"
    dtypes = ("float32",)
    graphs = (*GRAPHS, "dense_prefill")
    """Dense prompts have a graph without selection: to gather and scatter all rows costs percents of a prefill."""

    @staticmethod
    def availability() -> Availability:
        return installed("onnxruntime")

    @staticmethod
    def check_gpu(name: str | None) -> None:
        if name is not None:
            raise InputError(f"target.gpu: {name!r} has no use on onnxruntime; leave it null")

    @classmethod
    def gpu(cls, target: Target) -> str | None:
        return None

    def build_graph(
        self, graph: GraphName, model: ir.Model, folder: Path, on_progress: Callable[[str], None]
    ) -> EngineFile:
        import onnx_ir as ir

        file = folder / f"{graph}.onnx"
        ir.save(model, file)
        return EngineFile(file.name)
