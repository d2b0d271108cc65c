"""The range of every dimension that differs from call to call, from what a recipe promises to serve."""

from __future__ import annotations

from dataclasses import dataclass

from zipvl_compile.recipe.schema import Recipe
from zipvl_serving.contract import Dim, ModelShape
from zipvl_serving.kv_pool import page_bytes


@dataclass(frozen=True)
class Range:
    """Sizes that a dimension may have; kernels are chosen for `usual`."""

    least: int
    usual: int
    most: int


Ranges = dict[str, Range]


def ranges(recipe: Recipe, shape: ModelShape) -> Ranges:
    """A range for every named dimension of the contract; `model.dtype` must be resolved.

    Prompts are taken to be half as long as they may be. The vision engine takes one image at a time, as the runtime
    gives them, so that its memory is one image's.
    """
    limits, probe = recipe.target.limits, recipe.zipvl.probe
    tokens, batch = limits.max_input_tokens, limits.max_batch
    blocks = -(-(tokens + limits.max_new_tokens) // limits.page_size)
    pages = limits.kv_bytes // page_bytes(limits.page_size, shape.kv_heads, shape.head_dim, recipe.model.dtype)
    probes = min(tokens, probe.recent + probe.random)
    return {
        "tokens": Range(1, _half(tokens), tokens),
        "visual": Range(1, min(shape.tokens_per_image, tokens), tokens),
        "probes": Range(1, probes, probes),
        "images": Range(1, 1, 1),
        "batch": Range(1, _half(batch), batch),
        # A builder allocates the usual sizes to time layers on: no whole pool.
        "pages": Range(1, min(pages, _half(batch) * _half(blocks)), pages),
        "blocks": Range(1, _half(blocks), blocks),
    }


def sizes(shape: tuple[Dim, ...], of: Ranges) -> tuple[list[int], list[int], list[int]]:
    """Least, usual and most sizes of a tensor of the contract."""
    found = [Range(dim, dim, dim) if isinstance(dim, int) else of[dim] for dim in shape]
    return [dim.least for dim in found], [dim.usual for dim in found], [dim.most for dim in found]


def _half(most: int) -> int:
    return -(-most // 2)
