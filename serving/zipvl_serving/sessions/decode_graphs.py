"""Decode by replaying captured steps: one for each size of batch and block table, rounded up, in static buffers.

Launching some twenty kernels per layer takes the host longer than a GPU needs to run them; a CUDA graph is one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from zipvl_serving.arrays import Array
from zipvl_serving.sessions.base import DecodeInputs
from zipvl_serving.sessions.device_session import Outputs

Step = Callable[..., Outputs]
"""The decode program: step(input_ids, position_ids, key_pages, value_pages, block_tables, context)."""
Capture = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]
"""Runs a call that takes nothing and always reads and writes the same memory; returns what repeats it."""

_WARM_UPS = 2
"""Runs before a capture: kernels compile, libraries allocate their workspaces."""


@dataclass(frozen=True)
class Bucket:
    """Sizes that a captured step was made for."""

    batch: int
    blocks: int

    @classmethod
    def of(cls, batch: int, blocks: int, most: Bucket) -> Bucket:
        """The smallest powers of two that hold both sizes; `most` caps what it holds."""
        return cls(_round_up(batch, most.batch), _round_up(blocks, most.blocks))


def _round_up(size: int, most: int) -> int:
    power = 1 << (size - 1).bit_length()
    return min(power, most) if size <= most else power


class DecodeGraphs:
    """Decode steps, each captured when its bucket is first met."""

    def __init__(self, step: Step, capture: Capture, most: Bucket) -> None:
        """`most`: the sizes that a bundle's limits allow."""
        self._step, self._capture, self._most = step, capture, most
        self._captured: dict[Bucket, _Captured] = {}

    def __call__(self, inputs: DecodeInputs) -> Outputs:
        """Outputs of the step, sequences past the batch included; the next step writes over them."""
        layers, batch, blocks = inputs.block_tables.shape
        bucket = Bucket.of(batch, blocks, self._most)
        captured = self._captured.get(bucket)
        if captured is None or captured.key_pages is not inputs.key_pages:  # pages of another pool
            captured = _Captured(bucket, layers, inputs, self._step, self._capture)
            self._captured[bucket] = captured
        return captured(inputs)


class _Captured:
    """One bucket's buffers and what repeats its step.

    A sequence that only fills the bucket has nothing cached: it attends to its own token, and nobody reads its row.
    """

    def __init__(self, bucket: Bucket, layers: int, inputs: DecodeInputs, step: Step, capture: Capture) -> None:
        self.key_pages: torch.Tensor = inputs.key_pages
        value_pages: torch.Tensor = inputs.value_pages
        device = self.key_pages.device
        shapes = {
            "input_ids": ((bucket.batch,), torch.int64),
            "position_ids": ((bucket.batch,), torch.int64),
            "block_tables": ((layers, bucket.batch, bucket.blocks), torch.int32),
            "context": ((layers, bucket.batch), torch.int32),
        }
        self._staged = {
            name: torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
            for name, (shape, dtype) in shapes.items()
        }
        self._static = {name: staged.to(device, copy=True) for name, staged in self._staged.items()}
        ids, positions, tables, context = self._static.values()
        self._repeat = capture(lambda: step(ids, positions, self.key_pages, value_pages, tables, context))

    def __call__(self, inputs: DecodeInputs) -> Outputs:
        for name, staged in self._staged.items():
            # The step before has been waited for: its logits were read.
            _fill(staged.numpy(), getattr(inputs, name))
            self._static[name].copy_(staged, non_blocking=True)
        return self._repeat()


def _fill(buffer: Array, values: Array) -> None:
    buffer[...] = 0
    buffer[tuple(slice(size) for size in values.shape)] = values


def cuda_capture() -> Capture:
    """Captures CUDA graphs that share one pool of memory: only one replays at a time, and its outputs are read before
    the next does."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be embedding images meanwhile: what it allocates must not end the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = run()

        def repeat() -> Outputs:
            graph.replay()
            return outputs

        return repeat

    return capture
