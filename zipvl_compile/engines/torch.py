"""torch: the traced program is the engine; it runs in the serving process, on CUDA where there is one, else on the CPU.

Ops are chosen when the program runs (Triton kernels on CUDA, references on a CPU), so that engines fit any GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_compile.engines.base import Availability, EngineBuilder, EngineFile, installed
from zipvl_compile.recipe.schema import Target
from zipvl_serving.contract import Dtype, GraphName
from zipvl_serving.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


class TorchBuilder(EngineBuilder):
    name = "torch"
    dtypes = ("float32", "float16", "bfloat16")

    @classmethod
    def default_dtype(cls) -> Dtype:
        return "float16" if _cuda_is_here() else "float32"

    @staticmethod
    def availability() -> Availability:
        return installed("torch")

    @staticmethod
    def check_gpu(name: str | None) -> None:
        if name not in (None, "cuda"):
            raise InputError(
                f"target.gpu: {name!r} cannot be chosen on torch, whose bundles run on any GPU; valid: null "
                "(CUDA where there is one, else the CPU), cuda (CUDA or nothing)"
            )

    @classmethod
    def gpu(cls, target: Target) -> str | None:
        if target.gpu == "cuda" and not _cuda_is_here():
            raise InputError("target.gpu: torch finds no CUDA device here; null takes the CPU where there is none")
        return None

    @staticmethod
    def device() -> str | None:
        import torch

        return torch.cuda.get_device_name() if _cuda_is_here() else None

    def export(self, graph: GraphName, build: Callable[[], torch.nn.Module]) -> ExportedProgram:
        from zipvl_compile.graphs.program import export_program

        return export_program(build, self.job.spec(graph))

    def weights(self, exported: ExportedProgram) -> list[str]:
        from zipvl_compile.graphs.program import used_weights

        return used_weights(exported)

    def build(
        self,
        graph: GraphName,
        exported: ExportedProgram,
        places: Mapping[str, tuple[int, int]],
        folder: Path,
        on_progress: Callable[[str], None],
    ) -> EngineFile:
        from zipvl_compile.graphs.program import save_program

        file = folder / f"{graph}.pt2"
        save_program(exported, self.job.stored_name, file)
        return EngineFile(file.name)


def _cuda_is_here() -> bool:
    import torch

    return torch.cuda.is_available()
