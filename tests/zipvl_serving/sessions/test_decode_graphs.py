"""Captured decode steps, with a capture that a CPU can do: which are made, and what a replay reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.faces import relative_error

from zipvl_serving.sessions.base import DecodeInputs
from zipvl_serving.sessions.decode_graphs import Bucket, DecodeGraphs
from zipvl_serving.sessions.device_session import Outputs
from zipvl_serving.sessions.torch import TorchSession

LAYERS = 2
MOST = Bucket(batch=12, blocks=40)


class Recorder:
    """A step that keeps what it read, and a capture that counts."""

    def __init__(self) -> None:
        self.captures = 0
        self.addresses: list[tuple[int, ...]] = []
        self.read: tuple[torch.Tensor, ...] = ()

    def step(self, *inputs: torch.Tensor) -> Outputs:
        self.addresses.append(tuple(tensor.data_ptr() for tensor in inputs))
        self.read = tuple(tensor.clone() for tensor in inputs)
        return (self.read[0],)

    def capture(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        self.captures += 1
        return run


def _inputs(batch: int, blocks: int, pages: torch.Tensor) -> DecodeInputs:
    rng = np.random.default_rng()
    return DecodeInputs(
        input_ids=rng.integers(1, 99, batch),
        position_ids=rng.integers(1, 99, batch),
        key_pages=pages,
        value_pages=pages,
        block_tables=rng.integers(1, 99, (LAYERS, batch, blocks)).astype(np.int32),
        context=rng.integers(1, 99, (LAYERS, batch)).astype(np.int32),
    )


@pytest.mark.parametrize(
    ("sizes", "bucket"),
    [
        ((1, 1), (1, 1)), ((2, 3), (2, 4)), ((3, 16), (4, 16)), ((8, 17), (8, 32)),
        ((9, 33), (12, 40)), ((12, 40), (12, 40)), ((13, 41), (16, 64)),
    ],
)  # fmt: skip
def test_sizes_are_rounded_up_to_powers_of_two_or_to_the_limit(sizes: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert Bucket.of(*sizes, MOST) == Bucket(*bucket)


def test_a_step_is_captured_once_for_all_that_its_bucket_holds() -> None:
    recorder, pages = Recorder(), torch.zeros(3, 4, 1, 2)
    graphs = DecodeGraphs(recorder.step, recorder.capture, MOST)
    for sizes in ((3, 5), (4, 8), (3, 6), (4, 5)):
        graphs(_inputs(*sizes, pages))
    assert recorder.captures == 1 and len(set(recorder.addresses)) == 1
    graphs(_inputs(5, 5, pages))
    graphs(_inputs(3, 9, pages))
    assert recorder.captures == 3
    graphs(_inputs(3, 5, torch.zeros(3, 4, 1, 2)))  # another pool's pages lie elsewhere
    assert recorder.captures == 4


def test_a_replay_reads_this_step_and_nothing_of_the_one_before() -> None:
    recorder, pages = Recorder(), torch.zeros(3, 4, 1, 2)
    graphs = DecodeGraphs(recorder.step, recorder.capture, MOST)
    graphs(_inputs(8, 16, pages))
    inputs = _inputs(5, 9, pages)
    graphs(inputs)
    ids, positions, keys, values, tables, context = recorder.read
    assert torch.equal(keys, pages) and torch.equal(values, pages)
    assert ids.shape == positions.shape == (8,) and ids.dtype == positions.dtype == torch.int64
    assert tables.shape == (LAYERS, 8, 16) and context.shape == (LAYERS, 8)
    assert tables.dtype == context.dtype == torch.int32
    for padded, given in (
        (ids, inputs.input_ids),
        (positions, inputs.position_ids),
        (tables, inputs.block_tables),
        (context, inputs.context),
    ):
        expected = np.zeros_like(padded.numpy())
        expected[tuple(map(slice, given.shape))] = given
        assert np.array_equal(padded.numpy(), expected)


@pytest.mark.parametrize(("batch", "blocks"), [(1, 3), (3, 5), (5, 2)])
def test_a_sequence_gets_in_a_bucket_what_it_gets_alone(on_torch: TorchSession, batch: int, blocks: int) -> None:
    storage = on_torch.page_storage(batch * blocks * LAYERS + 1)
    storage.keys.normal_()
    storage.values.normal_()
    pages = 1 + np.random.default_rng().permutation(batch * blocks * LAYERS).reshape(LAYERS, batch, blocks)
    inputs = _inputs(batch, blocks, storage.keys)
    inputs = DecodeInputs(
        inputs.input_ids % 40,
        inputs.position_ids,
        storage.keys,
        storage.values,
        pages.astype(np.int32),
        inputs.context % (blocks * storage.page_size + 1),
    )
    graphs = DecodeGraphs(on_torch._decode, lambda run: run, MOST)
    with torch.inference_mode():
        logits, keys, values = graphs(inputs)
    own_logits, *own_rows = on_torch.decode(inputs)
    assert relative_error(logits[:batch], torch.from_numpy(own_logits)) <= 1e-4
    for bucket_rows, own in zip((keys, values), own_rows, strict=True):
        assert relative_error(bucket_rows[:, :batch], own) <= 1e-4
