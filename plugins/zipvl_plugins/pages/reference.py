"""Rows into pages, in place: the rows of T after a prefill, one row per layer and sequence after a decode step.

Row i of a layer lies in page page_ids[i // page_size], slot i % page_size. The host hands out pages, so it knows every
count; tensors stay on the device and nothing waits for it.
"""

from __future__ import annotations

import torch


@torch.library.custom_op("zipvl::append_rows", mutates_args=("key_pages", "value_pages"))
def append_rows(
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_ids: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Write one row for each layer and sequence.

    key_pages, value_pages [pages, page_size, kv_heads, d], contiguous; keys, values [layers, at least batch, kv_heads,
    d] of the same dtype, rows past the batch left out; page_ids, slots int32 or int64 [layers, batch]. No two of them
    may name the same place.
    """
    pages, places, batch = page_ids.long(), slots.long(), page_ids.shape[1]
    key_pages[pages, places], value_pages[pages, places] = keys[:, :batch], values[:, :batch]


@torch.library.custom_op("zipvl::store_rows", mutates_args=("key_pages", "value_pages"))
def store_rows(
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_ids: torch.Tensor,
    count: int,
) -> None:
    """Write the first `count` rows of one layer.

    key_pages, value_pages [pages, page_size, kv_heads, d], contiguous; keys, values [at least count, kv_heads, d] of
    the same dtype, rows at or after `count` never read; page_ids int32 or int64 [at least ceil(count / page_size)].
    """
    rows = torch.arange(count, device=page_ids.device)
    pages, places = page_ids[rows // key_pages.shape[1]].long(), rows % key_pages.shape[1]
    key_pages[pages, places], value_pages[pages, places] = keys[:count], values[:count]


@append_rows.register_fake
@store_rows.register_fake
def _(*inputs: object) -> None:
    """Nothing is returned, so there is no shape to tell."""
