"""What all builders share that start from ONNX graphs: export, lint, weights in one file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_compile.engines.base import EngineBuilder, EngineFile
from zipvl_plugins.ops import Executor
from zipvl_serving.contract import GraphName
from zipvl_serving.errors import ZipvlError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch


class OnnxGraphBuilder(EngineBuilder):
    """Exports to ONNX; a subclass says whose function bodies the graphs carry and what becomes of each graph."""

    executor: Executor

    def export(self, graph: GraphName, build: Callable[[], torch.nn.Module]) -> ir.Model:
        from zipvl_compile.graphs.export import export_graph
        from zipvl_compile.graphs.lint import lint

        model = export_graph(build, self.job.spec(graph), self.executor)
        model.graph.name = graph
        problems = lint(model, weights_open=True)
        if problems:
            more = f" (+{len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ZipvlError(f"the {graph} graph breaks a rule of the parsers: {problems[0]}{more}")
        return model

    def weights(self, exported: ir.Model) -> list[str]:
        from zipvl_compile.graphs.weights import open_weights

        return open_weights(exported.graph)

    def build(
        self,
        graph: GraphName,
        exported: ir.Model,
        places: Mapping[str, tuple[int, int]],
        folder: Path,
        on_progress: Callable[[str], None],
    ) -> EngineFile:
        from zipvl_compile.graphs.weights import externalise

        externalise(exported.graph, self.job.stored_name, places)
        return self.build_graph(graph, exported, folder, on_progress)

    @abstractmethod
    def build_graph(
        self, graph: GraphName, model: ir.Model, folder: Path, on_progress: Callable[[str], None]
    ) -> EngineFile:
        """Write one engine; the graph's initializers point into the weights file in `folder`."""
