"""Decode is bound by memory: every step reads all weights once and every sequence's cache once.

`item` is the bytes of a number: 2 unless said otherwise.
"""

from __future__ import annotations

from zipvl_compile.cost.hardware import Device
from zipvl_compile.cost.work import ITEM
from zipvl_compile.models.spec import DecoderSpec


def parameters(spec: DecoderSpec) -> int:
    """Numbers in the decoder's matrices, the embedding and the output head included."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden * (2 * queries + 2 * keys + 3 * spec.intermediate)
    return spec.layers * layer + _vocabulary(spec) * (1 if spec.tied_embeddings else 2)


def kv_bytes_per_token(spec: DecoderSpec, item: int = ITEM) -> int:
    """Keys and values of one token in all layers."""
    return 2 * item * spec.layers * spec.kv_heads * spec.head_dim


def weights_read(spec: DecoderSpec) -> int:
    """Numbers that every step multiplies by: all but an embedding table that is not the output head too."""
    return parameters(spec) - (0 if spec.tied_embeddings else _vocabulary(spec))


def step_bytes(spec: DecoderSpec, batch: int, rows: float, item: int = ITEM) -> float:
    """What one step of `batch` sequences reads, `rows` cached tokens each: weights but for the embedding table, KV."""
    return item * weights_read(spec) + batch * rows * kv_bytes_per_token(spec, item)


def max_batch(spec: DecoderSpec, device: Device, rows: float, *, reserved: float = 0.0, item: int = ITEM) -> int:
    """Sequences of `rows` cached tokens that fit beside the weights; `reserved` bytes are kept for the rest."""
    room = device.memory - reserved - item * parameters(spec)
    return max(0, int(room // (rows * kv_bytes_per_token(spec, item))))


def tokens_per_second(spec: DecoderSpec, device: Device, batch: int, rows: float, item: int = ITEM) -> float:
    """All sequences together, memory bandwidth the only limit."""
    return batch * device.bandwidth * device.utilisation.memory / step_bytes(spec, batch, rows, item)


def _vocabulary(spec: DecoderSpec) -> int:
    return spec.vocabulary * spec.hidden
