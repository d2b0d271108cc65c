"""TensorRT-RTX: engines for a named GPU, built on any machine; their kernels are compiled where they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipvl_compile.engines.base import Availability, EngineFile, Job, installed
from zipvl_compile.engines.gpus import gpu_here, require_supported
from zipvl_compile.engines.onnx_graphs import OnnxGraphBuilder
from zipvl_compile.recipe.schema import Target
from zipvl_serving.contract import GraphName
from zipvl_serving.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

SUPPORTED = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
"""Compute capabilities that TensorRT-RTX 1.7 compiles for: no SM90."""


class TensorRTRTXBuilder(OnnxGraphBuilder):
    """The method's functions run as TensorRT-RTX's own layers, attention over T as its fused kernel."""

    name = "tensorrt_rtx"
    executor = "portable"
    dtypes = ("float16", "bfloat16")
    """Not float32: there is no fused attention for it, and without one the scores are n x n."""
    holds_weights = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        width, sm = job.shape.head_dim, self.gpu(job.recipe.target)
        if job.recipe.target.limits.max_input_tokens < 2:
            raise InputError("target.limits.max_input_tokens: 1 is too short for tensorrt_rtx; must be >= 2")
        if width % 8 or not 16 <= width <= 256:
            raise InputError(
                f"head_dim is {width}, for which TensorRT-RTX has no attention kernel; must be a multiple of 8 from 16 "
                "to 256"
            )
        if sm == "SM75" and job.dtype != "float16":
            raise InputError(f"model.dtype: SM75 has no attention kernel for {job.dtype}; valid: auto, float16")

    @staticmethod
    def availability() -> Availability:
        return installed("tensorrt_rtx")

    @staticmethod
    def check_gpu(name: str | None) -> None:
        if name is not None:
            require_supported(name, SUPPORTED, "tensorrt_rtx")

    @classmethod
    def gpu(cls, target: Target) -> str | None:
        named = target.gpu or gpu_here()
        if named is None:
            raise InputError("target.gpu: tensorrt_rtx builds for a GPU, and this machine has none; name one, as a100")
        return require_supported(named, SUPPORTED, "tensorrt_rtx")

    def build_graph(
        self, graph: GraphName, model: ir.Model, folder: Path, on_progress: Callable[[str], None]
    ) -> EngineFile:
        import onnx_ir as ir
        import tensorrt_rtx as trt

        from zipvl_compile.engines.profiles import ranges
        from zipvl_compile.engines.tensorrt_rtx_layers import layer_report
        from zipvl_compile.engines.trt_builder import Library, build_engine
        from zipvl_compile.graphs.inline import inline_functions

        def for_the_gpu(config: Any) -> None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, str(self.gpu(self.job.recipe.target))), 0)

        inline_functions(model)
        file, engine = folder / f"{graph}.onnx", folder / f"{graph}.engine"
        ir.save(model, file)
        built = build_engine(
            Library(trt, "TensorRT-RTX"),
            file,
            self.job.spec(graph),
            [ranges(self.job.recipe, self.job.shape)],
            engine,
            on_progress,
            configure=for_the_gpu,
        )
        file.unlink()
        report = {
            "seconds": built.seconds,
            "bytes": built.bytes,
            "network_layers": built.network_layers,
            **layer_report(built.listing),
        }
        return EngineFile(engine.name, report)

    def runs_here(self) -> str | None:
        wanted, here = self.gpu(self.job.recipe.target), gpu_here()
        if wanted == here:
            return None
        return f"the engines are for {wanted}, this machine has {here or 'no CUDA GPU'}"
