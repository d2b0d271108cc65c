"""TensorRT and TensorRT-RTX: a bundle's engines on a GPU, with torch's tensors as their buffers."""

from __future__ import annotations

import importlib
import importlib.util
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GraphName, graph_spec
from zipvl_serving.errors import ZipvlError
from zipvl_serving.sessions.base import DecodeInputs

if importlib.util.find_spec("torch") is None:
    raise ZipvlError("engines on a GPU have torch's tensors as their buffers, and torch is missing: pip install torch")
import torch

from zipvl_serving.sessions.decode_graphs import Bucket, Capture, DecodeGraphs, cuda_capture
from zipvl_serving.sessions.device_session import DeviceSession, Outputs
from zipvl_serving.sessions.trt_engine import TrtEngine


class _EngineSession(DeviceSession):
    """Three engines; prefill and decode share their scratch memory, for they never run together."""

    module: ClassVar[str]
    library: ClassVar[str]

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, spinning: bool = True, prepack: bool = True
    ) -> None:
        """threads, spinning and prepack are a CPU's; the GPU does the work here."""
        super().__init__(bundle, self._find_device(bundle))
        self.trt = self._import(bundle)
        if self.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
            from zipvl_plugins.pages.kernel import use_kernels

            use_kernels()
        limits = bundle.manifest.limits
        with self.room("the engines"):
            self._vision = self._load("vision")
            self._prefill = self._load("prefill")
            self._decode = self._load("decode")
            for together in ((self._vision,), (self._prefill, self._decode)):
                most = max(engine.scratch_bytes for engine in together)
                scratch = torch.empty(most, dtype=torch.uint8, device=self.device)
                for engine in together:
                    engine.use_scratch(scratch)
        blocks = -(-(limits.max_input_tokens + limits.max_new_tokens) // limits.page_size)
        self._steps = DecodeGraphs(self._step, self.capture(), Bucket(limits.max_batch, blocks))

    @abstractmethod
    def capture(self) -> Capture:
        """How decode steps are repeated."""

    def _new_context(self, engine: Any) -> Any:
        """An execution context without memory of its own."""
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def run_vision(self, pixel_values: torch.Tensor) -> torch.Tensor:
        (features,) = self._vision((pixel_values,))
        return features

    def run_prefill(self, inputs: Outputs, *, dense: bool) -> Outputs:
        return self._prefill(inputs)

    def run_decode(self, inputs: DecodeInputs) -> Outputs:
        return self._steps(inputs)

    def _step(self, *inputs: torch.Tensor) -> Outputs:
        return self._decode(inputs)

    def _load(self, graph: GraphName) -> TrtEngine:
        manifest = self.bundle.manifest
        spec = graph_spec(graph, manifest.model.shape, manifest.limits.page_size, manifest.model.dtype)
        return TrtEngine(
            self.trt,
            self.bundle.graph_path(graph),
            spec,
            self.device,
            self._new_context,
            per_shape=graph == "decode",
        )

    @classmethod
    def _import(cls, bundle: Bundle) -> Any:
        try:
            return importlib.import_module(cls.module)
        except ImportError as error:
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise ZipvlError(f"{bundle.path}: needs {cls.library}, which does not load here: {reason}") from None

    @classmethod
    def _find_device(cls, bundle: Bundle) -> torch.device:
        """This process's GPU; ZipvlError where there is none, or not the one that the engines are for."""
        wanted = bundle.manifest.engine.gpu
        if not torch.cuda.is_available():
            raise ZipvlError(f"{bundle.path}: its {cls.library} engines run on a GPU ({wanted}); torch finds none here")
        major, minor = torch.cuda.get_device_capability()
        if wanted != f"SM{major}{minor}":
            raise ZipvlError(
                f"{bundle.path}: its {cls.library} engines are for {wanted}, this GPU is SM{major}{minor}; rebuild the "
                "bundle for it"
            )
        return torch.device("cuda", torch.cuda.current_device())


class TensorRTSession(_EngineSession):
    """Engines with the method's kernels inside; decode replays CUDA graphs."""

    module = "tensorrt"
    library = "TensorRT"

    def capture(self) -> Capture:
        return cuda_capture()


class TensorRTRTXSession(_EngineSession):
    """Engines of layers alone; kept keys and values come with exactly the rows that each layer kept."""

    module = "tensorrt_rtx"
    library = "TensorRT-RTX"

    def capture(self) -> Capture:
        """Not at all: attention asks the host, in every layer, how many rows the longest sequence has there."""
        return _as_it_is


def _as_it_is(run: Callable[[], Outputs]) -> Callable[[], Outputs]:
    return run
