"""Decode is bound by memory: every step reads all weights once and every sequence's cache once."""

from __future__ import annotations

from zipvl_compile.cost.hardware import Gpu
from zipvl_compile.cost.work import ITEM
from zipvl_compile.models.spec import DecoderSpec


def parameters(spec: DecoderSpec) -> int:
    """Numbers in the decoder's matrices, the embedding and the output head included."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden * (2 * queries + 2 * keys + 3 * spec.intermediate)
    return spec.layers * layer + _vocabulary(spec) * (1 if spec.tied_embeddings else 2)


def kv_bytes_per_token(spec: DecoderSpec) -> int:
    """Keys and values of one token in all layers."""
    return 2 * ITEM * spec.layers * spec.kv_heads * spec.head_dim


def step_bytes(spec: DecoderSpec, batch: int, rows: float) -> float:
    """What one step of `batch` sequences reads, `rows` cached tokens each: weights but for the embedding table, KV."""
    weights = parameters(spec) - (0 if spec.tied_embeddings else _vocabulary(spec))
    return ITEM * weights + batch * rows * kv_bytes_per_token(spec)


def max_batch(spec: DecoderSpec, gpu: Gpu, rows: float, *, reserved: float = 0.0) -> int:
    """Sequences of `rows` cached tokens that fit beside the weights; `reserved` bytes are kept for the rest."""
    room = gpu.memory - reserved - ITEM * parameters(spec)
    return max(0, int(room // (rows * kv_bytes_per_token(spec))))


def tokens_per_second(spec: DecoderSpec, gpu: Gpu, batch: int, rows: float) -> float:
    """All sequences together, memory bandwidth the only limit."""
    return batch * gpu.bandwidth * gpu.utilisation.memory / step_bytes(spec, batch, rows)


def _vocabulary(spec: DecoderSpec) -> int:
    return spec.vocabulary * spec.hidden
