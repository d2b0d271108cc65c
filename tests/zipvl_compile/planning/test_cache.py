"""Bytes of KV in every mode, against sums made by hand."""

from __future__ import annotations

import pytest

from zipvl_compile.models.spec import DecoderSpec, Rope
from zipvl_compile.planning.cache import (
    MODES,
    CacheMode,
    Prompt,
    largest_layer_bytes,
    row_bytes,
    sequence_bytes,
    sequence_rows,
)
from zipvl_compile.planning.memory import Claim, Room, activation_bytes, longest, prompt_kv_bytes, weight_copies
from zipvl_serving.backends import BACKENDS

SPEC = DecoderSpec(
    layers=3, hidden=32, heads=4, kv_heads=2, head_dim=64, intermediate=80, vocabulary=100, norm_eps=1e-5, rope=Rope(())
)
CHANNELS = 128
FOUR_BITS = 2 * CHANNELS / 2 + 3 * 2 * CHANNELS / 128 + 4
"""K and V at half a byte; scale, zero point and normaliser of each channel over 128 tokens; two numbers of V."""
TWO_BITS = 2 * CHANNELS / 4 + 3 * 2 * CHANNELS / 128 + 4


def test_a_row() -> None:
    assert row_bytes(SPEC, 2, None) == 512 and row_bytes(SPEC, 4, None) == 1024
    assert row_bytes(SPEC, 2, 4) == row_bytes(SPEC, 4, 4) == FOUR_BITS == 138
    assert row_bytes(SPEC, 2, 2) == TWO_BITS == 74


@pytest.mark.parametrize(
    ("mode", "rows", "pages"),
    [("dense", 110 * 512, 112 * 512), ("evict", 47 * 512, 48 * 512),
     ("quantise", 47 * FOUR_BITS + 63 * TWO_BITS, 48 * FOUR_BITS + 64 * TWO_BITS),
     ("evict+quantise", 47 * FOUR_BITS, 48 * FOUR_BITS)],
)  # fmt: skip
def test_a_sequence(mode: CacheMode, rows: float, pages: float) -> None:
    """100 tokens at ratio .37 and 10 new ones: 47 important rows and 63 others, as they are and in pages of 16."""
    prompt = Prompt.at(100, 0.37)
    assert sequence_bytes(SPEC, mode, prompt, 10, item=2) == 3 * rows
    assert sequence_bytes(SPEC, mode, prompt, 10, item=2, page_size=16) == 3 * pages


def test_exempt_layers_and_short_prompts_keep_every_token() -> None:
    exempt = Prompt.at(100, 0.37, dense_layers=1)
    assert sequence_bytes(SPEC, "evict", exempt, 0, item=2) == (2 * 37 + 100) * 512
    assert Prompt.at(100, 0.37, dense_below=101) == Prompt(100, 100)
    assert Prompt.at(100, 0.37, dense_below=100).p == 37
    assert Prompt.at(1, 0.01).p == 1


def test_rows_that_a_step_reads_and_the_largest_layer() -> None:
    """What is not kept is not read; a quantised cache keeps all."""
    exempt = Prompt.at(100, 0.37, dense_layers=1)
    assert sequence_rows(SPEC, "evict", exempt, 10) == 2 * 47 + 110
    assert sequence_rows(SPEC, "quantise", exempt, 10) == sequence_rows(SPEC, "dense", exempt, 10) == 3 * 110
    assert largest_layer_bytes(SPEC, "evict", exempt, 10, item=2) == 110 * 512
    assert largest_layer_bytes(SPEC, "evict", Prompt.at(100, 0.37), 10, item=2) == 47 * 512


@pytest.mark.parametrize("mode", MODES)
def test_nothing_beats_dense_at_ratio_1_but_quantised(mode: CacheMode) -> None:
    kept = sequence_bytes(SPEC, mode, Prompt.at(64, 1.0), 0, item=2)
    assert kept == 3 * 64 * (FOUR_BITS if "quantise" in mode else 512)


def test_activations() -> None:
    """The MLP of a wide layer, the attention of a narrow one, the score matrix where one is written."""
    prompt, table = Prompt(100, 37), 4 * 100 * 64
    attention = 2 * (100 * (3 * 32 + 128) + 2 * 37 * 256)
    assert activation_bytes(SPEC, prompt, item=2, probes=8, score_matrix=False) == table + attention
    dense = activation_bytes(SPEC, Prompt(100, 100), item=2, probes=8, score_matrix=True)
    assert dense == table + 2 * (100 * (3 * 32 + 128) + 2 * 100 * 256)
    scores = 2 * 100 * (2 * 32 + 128) + 4 * 100 * (2 * 2 * 64 + 2 * 64 + 128)
    assert activation_bytes(SPEC, prompt, item=2, probes=64, score_matrix=True) == table + scores
    wide = DecoderSpec(**{**vars(SPEC), "intermediate": 1000})
    mlp = 4 * 100 * (2 * 32 + 3 * 1000)
    assert activation_bytes(wide, prompt, item=4, probes=8, score_matrix=False) == table + mlp


@pytest.mark.parametrize(
    ("backend", "n", "mode", "rows"),
    [("onnxruntime", 100, "evict", 37), ("tensorrt_rtx", 100, "evict", 37), ("tensorrt", 100, "evict", 100),
     ("torch", 100, "evict", 100), ("torch", 32768, "evict", 12124), ("onnxruntime", 100, "quantise", 100),
     ("onnxruntime", 100, "evict+quantise", 37)],
)  # fmt: skip
def test_kv_of_a_prompt_before_it_is_in_pages(backend: str, n: int, mode: CacheMode, rows: int) -> None:
    assert prompt_kv_bytes(SPEC, mode, Prompt.at(n, 0.37), backend, item=2) == 3 * rows * 512


def test_room() -> None:
    assert Room(usable=1000, weights=300).left(100) == 600
    assert Room(usable=1000, weights=1001).left() == -1


@pytest.mark.parametrize(
    ("pool", "most"), [(99, 0), (100, 1), (129, 1), (130, 2), (159, 2), (160, 3), (1000, 31)]
)  # fmt: skip
def test_admission_needs_the_worst_case_once_and_claims_what_was_kept(pool: int, most: int) -> None:
    assert Claim(worst=100, kept=30).most(pool) == most
    entered = reserved = 0
    while reserved + 100 <= pool:
        entered, reserved = entered + 1, reserved + 30
    assert entered == most


def test_a_batch_needs_memory_beside_its_pages() -> None:
    assert [Claim(100, 100).most(pool, beside=25) for pool in (124, 125, 249, 250)] == [0, 1, 1, 2]


def test_weights_lie_in_memory_twice_where_engines_hold_or_pack_them() -> None:
    copies = {backend: weight_copies(backend, prepack=True) for backend in BACKENDS}
    assert copies == {"onnxruntime": 2, "torch": 1, "tensorrt": 2, "tensorrt_rtx": 2}
    assert weight_copies("onnxruntime", prepack=False) == 1


def test_longest() -> None:
    for most in (0, 1, 6, 7, 100):
        assert longest(lambda n, most=most: n <= most, 100) == most  # type: ignore[misc]
        assert longest(lambda n, most=most: n % 50 < most, 100, [50, 100]) == (100 if most else 0)  # type: ignore[misc]
    assert longest(lambda n: n <= 20 or 40 <= n <= 60, 100, [40]) == 60
    assert longest(lambda n: n <= 20, 100, [40, 500]) == 20
