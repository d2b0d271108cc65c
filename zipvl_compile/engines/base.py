"""What a backend's builder does, which backends there are, and whether one is usable here."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipvl_compile.recipe.schema import Recipe, Target
from zipvl_serving.backends import BACKENDS
from zipvl_serving.contract import GRAPHS, Dtype, GraphName, GraphSpec, ModelShape, graph_spec
from zipvl_serving.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

BUILDS_WITH = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir")
"""What every builder needs; a machine that only serves has none of these."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can build here, and if not, what is missing."""

    usable: bool
    detail: str
    """A version where usable, else what to install or to wait for."""


@dataclass(frozen=True)
class Job:
    """What a build tells its backend."""

    recipe: Recipe
    """With model.dtype resolved."""
    shape: ModelShape
    stored_name: Callable[[str], str]
    """From a module's parameter to its tensor in the checkpoint."""

    @property
    def dtype(self) -> Dtype:
        dtype = self.recipe.model.dtype
        assert dtype != "auto"
        return dtype

    def spec(self, graph: GraphName) -> GraphSpec:
        return graph_spec(graph, self.shape, self.recipe.target.limits.page_size, self.dtype)


@dataclass(frozen=True)
class EngineFile:
    """An engine in the bundle's folder."""

    name: str
    report: dict[str, Any] = field(default_factory=dict)
    """What the manifest keeps of it, as JSON: bytes, seconds, layers."""


class EngineBuilder(ABC):
    """Turns a model's three programs into what one backend executes."""

    name: str
    dtypes: tuple[Dtype, ...]
    """Weight dtypes it can build for."""
    graphs: tuple[GraphName, ...] = GRAPHS
    """What it builds."""
    holds_weights = False
    """Whether engines have the weights inside, so that the bundle needs no weights file."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @staticmethod
    @abstractmethod
    def availability() -> Availability:
        """Cheap: imports nothing heavy."""

    @classmethod
    def default_dtype(cls) -> Dtype:
        """What `model.dtype: auto` means."""
        return cls.dtypes[0]

    @staticmethod
    @abstractmethod
    def check_gpu(name: str | None) -> None:
        """InputError for a target.gpu that no machine could build for."""

    @classmethod
    @abstractmethod
    def gpu(cls, target: Target) -> str | None:
        """What target.gpu means, such as SM80; InputError where this machine cannot build for it."""

    @abstractmethod
    def export(self, graph: GraphName, build: Callable[[], torch.nn.Module]) -> Any:
        """Trace the module that `build` makes, weights as names only; what comes out is this builder's own."""

    @abstractmethod
    def weights(self, exported: Any) -> list[str]:
        """The parameters that an exported program reads, by their names in the module (suffix .T: transposed)."""

    @abstractmethod
    def build(
        self,
        graph: GraphName,
        exported: Any,
        places: Mapping[str, tuple[int, int]],
        folder: Path,
        on_progress: Callable[[str], None],
    ) -> EngineFile:
        """Write one engine into `folder`, where the weights file lies; `places` has each tensor's (offset, bytes)."""

    @staticmethod
    def device() -> str | None:
        """The GPU here that fresh engines are measured on; None where that is the CPU, or the GPU that `gpu` names."""
        return None

    def runs_here(self) -> str | None:
        """Why the engines that it builds cannot run on this machine; None where they can."""
        return None


_BUILDERS = {
    "onnxruntime": ("zipvl_compile.engines.onnxruntime", "OnnxRuntimeBuilder"),
    "torch": ("zipvl_compile.engines.torch", "TorchBuilder"),
    "tensorrt": ("zipvl_compile.engines.tensorrt", "TensorRTBuilder"),
    "tensorrt_rtx": ("zipvl_compile.engines.tensorrt_rtx", "TensorRTRTXBuilder"),
}
"""backend: (module, class). A backend joins by a module and a line here and in zipvl_serving.backends."""


def builder(backend: str) -> type[EngineBuilder]:
    """The builder of a backend; InputError, one line, where it cannot be used here."""
    if backend not in _BUILDERS:
        raise InputError(f"target.backend: unknown backend {backend!r}; {nearest(backend, _BUILDERS)}")
    found = _load(backend)
    state = found.availability()
    if not state.usable:
        raise InputError(f"target.backend: {backend!r} is not usable here: {state.detail}")
    return found


def with_dtype(recipe: Recipe, backend: type[EngineBuilder]) -> Recipe:
    """The recipe with `model.dtype: auto` resolved; InputError for one that the backend cannot build."""
    dtype = backend.default_dtype() if recipe.model.dtype == "auto" else recipe.model.dtype
    if dtype not in backend.dtypes:
        raise InputError(
            f"model.dtype: {dtype!r} cannot run on {backend.name}; valid: {', '.join(('auto', *backend.dtypes))}"
        )
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": dtype})})


def check_target(recipe: Recipe) -> None:
    """InputError for a recipe that its backend builds on no machine."""
    backend = _load(recipe.target.backend)
    with_dtype(recipe, backend)
    backend.check_gpu(recipe.target.gpu)


def availabilities() -> dict[str, Availability]:
    """Every backend, for `doctor`."""
    return {backend: _load(backend).availability() for backend in _BUILDERS}


def installed(backend: str) -> Availability:
    """Whether the runtime of a backend and what every builder needs are installed."""
    runtime = BACKENDS[backend]
    missing = [name for name in BUILDS_WITH if importlib.util.find_spec(name) is None]
    try:
        version = importlib.metadata.version(runtime.distribution)
    except importlib.metadata.PackageNotFoundError:
        return Availability(False, f"{runtime.distribution} is missing: {runtime.install}")
    if missing:
        return Availability(False, f"{version} serves here, but builds need {', '.join(missing)}: pip install them")
    return Availability(True, version)


def _load(backend: str) -> type[EngineBuilder]:
    module, name = _BUILDERS[backend]
    found: type[EngineBuilder] = getattr(importlib.import_module(module), name)
    return found
