"""What a backend's builder does, which backends there are, and whether one is usable here."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_plugins.ops import Executor
from zipvl_serving.contract import GraphName
from zipvl_serving.errors import InputError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Availability:
    """Whether a backend can build here, and if not, what is missing."""

    usable: bool
    detail: str
    """A version where usable, else what to install or to wait for."""


class EngineBuilder(ABC):
    """Turns exported graphs into what one backend executes."""

    name: str
    executor: Executor
    """Whose function bodies the graphs carry."""
    dtypes: tuple[str, ...]
    """Weight dtypes it can build for, as a recipe names them."""
    distribution: str
    """The Python distribution whose version a serving machine must match."""

    @staticmethod
    @abstractmethod
    def availability() -> Availability:
        """Cheap: imports nothing heavy."""

    @abstractmethod
    def build(self, graph: GraphName, model: ir.Model, folder: Path) -> str:
        """Write one graph's engine into `folder`, where the weights file lies; returns the file's name."""


_BUILDERS = {"onnxruntime": ("zipvl_compile.engines.onnxruntime", "OnnxRuntimeBuilder")}
"""backend: (module, class). A backend joins by a module and a line here."""

_PLANNED = {
    "tensorrt": "TensorRT engines come with the GPU half of this project",
    "tensorrt_rtx": "TensorRT-RTX engines come with the GPU half of this project",
    "torch": "the in-process torch backend comes with the GPU half of this project",
}


def builder(backend: str) -> EngineBuilder:
    """The builder of a backend; InputError, one line, where it cannot be used here."""
    if backend in _PLANNED:
        raise InputError(f"target.backend: {backend!r} is not available yet: {_PLANNED[backend]}; valid: {_valid()}")
    if backend not in _BUILDERS:
        raise InputError(f"target.backend: unknown backend {backend!r}; {nearest(backend, _BUILDERS)}")
    found = _load(backend)
    state = found.availability()
    if not state.usable:
        raise InputError(f"target.backend: {backend!r} is not usable here: {state.detail}")
    return found()


def availabilities() -> dict[str, Availability]:
    """Every backend, for `doctor`."""
    states = {backend: _load(backend).availability() for backend in _BUILDERS}
    return states | {backend: Availability(False, f"not available yet: {why}") for backend, why in _PLANNED.items()}


def _load(backend: str) -> type[EngineBuilder]:
    module, name = _BUILDERS[backend]
    found: type[EngineBuilder] = getattr(importlib.import_module(module), name)
    return found


def _valid() -> str:
    return ", ".join(sorted(_BUILDERS))
