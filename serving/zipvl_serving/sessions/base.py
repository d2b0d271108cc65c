"""What every engine's session does, and how one is opened by the name of its backend."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zipvl_serving.arrays import Array
from zipvl_serving.backends import BACKENDS
from zipvl_serving.bundle import Bundle
from zipvl_serving.config import ServingConfig
from zipvl_serving.machine import usable_cores
from zipvl_serving.page_storage import HostPages, PageStorage


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
    index: Sequence[Array]
    """Per layer, int32 [count], the tokens of T, ascending."""
    cache: list[tuple[Any, Any]]
    """Per layer, keys and values [rows, kv_heads, head_dim] to cache, of the kind that the page storage takes."""


@dataclass(frozen=True)
class DecodeInputs:
    """Inputs of the decode graph, by its own names; see docs/contract.md."""

    input_ids: Array
    position_ids: Array
    key_pages: Any
    value_pages: Any
    block_tables: Array
    context: Array


class Session(ABC):
    """A loaded engine: a bundle's graphs and its weights."""

    invariant_rows = 2
    """Rows of a decode step from which on no row's result depends on how many there are."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @abstractmethod
    def vision(self, pixel_values: Array) -> Array:
        """pixel_values float32 [images, channels, height, width] -> image features [images * tokens, hidden]."""

    @abstractmethod
    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        """Run one prompt; image_features [visual, hidden] or None for a prompt without images."""

    @abstractmethod
    def decode(self, inputs: DecodeInputs) -> tuple[Array, Any, Any]:
        """One step of a batch: logits [batch, vocabulary], new keys and values [layers, batch, kv_heads, head_dim]."""

    def page_storage(self, pages: int) -> PageStorage:
        """Room for so many pages where this session reads them: here, unless it keeps them on a device."""
        manifest = self.bundle.manifest
        shape = (pages, manifest.limits.page_size, manifest.model.shape.kv_heads, manifest.model.shape.head_dim)
        return HostPages(shape, manifest.model.dtype)


def open_as_served(bundle: Bundle, config: ServingConfig | None = None) -> Session:
    """Load a bundle's engine with the threads, the waiting and the packing that it is served with."""
    config = config or bundle.manifest.serving
    return open_session(
        bundle, threads=config.threads or usable_cores(), spinning=config.spinning, prepack=config.prepack
    )


def open_session(bundle: Bundle, *, threads: int | None = None, spinning: bool = True, prepack: bool = True) -> Session:
    """Load a bundle's engine.

    threads bounds its intra-op threads (None: all cores); spinning lets them wait for work without giving up the core;
    prepack holds decode's weights a second time, in the layout that a CPU multiplies fastest.
    """
    backend = BACKENDS[bundle.manifest.engine.backend]
    if not spinning:
        # Of torch's OpenMP library, read when it is loaded. Between no spinning and all of it lies the worst.
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
    opener = getattr(importlib.import_module(backend.module), backend.session)
    session: Session = opener(bundle, threads=threads, spinning=spinning, prepack=prepack)
    return session
