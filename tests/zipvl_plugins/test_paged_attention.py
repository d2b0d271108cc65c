"""paged_attention on ONNX Runtime: what a sequence gets does not depend on its neighbours in the batch."""

from __future__ import annotations

import pytest
import torch
from helpers.faces import run_onnx


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size"), [(4, 2, 32, 16), (14, 2, 64, 16), (8, 8, 16, 4), (6, 3, 24, 1)]
)
@pytest.mark.parametrize("longest", [30, 400])
def test_a_wider_table_changes_no_bit(heads: int, kv_heads: int, head_dim: int, page_size: int, longest: int) -> None:
    batch = 9
    context = torch.randint(1, longest, (batch,), dtype=torch.int32)
    context[0], context[1] = longest, 1
    blocks = -(-longest // page_size)
    pages = torch.randn(2, batch * blocks + 1, page_size, kv_heads, head_dim)
    table = torch.randperm(batch * blocks)[: batch * blocks].reshape(batch, blocks).int()
    rows = [torch.randn(batch, count, head_dim) for count in (heads, kv_heads, kv_heads)]

    def attend(which: list[int], width: int) -> torch.Tensor:
        inputs = [*(row[which] for row in rows), pages[0], pages[1], table[which, :width], context[which]]
        return run_onnx("paged_attention", inputs, {"scale": head_dim**-0.5}, "onnxruntime")[0]

    together = attend(list(range(batch)), blocks)
    for row in range(batch):
        own = -(-int(context[row]) // page_size)
        assert torch.equal(attend([row, row], own)[0], together[row])


def test_a_batch_of_empty_caches_attends_to_itself() -> None:
    q, k, v = torch.randn(2, 4, 8), torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    pages, table, none = torch.randn(3, 4, 2, 8), torch.zeros(2, 1).int(), torch.zeros(2).int()
    (out,) = run_onnx("paged_attention", [q, k, v, pages, pages, table, none], {"scale": 1.0}, "onnxruntime")
    assert torch.allclose(out, v.repeat_interleave(2, dim=1).flatten(1))
