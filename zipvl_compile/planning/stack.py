"""How a backend runs the method's ops and holds its pages: what cost and capacity depend on beside model and device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Assumptions about the software that serves."""

    name: str
    cache_traffic: float = 1
    """Times that every sequence's cache moves through memory in a decode step."""
    gathers: bool = False
    """Whether a decode step holds K and V of one layer and the whole batch a second time, side by side."""
    score_products: int = 2
    """Products per probe score: two for kernels that normalise first and sum up then, one where scores are kept."""
    score_matrix: bool = False
    """Whether probe scores are written to memory."""
    reserved: float = 0.10
    """Share of the device's memory that weights, cache and activations cannot have: the driver's, libraries',
    workspaces and fragments; what servers of language models usually leave."""
    step_s: float = 0.3e-3
    """Of a decode step, outside the engine; measured (docs/benchmarks.md, In-flight batching, 8 to 16 streams)."""


KERNELS = Stack("kernels read pages where they lie")
GATHERED = Stack("pages are gathered", cache_traffic=3, gathers=True, score_products=1)
"""The ONNX body of paged_attention: rows are read, written side by side, and read again by the products."""
ONNXRUNTIME = Stack(
    "pages are gathered, probe scores written", cache_traffic=3, gathers=True, score_products=1, score_matrix=True
)


def stack_of(backend: str, *, on_cpu: bool) -> Stack:
    """What runs the ops of a backend; torch on a CPU runs references, which gather and write scores as well."""
    if backend == "onnxruntime" or on_cpu:
        return ONNXRUNTIME
    return GATHERED if backend == "tensorrt_rtx" else KERNELS
