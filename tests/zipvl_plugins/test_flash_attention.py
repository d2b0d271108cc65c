"""Attention by flash-attn, the package played by its documented behaviour in plain PyTorch."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.faces import relative_error

from zipvl_plugins import dense, flash_attention, ops


def _with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    cache_seqlens: torch.Tensor,
    block_table: torch.Tensor,
    softmax_scale: float,
    return_softmax_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [batch, 1, heads, d], log-sum-exp [batch, heads, 1]; zeros and +inf where nothing is cached."""
    assert return_softmax_lse and q.shape[1] == 1
    out, lse = torch.zeros_like(q), torch.full((q.shape[0], q.shape[2], 1), float("inf"))
    group = q.shape[2] // k_cache.shape[2]
    for at, rows in enumerate(cache_seqlens.tolist()):
        if rows:
            pages = block_table[at].long()
            keys, values = (
                pool[pages].flatten(0, 1)[:rows].repeat_interleave(group, dim=1).float() for pool in (k_cache, v_cache)
            )
            scores = torch.einsum("hd,nhd->hn", q[at, 0].float(), keys) * softmax_scale
            lse[at, :, 0] = scores.logsumexp(dim=-1)
            out[at, 0] = torch.einsum("hn,nhd->hd", scores.softmax(dim=-1), values).to(q.dtype)
    return out, lse


def _func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, softmax_scale: float, causal: bool) -> torch.Tensor:
    """[batch, n, heads, d] for all three and for what comes out."""
    query, key, value = (rows.transpose(1, 2) for rows in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=softmax_scale, enable_gqa=True
    )
    return attended.transpose(1, 2)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    print("seed", torch.seed())
    played = SimpleNamespace(flash_attn_func=_func, flash_attn_with_kvcache=_with_kvcache)
    monkeypatch.setitem(sys.modules, "flash_attn", played)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (14, 2), (3, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_decode_joins_the_tokens_own_row(heads: int, kv_heads: int, dtype: torch.dtype, tolerance: float) -> None:
    batch, d, page_size, blocks = 5, 16, 8, 4
    q, k, v = (torch.randn(batch, count, d).to(dtype) for count in (heads, kv_heads, kv_heads))
    pools = torch.randn(2, batch * blocks, page_size, kv_heads, d).to(dtype)
    table = torch.randperm(batch * blocks).reshape(batch, blocks).int()
    context = torch.randint(0, page_size * blocks + 1, (batch,)).int()
    context[:2] = torch.tensor([0, 1])
    arguments = (q, k, v, *pools, table, context, d**-0.5)
    precise = [value.double() if torch.is_tensor(value) and value.is_floating_point() else value for value in arguments]
    wanted = ops.reference("paged_attention")(*precise)
    got = flash_attention.paged(*arguments)
    assert got.dtype == dtype and got.shape == wanted.shape
    assert relative_error(got, wanted) <= tolerance
    assert torch.equal(got[0], v[0].repeat_interleave(heads // kv_heads, dim=0).flatten())  # nothing cached


def test_prefill_is_causal_and_shares_key_heads() -> None:
    q, k, v = (torch.randn(33, count, 16) for count in (14, 2, 2))
    wanted = ops.reference("sparse_attention")(q, k, v, torch.full((1,), 33).int(), 0.3)
    assert relative_error(flash_attention.causal(q, k, v, 0.3), wanted) <= 1e-5


@pytest.mark.parametrize(
    ("cuda", "dtype", "installed", "taken"),
    [
        (True, torch.float16, True, True), (True, torch.bfloat16, True, True), (True, torch.float32, True, False),
        (True, torch.float16, False, False), (False, torch.float16, True, False),
    ],
)  # fmt: skip
def test_it_is_used_where_it_can_compute(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, dtype: torch.dtype, installed: bool, taken: bool
) -> None:
    monkeypatch.setattr(flash_attention, "installed", lambda: installed)
    assert flash_attention.takes(SimpleNamespace(is_cuda=cuda, dtype=dtype)) is taken  # type: ignore[arg-type]


def test_it_reads_large_pages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "installed", lambda: False)
    assert not flash_attention.reads_pages(256, torch.float16)
    monkeypatch.setattr(flash_attention, "installed", lambda: True)
    assert flash_attention.reads_pages(256, torch.bfloat16)
    assert not flash_attention.reads_pages(128, torch.float16)
    assert not flash_attention.reads_pages(256, torch.float32)


def test_dense_prefill_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "takes", lambda q: True)
    monkeypatch.setattr(flash_attention, "causal", lambda q, k, v, scale: (q, k, v, scale))
    rows = [torch.randn(5, 2, 8) for _ in "qkv"]
    assert dense.sparse_attention(*rows, torch.full((1,), 5).int(), 0.3) == (*rows, 0.3)
