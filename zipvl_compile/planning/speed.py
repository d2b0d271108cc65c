"""Seconds of a prefill, of a decode step, and what they make of a request."""

from __future__ import annotations

from dataclasses import dataclass

from zipvl_compile.cost.decode import weights_read
from zipvl_compile.cost.hardware import Device
from zipvl_compile.cost.prediction import ttft
from zipvl_compile.models.spec import DecoderSpec
from zipvl_compile.planning.cache import PREFILL, CacheMode, Prompt
from zipvl_compile.planning.stack import Stack

STEP_KERNELS = 12
"""Of a layer in a decode step: two norms, RoPE, four projections, two of attention, three of the MLP."""


@dataclass(frozen=True)
class Speed:
    """A model on a device under a stack; numbers of `item` bytes."""

    spec: DecoderSpec
    device: Device
    stack: Stack
    item: int

    def prefill_s(self, mode: CacheMode, prompt: Prompt, probes: int) -> float:
        """TTFT of an embedded prompt, alone on the device.

        Layers differ in their attention only, so that layers exempt from selection are a share of the dense time.
        """
        runs = PREFILL[mode] if prompt.p < prompt.n else "dense"
        ratio = prompt.p / prompt.n
        dense, selecting = (
            ttft(self.spec, self.device, prompt.n, kind, ratio=ratio, probes=probes, item=self.item).total
            for kind in ("dense", runs)
        )
        exempt = min(prompt.dense_layers, self.spec.layers) / self.spec.layers
        return exempt * dense + (1 - exempt) * selecting

    def step_s(self, batch: int, sequence: float) -> float:
        """One decode step of `batch` sequences with `sequence` bytes of cache each.

        Weights and caches are read, or weights multiplied, whichever takes longer; kernels begin and end beside that.
        Dequantising is hidden behind the reading.
        """
        used, weights = self.device.utilisation, weights_read(self.spec)
        moved = self.item * weights + batch * self.stack.cache_traffic * sequence
        reading = moved / (self.device.bandwidth * used.memory)
        computing = 2 * weights * batch / (self.device.flops * used.gemm)
        return max(reading, computing) + STEP_KERNELS * self.spec.layers * used.kernel_s + self.stack.step_s

    def decode_rate(self, batch: int, sequence: float) -> float:
        """Tokens a second of all sequences together, prefill not counted."""
        return batch / self.step_s(batch, sequence)

    def request_rate(self, batch: int, sequence: float, prefill_s: float, new_tokens: int) -> float:
        """Tokens a second of full batches that come one after another: their prompts in turn, then their answers."""
        seconds = batch * prefill_s + new_tokens * self.step_s(batch, sequence)
        return batch * new_tokens / seconds
