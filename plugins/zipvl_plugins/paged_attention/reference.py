"""paged_attention: decode attention of one layer over cached pages and the new token itself (Algorithm 2).

o = softmax(q [K_pages; k]^T * scale) [V_pages; v], one query per sequence
"""

from __future__ import annotations

import torch


@torch.library.custom_op("zipvl::paged_attention", mutates_args=())
def paged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    context: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attend from one new token per sequence.

    q [batch, heads, d]; k, v [batch, kv_heads, d], the new token's own row, not yet in a page;
    key_pages, value_pages [pages, page_size, kv_heads, d], one pool for all layers and sequences;
    block_table int32 [batch, blocks], page ids of this layer, entries past the context any valid page id;
    context int32 [batch], rows in the cache. Returns [batch, heads * d].
    """
    outputs = []
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        pages, rows = block_table[b].long(), int(context[b])
        keys = torch.cat([key_pages[pages].flatten(0, 1)[:rows], k[b : b + 1]]).repeat_interleave(group, dim=1)
        values = torch.cat([value_pages[pages].flatten(0, 1)[:rows], v[b : b + 1]]).repeat_interleave(group, dim=1)
        attention = (torch.einsum("hd,nhd->hn", q[b].float(), keys.float()) * scale).softmax(dim=-1)
        outputs.append(torch.einsum("hn,nhd->hd", attention, values.float()).flatten())
    return torch.stack(outputs).to(q.dtype)


@paged_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    context: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
