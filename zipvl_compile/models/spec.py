"""What a decoder is, free of any framework's configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary embedding with fixed frequencies: angle = position * inverse_frequency."""

    inverse_frequencies: tuple[float, ...]
    """head_dim / 2 values, scaling (linear, llama3, yarn) already folded in."""
    attention_factor: float = 1.0
    """Factor on cos and sin (yarn)."""


@dataclass(frozen=True)
class DecoderSpec:
    """A Llama-family decoder: RMSNorm, GQA with RoPE, gated SiLU MLP."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    norm_eps: float
    rope: Rope
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied_embeddings: bool = False
    image_token: int = -1
    """Id whose embeddings are replaced by image features."""
    max_positions: int = 1 << 30

    @property
    def softmax_scale(self) -> float:
        return float(self.head_dim) ** -0.5


@dataclass(frozen=True)
class MethodSpec:
    """What of the method is fixed in a graph; tau, the ratio's bounds, forced tokens and probes are graph inputs."""

    dense_layers: int = 0
    """First layers exempt from selection: T is every token."""
    keep_full_cache: bool = False
    """Keep the KV of every token (sparse prefill only) instead of T's."""
