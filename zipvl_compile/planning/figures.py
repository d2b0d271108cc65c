"""A plan as data: one JSON document of a versioned schema. Bytes, seconds, tokens; nothing in it is measured."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from zipvl_compile.planning.cache import CacheMode

SCHEMA_VERSION: Final = 1

Bound = Literal["memory", "pool", "max_batch", "positions"]
"""The device's memory; the page pool (limits.kv_bytes); limits.max_batch; the model's positions, of which an answer
takes limits.max_new_tokens."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DeviceFigures(_Part):
    """What is planned for, and the shares of its peaks that kernels are taken to reach."""

    name: str
    memory_bytes: float
    usable_bytes: float
    flops: float
    bytes_per_s: float
    utilisation: dict[str, float]


class WeightFigures(_Part):
    """Bytes in the plan's dtype. `copies`: times that the decoder's weights lie in memory."""

    dtype: str
    decoder_bytes: int
    vision_bytes: int
    copies: int
    total_bytes: int
    fits: bool


class Assumptions(_Part):
    """What else the figures hang on."""

    backend: str
    stack: str
    reserved_share: float
    new_tokens: int
    page_size: int
    probes: int
    dense_layers: int
    dense_below: int
    ratio_max: float
    """The recipe's, by which admission knows what a prompt may keep at most."""
    pool_bytes: int
    """Of the page pool: the recipe's limits.kv_bytes, unless another was asked for."""
    max_batch: int
    """The recipe's limits.max_batch."""
    batch: int | None
    """No more sequences than these in the figures of speed; null: as many as are admitted."""


class ModeFigures(_Part):
    """What a mode keeps, whatever the input's length."""

    mode: CacheMode
    ratio: float
    kv_bytes_per_token: float
    """Of a long input: K and V that stay of each of its tokens, in all layers."""
    compression: float
    """Dense over that."""
    max_context: int
    """Tokens of the longest input that the bundle admits, with its answer; 0: none."""
    bounded_by: Bound
    device_context: int
    """The same with all memory left as the pool."""


class Row(_Part):
    """One mode at one input length."""

    tokens: int
    mode: CacheMode
    ratio: float
    kept_tokens: int
    kv_bytes: float
    """Pages of one sequence with its whole answer."""
    worst_kv_bytes: float
    """Pages that must be free for it to enter."""
    activation_bytes: float
    prompt_kv_bytes: float
    left_bytes: float
    """For pages, while one prompt is prefilled."""
    max_batch: int
    """Sequences that the bundle admits together; 0: none."""
    bounded_by: Bound
    """What keeps it from more."""
    device_batch: int
    """Sequences that the device could hold with all memory left as the pool; 0 is out of memory."""
    batch: int
    """Sequences that the rates below are of."""
    ttft_s: float | None
    """None where nothing is admitted, here and below."""
    decode_tokens_per_s: float | None
    request_tokens_per_s: float | None
    """With prefill."""


class Plan(_Part):
    """The capacity of a recipe on a device, predicted."""

    schema_version: int = SCHEMA_VERSION
    recipe: str
    device: DeviceFigures
    weights: WeightFigures
    assumptions: Assumptions
    ratio_source: str
    """Where the ratios come from."""
    modes: list[ModeFigures]
    rows: list[Row]
    limits: list[str]
    """What of target.limits does not fit, a line each."""
    notes: list[str]
