"""Bytes of KV: what a sequence keeps in each mode, in which precision, rounded up to pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from zipvl_compile.cost.work import Mode as PrefillMode
from zipvl_compile.cost.work import kept_tokens
from zipvl_compile.models.spec import DecoderSpec

CacheMode = Literal["dense", "evict", "quantise", "evict+quantise"]
"""dense: every token, whole numbers of the model's type; evict: T alone; quantise: T in 4 bits, the rest in 2;
evict+quantise: T alone, in 4 bits."""
MODES: tuple[CacheMode, ...] = get_args(CacheMode)
PREFILL: dict[CacheMode, PrefillMode] = {
    "dense": "dense", "evict": "zipvl", "quantise": "zipvl_full", "evict+quantise": "zipvl"
}  # fmt: skip

HIGH_BITS, LOW_BITS = 4, 2
SCALE_BYTES = 2
"""Of a scale, a zero point and a normaliser: 16 bits each."""
GROUP = 128
"""Tokens that share a channel's numbers; a sequence grows by whole groups without touching earlier ones."""


@dataclass(frozen=True)
class Prompt:
    """The rows that one prompt and its answer leave in the cache."""

    n: int
    """Tokens of the prompt."""
    p: int
    """Tokens of T in a layer that selects; n where the prompt runs dense."""
    dense_layers: int = 0
    """First layers that keep every token."""

    @classmethod
    def at(cls, n: int, ratio: float, *, dense_layers: int = 0, dense_below: int = 0) -> Prompt:
        """A prompt of n tokens at a ratio; one below `dense_below` keeps them all."""
        return cls(n, n if n < dense_below else kept_tokens(n, ratio), dense_layers)


def row_bytes(spec: DecoderSpec, item: int, bits: int | None) -> float:
    """K and V of one token in one layer; `bits` None: numbers of `item` bytes.

    Quantised as ZipCache does it: K asymmetric per channel (a scale and a zero point for every channel of a group of
    tokens), V divided by a normaliser per channel (of a group, too), then asymmetric per token (a scale and a zero
    point for every token over all heads).
    """
    channels = spec.kv_heads * spec.head_dim
    if bits is None:
        return 2 * channels * item
    per_channel = (2 + 1) * SCALE_BYTES * channels / GROUP
    return 2 * channels * bits / 8 + per_channel + 2 * SCALE_BYTES


def sequence_bytes(
    spec: DecoderSpec, mode: CacheMode, prompt: Prompt, new_tokens: int, *, item: int, page_size: int = 1
) -> float:
    """A sequence's cache in all layers after `new_tokens`, in whole pages of `page_size` rows (1: rows as they are).

    New tokens are kept in every mode, among the important ones.
    """
    return sum(
        layers * _layer_bytes(spec, _streams(mode, prompt.n, kept, new_tokens), item, page_size)
        for layers, kept in _layers(spec, prompt)
    )


def largest_layer_bytes(spec: DecoderSpec, mode: CacheMode, prompt: Prompt, new_tokens: int, *, item: int) -> float:
    """The most of it that one layer has, in rows as they are."""
    return max(
        _layer_bytes(spec, _streams(mode, prompt.n, kept, new_tokens), item, 1)
        for layers, kept in _layers(spec, prompt)
        if layers
    )


def sequence_rows(spec: DecoderSpec, mode: CacheMode, prompt: Prompt, new_tokens: int) -> int:
    """Rows that the next token of a sequence attends to, summed over layers, whatever their precision."""
    return sum(
        layers * rows
        for layers, kept in _layers(spec, prompt)
        for rows, _ in _streams(mode, prompt.n, kept, new_tokens)
    )


def _layers(spec: DecoderSpec, prompt: Prompt) -> tuple[tuple[int, int], ...]:
    """(layers, tokens of T) of those that select and of those that are exempt."""
    exempt = min(prompt.dense_layers, spec.layers)
    return (spec.layers - exempt, prompt.p), (exempt, prompt.n)


def _layer_bytes(spec: DecoderSpec, streams: list[tuple[int, int | None]], item: int, page_size: int) -> float:
    return sum(math.ceil(rows / page_size) * page_size * row_bytes(spec, item, bits) for rows, bits in streams)


def _streams(mode: CacheMode, n: int, p: int, new: int) -> list[tuple[int, int | None]]:
    """(rows, bits) of the pages that one layer keeps for a sequence; each precision has pages of its own."""
    return {
        "dense": [(n + new, None)],
        "evict": [(p + new, None)],
        "quantise": [(p + new, HIGH_BITS), (n - p, LOW_BITS)],
        "evict+quantise": [(p + new, HIGH_BITS)],
    }[mode]  # type: ignore[return-value]
