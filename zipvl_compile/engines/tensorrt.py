"""TensorRT: engines for the GPU at hand, which times their layers; the method's kernels are plugins inside them."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zipvl_plugins
from zipvl_compile.engines.base import Availability, EngineFile, installed
from zipvl_compile.engines.gpus import compute_capability, gpu_here
from zipvl_compile.engines.onnx_graphs import OnnxGraphBuilder
from zipvl_compile.recipe.schema import Target
from zipvl_serving.backends import BACKENDS
from zipvl_serving.contract import GraphName
from zipvl_serving.errors import InputError, ZipvlError

if TYPE_CHECKING:
    import onnx_ir as ir

NETWORK_FLAGS = ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS")
ELSEWHERE = "target.backend=tensorrt_rtx builds without one"


class TensorRTBuilder(OnnxGraphBuilder):
    name = "tensorrt"
    executor = "portable"
    dtypes = ("float16", "bfloat16")
    holds_weights = True

    @staticmethod
    def availability() -> Availability:
        state, missing = installed("tensorrt"), []
        if not state.usable:
            without = f"tensorrt's libraries are missing (its bindings alone are here): {BACKENDS['tensorrt'].install}"
            alone = importlib.util.find_spec("tensorrt") is None and importlib.util.find_spec("tensorrt_bindings")
            missing.append(without if alone else state.detail)
        if importlib.util.find_spec("triton") is None:
            missing.append("triton is missing, which compiles its plugins: pip install triton")
        if not _driver_is_here():
            missing.append(f"it builds on the GPU at hand, and here is no NVIDIA driver (libcuda.so.1); {ELSEWHERE}")
        return Availability(False, "; ".join(missing)) if missing else state

    @staticmethod
    def check_gpu(name: str | None) -> None:
        if name is not None:
            compute_capability(name)

    @classmethod
    def gpu(cls, target: Target) -> str | None:
        here = gpu_here()
        if here is None:
            raise InputError(f"target.gpu: tensorrt builds on the GPU at hand, and torch finds none here; {ELSEWHERE}")
        if target.gpu is not None and (wanted := compute_capability(target.gpu)) != here:
            raise InputError(
                f"target.gpu: tensorrt builds for the GPU at hand ({here}), not for {target.gpu!r} ({wanted}); "
                "leave it null, or build on such a machine"
            )
        return here

    def build_graph(
        self, graph: GraphName, model: ir.Model, folder: Path, on_progress: Callable[[str], None]
    ) -> EngineFile:
        import onnx_ir as ir
        import tensorrt as trt

        from zipvl_compile.engines.profiles import ranges
        from zipvl_compile.engines.tensorrt_graph import lint_plugins, use_plugins
        from zipvl_compile.engines.tensorrt_profiles import buckets
        from zipvl_compile.engines.timing_cache import TimingCache
        from zipvl_compile.engines.trt_builder import Library, build_engine
        from zipvl_plugins.gpu import tensorrt_plugins

        sm = self.gpu(self.job.recipe.target)
        assert sm is not None
        tensorrt_plugins.register(int(sm.removeprefix("SM")))
        plugins = use_plugins(model)
        if problems := lint_plugins(model):
            raise ZipvlError(f"the {graph} graph is not ready for TensorRT: {_first(problems)}")
        file, engine = folder / f"{graph}.onnx", folder / f"{graph}.engine"
        ir.save(model, file)
        profiles = buckets(graph, ranges(self.job.recipe, self.job.shape))
        timings = TimingCache(f"tensorrt-{trt.__version__}-{sm}-{_kernels()}")
        built = build_engine(
            Library(trt, "TensorRT", NETWORK_FLAGS),
            file,
            self.job.spec(graph),
            profiles,
            engine,
            on_progress,
            configure=timings.attach,
            check=partial(check_plugins, trt, plugins),
        )
        timings.keep()
        file.unlink()
        report = {
            "seconds": built.seconds,
            "bytes": built.bytes,
            "network_layers": built.network_layers,
            "plugins": dict(Counter(plugins.values())),
            "profiles": len(profiles),
        }
        return EngineFile(engine.name, report)


def check_plugins(trt: Any, plugins: dict[str, str], network: Any) -> None:
    """ZipvlError where the parser made anything but a plugin of one of these nodes (name -> plugin)."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    made = {layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3}
    missing = [name for name in plugins if name not in made]
    if missing:
        raise ZipvlError(f"TensorRT's parser made no plugin of {_first(missing)}")


def _kernels() -> str:
    """A digest of all that decides a plugin's tactics: a number of theirs means nothing to other sources."""
    hasher = hashlib.sha256(importlib.metadata.version("triton").encode())
    for file in sorted(Path(str(zipvl_plugins.__file__)).parent.rglob("*.py")):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()[:12]


def _first(found: list[str]) -> str:
    return f"{found[0]} (+{len(found) - 1} more)" if len(found) > 1 else found[0]


def _driver_is_here() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
