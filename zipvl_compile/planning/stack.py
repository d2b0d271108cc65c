"""How a serving stack holds and moves the cache: what capacity depends on beside the model and the device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Assumptions about the software that serves."""

    name: str
    reserved: float
    """Share of the device's memory that weights, cache and activations cannot have."""
    cache_copies: float
    """Times that every sequence's cache lies in memory at the peak of a decode step."""
    cache_traffic: float
    """Times that every sequence's cache moves through memory in a decode step."""
    step_s: float
    """Of a decode step, outside the engine."""


PAGED = Stack("pages", reserved=0.10, cache_copies=1, cache_traffic=1, step_s=0.3e-3)
"""This project: one pool of pages, read where they lie and appended to in place. A tenth of the memory is left to the
driver, libraries, workspaces and fragments, as servers of language models usually do; 0.3 ms is measured
(docs/benchmarks.md, In-flight batching, 8 to 16 streams)."""

LEGACY_TRANSFORMERS = Stack("transformers, tuple caches", reserved=0.15, cache_copies=2, cache_traffic=3, step_s=0)
"""transformers 4.36 to 4.40, on which LLaVA-NeXT's own code ran: every step concatenates each layer's cache with its
new row (the whole cache is read and written, then read again by attention), while the tuple of the step before, which
generate() still holds, keeps the old one alive until the step has ended. Sequences of equal length need no padding.
Tensors that grow at every step leave gaps: `reserved` is the middle of what the OOM rows of the ZipVL paper's Table 4
allow, 6.5 to 22.9 % (docs/planning.md)."""
