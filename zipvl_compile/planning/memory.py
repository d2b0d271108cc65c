"""What a prefill needs beside weights and pages, and how many sequences fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zipvl_compile.cost.hardware import Device
from zipvl_compile.models.spec import DecoderSpec
from zipvl_compile.planning.cache import CacheMode, Prompt
from zipvl_compile.planning.stack import Stack

ENGINES_WITH_WEIGHTS = ("tensorrt", "tensorrt_rtx")
"""Backends whose prefill and decode engines hold the decoder's weights each."""


def weight_copies(backend: str, *, prepack: bool) -> int:
    """Times that the decoder's weights lie in memory; ONNX Runtime packs those of decode where `serving.prepack` is
    true, beside the copy that its graphs share."""
    return 2 if backend in ENGINES_WITH_WEIGHTS or (backend == "onnxruntime" and prepack) else 1


@dataclass(frozen=True)
class Claim:
    """Bytes of one sequence in a pool."""

    worst: float
    """Pages that it may need at most, which must be free for it to enter."""
    kept: float
    """Pages that it claims from its prefill on."""

    def most(self, pool: float, beside: float = 0.0) -> int:
        """Identical sequences that enter a pool one after another, each with `beside` bytes outside of it."""
        left = pool - self.worst - beside
        return 0 if left < 0 else 1 + int(left // (self.kept + beside))


@dataclass(frozen=True)
class Room:
    """A device's memory beside the weights."""

    usable: float
    """Bytes that the stack may fill."""
    weights: float

    @classmethod
    def on(cls, device: Device, stack: Stack, weights: float) -> Room:
        return cls(device.memory * (1 - stack.reserved), weights)

    def left(self, prefill: float = 0.0) -> float:
        """Bytes for pages while a prefill takes `prefill` bytes; below 0 where not even that fits."""
        return self.usable - self.weights - prefill


def activation_bytes(spec: DecoderSpec, prompt: Prompt, *, item: int, probes: int, score_matrix: bool) -> float:
    """The most that the prefill of one prompt holds beside weights, K and V, as models/decoder.py runs a layer.

    In the MLP: the residual stream, its norm, and three tensors of the intermediate width (the activation, `up` and
    their product). In attention: residual, norm and output; Q before and after its use; K of all n tokens, of which T
    is gathered. `score_matrix` says whether scores are written, as ONNX Runtime's body does it, in float32 and one key
    head at a time: two of [heads / kv_heads, probes, n], two masks [probes, n], K. RoPE's table is float32
    [n, head_dim]. No vision tower.
    """
    n, p = prompt.n, prompt.p
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    mlp = item * n * (2 * spec.hidden + 3 * spec.intermediate)
    attention = item * (n * (3 * spec.hidden + keys) + 2 * p * queries)
    scored = 2 * (spec.heads // spec.kv_heads + 1) * min(probes, n)
    scores = item * n * (2 * spec.hidden + keys) + 4 * n * (scored + keys)
    return 4 * n * spec.head_dim + max(mlp, attention, scores if score_matrix and p < n else 0)


def prompt_kv_bytes(spec: DecoderSpec, mode: CacheMode, prompt: Prompt, backend: str, *, item: int) -> float:
    """K and V of all layers, as a prefill hands them over before they are put into pages.

    TensorRT's plugins have n rows a layer whatever they keep; torch trims to T from 32K tokens up; the others have T's.
    """
    from zipvl_plugins.trim import TRIM_FROM

    n_rows = mode == "quantise" or backend == "tensorrt" or (backend == "torch" and prompt.n < TRIM_FROM)
    kept = prompt.n if n_rows else prompt.p
    exempt = min(prompt.dense_layers, spec.layers)
    rows = (spec.layers - exempt) * kept + exempt * prompt.n
    return 2 * item * spec.kv_heads * spec.head_dim * rows


def drops(dense_below: int) -> tuple[int, ...]:
    """Prompt lengths from which less memory may be needed than just below: selection begins, torch trims K and V."""
    from zipvl_plugins.trim import TRIM_FROM

    return dense_below, TRIM_FROM


def longest(fits: Callable[[int], bool], limit: int, breaks: Iterable[int] = ()) -> int:
    """The most tokens, up to `limit`, for which `fits` holds; 0 where none does.

    What a length needs grows with it, but for drops at `breaks`.
    """
    end = limit
    for start in sorted({1, *(at for at in breaks if 1 < at <= limit)}, reverse=True):
        if fits(start):
            low, high = start, end
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if fits(middle) else (low, middle - 1)
            return low
        end = start - 1
    return 0
