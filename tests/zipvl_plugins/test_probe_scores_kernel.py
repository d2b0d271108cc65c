"""probe_scores by its kernels, in Triton's interpreter, against the paper's algorithm in double precision."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers import oracle
from helpers.faces import relative_error
from helpers.interpreter import interpret, interpret_every_tuning

from zipvl_plugins import ops
from zipvl_plugins.gpu.launch import Operand, plan
from zipvl_plugins.probe_scores.kernel import SPLITS, STAGES

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-3}


@dataclass(frozen=True)
class Shape:
    """n tokens, m probes, heads, kv_heads, head dim."""

    n: int
    m: int
    heads: int
    kv_heads: int
    d: int

    def __str__(self) -> str:
        return f"n{self.n}-m{self.m}-h{self.heads}:{self.kv_heads}-d{self.d}"


SHAPES = (
    Shape(1, 1, 2, 1, 64),
    Shape(7, 7, 7, 1, 80),
    Shape(129, 1, 2, 2, 128),
    Shape(1000, 20, 7, 1, 96),  # a block holds rows of several probes and heads; the first one's see no late column
)


@pytest.fixture(autouse=True)
def _fresh_inputs() -> None:
    print("seed", torch.seed())


def _inputs(shape: Shape, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, positions; what lies behind them in memory is NaN."""
    earlier = torch.randperm(shape.n - 1)[: shape.m - 1].sort().values
    q = torch.randn(shape.m + 1, shape.heads, shape.d) * 2
    k = torch.randn(shape.n + 64, shape.kv_heads, shape.d)
    q[shape.m :] = k[shape.n :] = float("nan")
    return q.to(dtype)[: shape.m], k.to(dtype)[: shape.n], torch.cat([earlier, torch.tensor([shape.n - 1])])


def _assert_close(
    results: list[tuple[torch.Tensor, torch.Tensor]],
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scale: float,
) -> None:
    expected = oracle.scores(*inputs, scale)
    for scores in results:
        for own, wanted in zip(scores, expected, strict=True):
            assert own.shape == wanted.shape and own.dtype == torch.float32
            assert relative_error(own, wanted) <= TOLERANCE[inputs[0].dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_equal_the_papers(shape: Shape, dtype: torch.dtype) -> None:
    inputs = _inputs(shape, dtype)
    scale = shape.d**-0.5
    _assert_close([interpret("probe_scores", *inputs, torch.zeros(1), scale)], inputs, scale)


def test_every_tuning() -> None:
    inputs = _inputs(Shape(4099, 128, 1, 1, 64), torch.float16)
    results = interpret_every_tuning("probe_scores", *inputs, torch.zeros(1), 0.125)
    assert len(results) > 1
    _assert_close(results, inputs, 0.125)


def test_more_probes_than_a_block_takes() -> None:
    inputs = _inputs(Shape(777, 300, 1, 1, 64), torch.float16)
    _assert_close([interpret("probe_scores", *inputs, torch.zeros(1), 0.125)], inputs, 0.125)


def test_every_token_a_probe_of_its_own() -> None:
    inputs = _inputs(Shape(60, 60, 2, 2, 16), torch.float32)
    _assert_close([interpret("probe_scores", *inputs, torch.zeros(1), 0.25)], inputs, 0.25)


def test_large_scores_do_not_overflow() -> None:
    q, k = (torch.randint(-7, 8, size).float() for size in ((9, 1, 64), (200, 1, 64)))
    positions = torch.tensor([0, 1, 2, 31, 32, 63, 64, 100, 199])
    assert torch.einsum("mhd,nhd->mn", q, k).max() > 128  # 2^128 is past float32
    _assert_close([interpret("probe_scores", q, k, positions, torch.zeros(1), 1.0)], (q, k, positions), 1.0)


def test_no_score_is_computed_where_every_token_is_kept() -> None:
    q, k = torch.full((5, 2, 64), float("nan")), torch.full((70, 2, 64), float("nan"))
    for scores in interpret("probe_scores", q, k, torch.arange(65, 70), torch.ones(1), 0.125):
        assert torch.equal(scores, torch.zeros(70))


def test_attention_never_lies_in_memory() -> None:
    """Scratch is m floats per split and head, and n per block of rows."""
    heads, m, n, d = 40, 128, 131072, 128
    known = {
        "q": Operand("float16", (m, heads, d)),
        "k": Operand("float16", (n, heads, d)),
        "positions": Operand("int64", (m,)),
        "ratio_min": Operand("float32", (1,)),
    }
    sizes = {}
    for stage in STAGES:
        outputs = plan(stage, [known[name] for name in stage.inputs], {"scale": 1.0}, 80).outputs
        known |= dict(zip(stage.outputs, outputs, strict=True))
        sizes |= {name: known[name].shape for name in stage.outputs}
    assert sizes == {"lse": (SPLITS, heads, m), "sums": (heads, n), "accumulated": (n,), "normalised": (n,)}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tunings_share_their_scratch(dtype: str) -> None:
    """TensorRT asks for shapes before it picks a tuning, and picks one for every stage alone."""
    known = {
        "q": Operand(dtype, (100, 14, 64)),
        "k": Operand(dtype, (999, 2, 64)),
        "positions": Operand("int64", (100,)),
        "ratio_min": Operand("float32", (1,)),
    }
    for stage in ops.stages("probe_scores"):
        inputs = [known[name] for name in stage.inputs]
        attributes = dict.fromkeys(stage.attributes, 1.0)
        outputs = {
            sm: [stage.launch(*inputs, tuning=tuning, **attributes).outputs for tuning in stage.tunings(sm, *inputs)]
            for sm in (80, 89, 90)
        }
        (first, *_), *_ = outputs.values()
        assert all(own == first for of_sm in outputs.values() for own in of_sm)
        known |= dict(zip(stage.outputs, first, strict=True))
