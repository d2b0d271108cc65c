"""Operations and bytes of every op of a prefill: the decoder of zipvl_compile/models/decoder.py, op by op.

n is the prompt's length, p the tokens of T, m the probes; hidden, heads and so on are the decoder's. Weights,
activations and KV have `item` bytes a number, 2 unless said otherwise. Causal attention over r rows is 2 r^2 heads
head_dim operations (half of the square, two products, two operations each); a linear layer of r rows is 2 r inner
outer. Bytes are the least that a kernel must move: every input read once, every output written once, but for probe
scores, which read K for each of their `score_products`: two where kernels normalise first and sum up then, so that no
score is written; one where a graph keeps the scores. Norms, RoPE, activations and residuals are counted as fused
kernels would move them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from zipvl_compile.models.spec import DecoderSpec

ITEM = 2
"""Bytes of a number in fp16 and bf16, what GPUs run in."""
SEARCH_ROUNDS = 16
"""Of select_tokens: two searches over 32 bits, four bits a round."""
SEARCH_STEPS = SEARCH_ROUNDS * 16 * 2
"""Integer operations a token: each round compares it with 16 thresholds and adds."""

Kind = Literal["gemm", "lazy_gemm", "dense_attention", "sparse_attention", "scores", "search", "memory", "elementwise"]
Mode = Literal["dense", "zipvl", "zipvl_full", "zipvl_paper"]
"""Dense; ZipVL with lazy Q, V and output projections; that with V of every token, for a cache that keeps them all;
ZipVL as published, all tokens projected. The logits of the last three are the same."""


@dataclass(frozen=True)
class Work:
    """One op, over all layers of one prefill."""

    op: str
    kind: Kind
    """Which utilisation it runs at."""
    flops: float
    """For "search", integer operations."""
    bytes: float
    kernels: int
    rounds: int = 0
    """Steps inside its kernels that wait for all of the one before."""

    def times(self, count: int) -> Work:
        return Work(
            self.op, self.kind, self.flops * count, self.bytes * count, self.kernels * count, self.rounds * count
        )


def prefill(
    spec: DecoderSpec,
    n: int,
    mode: Mode,
    *,
    ratio: float = 1.0,
    probes: int = 128,
    item: int = ITEM,
    score_products: int = 2,
) -> list[Work]:
    """Every op of the prefill of n tokens, in order; `ratio` is p/n in every layer."""
    layer = _Layer(spec, n, n if mode == "dense" else kept_tokens(n, ratio), min(probes, n), item, score_products)
    attention = {
        "dense": layer.dense, "zipvl": layer.lazy, "zipvl_full": layer.lazy_full, "zipvl_paper": layer.published
    }[mode]  # fmt: skip
    last = 1  # the last layer's MLP runs on the last token: no other row is read afterwards
    return [
        Work("embedding", "memory", 0, 2 * item * n * spec.hidden, 1),
        *(work.times(spec.layers) for work in attention()),
        *(work.times(spec.layers - last) for work in layer.mlp(n)),
        *(work.times(last) for work in layer.mlp(1)),
        linear("lm_head", 1, spec.hidden, spec.vocabulary, item=item),
    ]


def kept_tokens(n: int, ratio: float) -> int:
    """p: the tokens of T at a share of n, one at least."""
    return max(1, round(ratio * n))


def linear(op: str, rows: int, inner: int, outer: int, kind: Kind = "gemm", *, item: int = ITEM) -> Work:
    """A linear layer; weights are read once."""
    return Work(op, kind, 2 * rows * inner * outer, item * (inner * outer + rows * (inner + outer)), 1)


@dataclass(frozen=True)
class _Layer:
    """One decoder layer at n tokens, p of them in T, m probes."""

    spec: DecoderSpec
    n: int
    p: int
    m: int
    item: int
    score_products: int

    @property
    def queries(self) -> int:
        return self.spec.heads * self.spec.head_dim

    @property
    def keys(self) -> int:
        return self.spec.kv_heads * self.spec.head_dim

    def dense(self) -> Iterator[Work]:
        yield from self._all_projected()
        yield self._attention("attention", self.n, "dense_attention")
        yield self._output()

    def lazy(self, *, full_cache: bool = False) -> Iterator[Work]:
        n, p, m, hidden = self.n, self.p, self.m, self.spec.hidden
        yield self._elementwise("norm, residual", 5 * n * hidden)
        yield self._linear("k_proj", n, hidden, self.keys)
        yield self._linear("probe q_proj", m, hidden, self.queries)
        yield self._elementwise("rope", 2 * (n * self.keys + (p + m) * self.queries))
        yield from self._selection()
        yield self._gather("gather_rows", self.keys)
        yield self._linear("gather_projection (Q)", p, hidden, self.queries, "lazy_gemm")
        if full_cache:
            yield self._linear("v_proj", n, hidden, self.keys)
            yield self._gather("gather_rows", self.keys)
        else:
            yield self._linear("gather_projection (V)", p, hidden, self.keys, "lazy_gemm")
        yield self._attention("sparse_attention", p, "sparse_attention")
        yield self._scattered()

    def lazy_full(self) -> Iterator[Work]:
        return self.lazy(full_cache=True)

    def published(self) -> Iterator[Work]:
        yield from self._all_projected()
        yield from self._selection()
        yield self._gather("gather_rows", self.queries + 2 * self.keys)
        yield self._attention("sparse_attention", self.p, "sparse_attention")
        yield Work("scatter", "memory", 0, self.item * (self.p + self.n) * self.queries, 1)
        yield self._output()

    def mlp(self, rows: int) -> Iterator[Work]:
        hidden, inner = self.spec.hidden, self.spec.intermediate
        yield self._elementwise("norm, residual", 5 * rows * hidden)
        yield self._linear("gate_proj", rows, hidden, inner)
        yield self._linear("up_proj", rows, hidden, inner)
        yield self._elementwise("silu", 3 * rows * inner)
        yield self._linear("down_proj", rows, inner, hidden)

    def _all_projected(self) -> Iterator[Work]:
        """Up to rotated Q and K, and V, of every token."""
        n, hidden = self.n, self.spec.hidden
        yield self._elementwise("norm, residual", 5 * n * hidden)
        yield self._linear("q_proj", n, hidden, self.queries)
        yield self._linear("k_proj", n, hidden, self.keys)
        yield self._linear("v_proj", n, hidden, self.keys)
        yield self._elementwise("rope", 2 * n * (self.queries + self.keys))

    def _output(self) -> Work:
        return self._linear("o_proj", self.n, self.queries, self.spec.hidden)

    def _selection(self) -> Iterator[Work]:
        n, m = self.n, self.m
        products = self.score_products
        scored = products * self.keys * n * self.item + 2 * n * 4 + m * self.queries * self.item
        # Every probe is charged with every column: true of the recent ones, twice too much for the random ones.
        yield Work("probe_scores", "scores", products * 2 * m * n * self.queries, scored, 3)
        yield Work("select_tokens", "search", SEARCH_STEPS * n, (2 * 4 + 1 + 4) * n, 1, SEARCH_ROUNDS)

    def _gather(self, op: str, width: int) -> Work:
        return Work(op, "memory", 0, 2 * self.item * self.p * width, 1)

    def _attention(self, op: str, rows: int, kind: Kind) -> Work:
        return Work(op, kind, 2 * rows**2 * self.queries, self.item * rows * 2 * (self.queries + self.keys), 1)

    def _scattered(self) -> Work:
        """The output projection of T's rows; every row of the result is written, zeros outside T."""
        product = self._linear("projection_scatter", self.p, self.queries, self.spec.hidden, "lazy_gemm")
        zeros = self.item * (self.n - self.p) * self.spec.hidden
        return Work(product.op, product.kind, product.flops, product.bytes + zeros, 1)

    def _linear(self, op: str, rows: int, inner: int, outer: int, kind: Kind = "gemm") -> Work:
        return linear(op, rows, inner, outer, kind, item=self.item)

    def _elementwise(self, op: str, numbers: int) -> Work:
        return Work(op, "elementwise", 0, self.item * numbers, 1)
