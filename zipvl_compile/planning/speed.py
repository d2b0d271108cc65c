"""Seconds of a prefill, of a decode step, and what they make of a request."""

from __future__ import annotations

from dataclasses import dataclass

from zipvl_compile.cost.decode import decode_step
from zipvl_compile.cost.hardware import Device
from zipvl_compile.cost.prediction import predict, ttft
from zipvl_compile.models.spec import DecoderSpec
from zipvl_compile.planning.cache import PREFILL, CacheMode, Prompt, sequence_bytes, sequence_rows
from zipvl_compile.planning.stack import Stack


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
            ttft(
                self.spec, self.device, prompt.n, kind, ratio=ratio, probes=probes, item=self.item,
                score_products=self.stack.score_products,
            ).total
            for kind in ("dense", runs)
        )  # fmt: skip
        exempt = min(prompt.dense_layers, self.spec.layers) / self.spec.layers
        return exempt * dense + (1 - exempt) * selecting

    def step_s(self, batch: int, mode: CacheMode, prompt: Prompt, new_tokens: int) -> float:
        """One decode step of `batch` sequences that have `new_tokens` new ones; dequantising hides behind reading."""
        works = decode_step(
            self.spec, batch, sequence_rows(self.spec, mode, prompt, new_tokens),
            sequence_bytes(self.spec, mode, prompt, new_tokens, item=self.item),
            item=self.item, traffic=self.stack.cache_traffic,
        )  # fmt: skip
        return predict(works, self.device).total + self.stack.step_s


def request_rate(batch: int, prefill_s: float, step_s: float, new_tokens: int) -> float:
    """Tokens a second of full batches that come one after another: their prompts in turn, then their answers, of which
    a prefill gives the first token."""
    return batch * new_tokens / (batch * prefill_s + (new_tokens - 1) * step_s)
