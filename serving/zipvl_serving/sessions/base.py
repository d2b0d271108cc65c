"""What every engine's session does, and how one is opened by the name of its backend."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import ZipvlError, nearest


@dataclass(frozen=True)
class PrefillInputs:
    """Inputs of the prefill graph but for the image features; see docs/contract.md."""

    input_ids: Array
    position_ids: Array
    probe_positions: Array
    forced: Array
    tau: float
    ratio_min: float
    ratio_max: float


@dataclass(frozen=True)
class PrefillOutputs:
    """Outputs of the prefill graph."""

    logits: Array
    """float32 [vocabulary], of the last token."""
    counts: Array
    """int32 [layers], tokens in T."""
    index: list[Array]
    """Per layer, int32 [count], the tokens of T, ascending."""
    cache: list[tuple[Array, Array]]
    """Per layer, keys and values [rows, kv_heads, head_dim] to cache."""


@dataclass(frozen=True)
class DecodeInputs:
    """Inputs of the decode graph, by its own names; see docs/contract.md."""

    input_ids: Array
    position_ids: Array
    key_pages: Array
    value_pages: Array
    block_tables: Array
    context: Array


class Session(ABC):
    """A loaded engine: three graphs over one copy of the weights."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @abstractmethod
    def vision(self, pixel_values: Array) -> Array:
        """pixel_values float32 [images, channels, height, width] -> image features [images * tokens, hidden]."""

    @abstractmethod
    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        """Run one prompt; image_features [visual, hidden] or None for a prompt without images."""

    @abstractmethod
    def decode(self, inputs: DecodeInputs) -> tuple[Array, Array, Array]:
        """One step of a batch: logits [batch, vocabulary], new keys and values [layers, batch, kv_heads, head_dim]."""


_SESSIONS = {"onnxruntime": ("zipvl_serving.sessions.onnxruntime", "OnnxRuntimeSession")}
"""backend: (module, class); a backend joins by a module and a line here."""


def open_session(bundle: Bundle, *, threads: int | None = None, spinning: bool = True) -> Session:
    """Load a bundle's engine.

    threads bounds its intra-op threads (None: all cores); spinning lets them wait for work without giving up the core.
    """
    backend = bundle.manifest.engine.backend
    if backend not in _SESSIONS:
        raise ZipvlError(f"{bundle.path}: no session for backend {backend!r}; {nearest(backend, _SESSIONS)}")
    module, name = _SESSIONS[backend]
    session: Session = getattr(importlib.import_module(module), name)(bundle, threads=threads, spinning=spinning)
    return session
