"""The decoders that are measured and calculated, by their published configurations; weights are random."""

from __future__ import annotations

import dataclasses

from zipvl_compile.models.spec import DecoderSpec, Rope

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
RATIOS = (0.37, 0.5, 1.0)
PROBES = 128
"""64 recent and 64 random ones, as the paper takes them."""
REHEARSED_PROBES = 5


def probes(*, rehearsal: bool) -> int:
    return REHEARSED_PROBES if rehearsal else PROBES


def _rope(head_dim: int, theta: float) -> Rope:
    return Rope(tuple(theta ** (-2 * i / head_dim) for i in range(head_dim // 2)))


DECODERS = {
    "7B": DecoderSpec(
        layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocabulary=32064,
        norm_eps=1e-5, rope=_rope(128, 1e6),
    ),
    "13B": DecoderSpec(
        layers=40, hidden=5120, heads=40, kv_heads=40, head_dim=128, intermediate=13824, vocabulary=32064,
        norm_eps=1e-5, rope=_rope(128, 1e4),
    ),
    "tiny": DecoderSpec(
        layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=48, vocabulary=128,
        norm_eps=1e-5, rope=_rope(16, 1e4),
    ),
}  # fmt: skip
"""7B: LLaVA-Next on Mistral; 13B: LLaVA-Next on Vicuna; tiny: for rehearsals."""


def decoder(name: str, layers: int | None = None) -> DecoderSpec:
    """A decoder by name, cut to its first layers where it is too large whole."""
    spec = DECODERS[name]
    return spec if layers is None else dataclasses.replace(spec, layers=layers)


def length(n: int) -> str:
    """131072 -> 128K."""
    return f"{n // 1024}K" if n % 1024 == 0 else str(n)
