"""A recipe's capacity on a device, mode by mode, length by length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from zipvl_compile.cost.hardware import CPU, Cpu, Device, device
from zipvl_compile.planning.cache import MODES, CacheMode, Prompt, largest_layer_bytes, sequence_bytes
from zipvl_compile.planning.figures import Assumptions, Bound, DeviceFigures, ModeFigures, Plan, Row, WeightFigures
from zipvl_compile.planning.limits import check_limits
from zipvl_compile.planning.memory import (
    ENGINES_WITH_WEIGHTS,
    Claim,
    Room,
    activation_bytes,
    drops,
    longest,
    prompt_kv_bytes,
    weight_copies,
)
from zipvl_compile.planning.speed import Speed, request_rate
from zipvl_compile.planning.stack import Stack, stack_of
from zipvl_compile.planning.subject import Subject
from zipvl_compile.planning.units import show_bytes
from zipvl_compile.recipe.schema import Recipe
from zipvl_serving.contract import ITEM_BYTES
from zipvl_serving.errors import InputError

PAPER_RATIOS = (0.37, 0.5)
"""LLaVA-Next-13B keeps 36.8 % and LLaVA-Next-7B 49.3 % of the tokens at tau 0.975."""
_DEFAULT_GPU = "a100-80gb"
_LONG = 1 << 20
"""Tokens at which a page and a group no longer count."""


@dataclass(frozen=True)
class Choices:
    """What a user may ask for; None and empty leave it to the recipe."""

    gpu: str | None = None
    ratios: Sequence[float] = ()
    tokens: Sequence[int] = ()
    batch: int | None = None
    pool_bytes: int | None = None

    def check(self) -> None:
        """InputError for a value out of range."""
        for ratio in self.ratios:
            if not 0 < ratio <= 1:
                raise InputError(f"--ratio {ratio:g}: must be above 0 and at most 1")
        for option, values in (("--tokens", self.tokens), ("--batch", [] if self.batch is None else [self.batch])):
            for value in values:
                if value < 1:
                    raise InputError(f"{option} {value}: must be at least 1")


def plan(recipe: Recipe, subject: Subject, choices: Choices | None = None, on: Device | None = None) -> Plan:
    """Everything that can be said of a recipe before it is built; weights that do not fit are rows with batch 0.

    `on` is a device whose figures are at hand; without it `chosen_device` finds one. Raises InputError for a GPU
    without figures, a dtype without figures there, or a choice out of range.
    """
    chosen = choices or Choices()
    chosen.check()
    return _Planner(recipe, subject, chosen, on or chosen_device(recipe, chosen.gpu)).plan()


def chosen_device(recipe: Recipe, gpu: str | None) -> Device:
    """The device named, else the recipe's, else a CPU for onnxruntime and an A100 for the other backends."""
    named = gpu or recipe.target.gpu
    if named in (None, "cuda"):
        named = CPU if recipe.target.backend == "onnxruntime" else _DEFAULT_GPU
    assert named is not None
    return device(named)


@dataclass(frozen=True)
class _Planner:
    recipe: Recipe
    subject: Subject
    chosen: Choices
    device: Device

    @cached_property
    def backend(self) -> str:
        """The recipe's, where it runs on the device; else the one that does."""
        backend = self.recipe.target.backend
        if isinstance(self.device, Cpu):
            return "onnxruntime" if backend in ENGINES_WITH_WEIGHTS else backend
        return "torch" if backend == "onnxruntime" else backend

    @cached_property
    def stack(self) -> Stack:
        return stack_of(self.backend, on_cpu=isinstance(self.device, Cpu))

    @cached_property
    def dtype(self) -> str:
        on_cpu = isinstance(self.device, Cpu)
        dtype = self.recipe.model.dtype
        if dtype == "auto":
            return "float32" if on_cpu else "float16"
        if (dtype == "float32") != on_cpu:
            valid = "auto, float32" if on_cpu else "auto, float16, bfloat16"
            raise InputError(f"model.dtype: a plan has no figures of {dtype!r} on {self.device.name}; valid: {valid}")
        return dtype

    @cached_property
    def item(self) -> int:
        return ITEM_BYTES[self.dtype]  # type: ignore[index]

    @cached_property
    def weights(self) -> WeightFigures:
        copies = weight_copies(self.backend, prepack=self.recipe.serving.prepack)
        decoder, vision = (self.item * count for count in (self.subject.decoder_numbers, self.subject.vision_numbers))
        total = copies * decoder + vision
        return WeightFigures(
            dtype=self.dtype, decoder_bytes=decoder, vision_bytes=vision, copies=copies, total_bytes=total,
            fits=total <= self.device.memory * (1 - self.stack.reserved),
        )  # fmt: skip

    @cached_property
    def room(self) -> Room:
        return Room.on(self.device, self.stack, self.weights.total_bytes)

    @cached_property
    def speed(self) -> Speed:
        return Speed(self.subject.decoder, self.device, self.stack, self.item)

    @cached_property
    def assumptions(self) -> Assumptions:
        zipvl, limits = self.recipe.zipvl, self.recipe.target.limits
        return Assumptions(
            backend=self.backend, stack=self.stack.name, reserved_share=self.stack.reserved,
            new_tokens=limits.max_new_tokens, page_size=limits.page_size,
            probes=zipvl.probe.recent + zipvl.probe.random, dense_layers=zipvl.dense_layers,
            dense_below=0 if zipvl.dense_below == "auto" else zipvl.dense_below, ratio_max=zipvl.ratio_max,
            pool_bytes=self.chosen.pool_bytes or limits.kv_bytes, max_batch=limits.max_batch, batch=self.chosen.batch,
        )  # fmt: skip

    @property
    def ratios(self) -> tuple[Sequence[float], str]:
        zipvl = self.recipe.zipvl
        if self.chosen.ratios:
            return sorted(set(self.chosen.ratios)), "asked for"
        if 0 < zipvl.ratio_min == zipvl.ratio_max:
            return [zipvl.ratio_min], "the recipe's own, forced"
        return PAPER_RATIOS, "assumed, the paper's at tau 0.975; what a prompt keeps shows only when it runs"

    @property
    def lengths(self) -> list[int]:
        """Those asked for; else the recipe's longest input and halves of it."""
        longest_input = self.recipe.target.limits.max_input_tokens
        return sorted(set(self.chosen.tokens or (max(1, longest_input >> shift) for shift in range(4))))

    @property
    def cells(self) -> list[tuple[CacheMode, float]]:
        ratios, _ = self.ratios
        return [(mode, ratio) for mode in MODES for ratio in ([1.0] if mode == "dense" else ratios)]

    def plan(self) -> Plan:
        device, weights = self.device, self.weights
        rows = [self.row(n, mode, ratio) for n in self.lengths for mode, ratio in self.cells]
        mode: CacheMode = "evict" if self.recipe.zipvl.cache == "evict" else "dense"
        ratio = next(ratio for other, ratio in self.cells if other == mode)
        limits = self.recipe.target.limits
        return Plan(
            recipe=self.recipe.name,
            device=DeviceFigures(
                name=device.name, memory_bytes=device.memory, usable_bytes=self.room.usable, flops=device.flops,
                bytes_per_s=device.bandwidth, utilisation=dataclasses.asdict(device.utilisation),
            ),
            weights=weights,
            assumptions=self.assumptions,
            ratio_source=self.ratios[1],
            modes=[self.mode(mode, ratio) for mode, ratio in self.cells],
            rows=rows,
            limits=check_limits(
                limits, self.row(limits.max_input_tokens, mode, ratio), self.mode(mode, ratio), self.device.name
            ),
            notes=self.notes(),
        )  # fmt: skip

    def prompt(self, n: int, mode: CacheMode, ratio: float) -> Prompt:
        if mode == "dense":
            return Prompt(n, n)
        assumed = self.assumptions
        return Prompt.at(n, ratio, dense_layers=assumed.dense_layers, dense_below=assumed.dense_below)

    def sequence(self, mode: CacheMode, prompt: Prompt, new_tokens: int, page_size: int = 1) -> float:
        return sequence_bytes(
            self.subject.decoder, mode, prompt, new_tokens, item=self.item, page_size=page_size
        )  # fmt: skip

    def claim(self, mode: CacheMode, prompt: Prompt) -> Claim:
        """What the scheduler claims of the pool for one sequence; the last token of an answer is never fed.

        The most that a prompt may keep is known before it runs, as Runner.most_rows counts it; text that is forced is
        not.
        """
        assumed = self.assumptions
        chosen = int(assumed.ratio_max * prompt.n) + 1 + self.recipe.zipvl.force.last
        most = dataclasses.replace(prompt, p=max(prompt.p, min(prompt.n, chosen)))
        worst, kept = (self.sequence(mode, p, assumed.new_tokens - 1, assumed.page_size) for p in (most, prompt))
        return Claim(worst, kept)

    def prefill_bytes(self, mode: CacheMode, prompt: Prompt) -> tuple[float, float]:
        """(activations, K and V of one prompt)."""
        spec = self.subject.decoder
        activations = activation_bytes(
            spec, prompt, item=self.item, probes=self.assumptions.probes, score_matrix=self.stack.score_matrix
        )
        return activations, prompt_kv_bytes(spec, mode, prompt, self.backend, item=self.item)

    def left(self, mode: CacheMode, prompt: Prompt) -> float:
        return self.room.left(sum(self.prefill_bytes(mode, prompt)))

    @property
    def longest_input(self) -> int:
        """As the build bounds it: prompt and answer have positions of their own."""
        return max(0, self.subject.decoder.max_positions - self.assumptions.new_tokens)

    def device_batch(self, mode: CacheMode, prompt: Prompt) -> int:
        """Sequences for which there is memory, whatever the limits."""
        new, spec = self.assumptions.new_tokens, self.subject.decoder
        beside = largest_layer_bytes(spec, mode, prompt, new, item=self.item) if self.stack.gathers else 0.0
        return 0 if prompt.n > self.longest_input else self.claim(mode, prompt).most(self.left(mode, prompt), beside)

    def max_batch(self, mode: CacheMode, prompt: Prompt) -> tuple[int, Bound]:
        """Sequences that the bundle admits, and what keeps it from more."""
        if prompt.n > self.longest_input:
            return 0, "positions"
        assumed = self.assumptions
        bounds: list[tuple[int, Bound]] = [
            (self.device_batch(mode, prompt), "memory"),
            (self.claim(mode, prompt).most(assumed.pool_bytes), "pool"),
            (assumed.max_batch, "max_batch"),
        ]
        return min(bounds, key=lambda bound: bound[0])

    def row(self, n: int, mode: CacheMode, ratio: float) -> Row:
        prompt, new = self.prompt(n, mode, ratio), self.assumptions.new_tokens
        activations, prompt_kv = self.prefill_bytes(mode, prompt)
        claim = self.claim(mode, prompt)
        most, bound = self.max_batch(mode, prompt)
        batch = min(most, self.chosen.batch or most)
        ttft = self.speed.prefill_s(mode, prompt, self.assumptions.probes) if batch else None
        step = self.speed.step_s(batch, mode, prompt, new // 2)
        return Row(
            tokens=n, mode=mode, ratio=ratio, kept_tokens=prompt.p, kv_bytes=claim.kept, worst_kv_bytes=claim.worst,
            activation_bytes=activations, prompt_kv_bytes=prompt_kv, left_bytes=self.left(mode, prompt),
            max_batch=most, bounded_by=bound, device_batch=self.device_batch(mode, prompt), batch=batch, ttft_s=ttft,
            decode_tokens_per_s=batch / step if batch else None,
            request_tokens_per_s=None if ttft is None else request_rate(batch, ttft, step, new),
        )  # fmt: skip

    def mode(self, mode: CacheMode, ratio: float) -> ModeFigures:
        per_token, dense = (self.sequence(kept, self.prompt(_LONG, kept, ratio), 0) / _LONG for kept in (mode, "dense"))
        end, breaks = self.longest_input, drops(self.assumptions.dense_below)
        most = longest(lambda n: self.max_batch(mode, self.prompt(n, mode, ratio))[0] > 0, end, breaks)
        held = longest(lambda n: self.device_batch(mode, self.prompt(n, mode, ratio)) > 0, end, breaks)
        _, bound = self.max_batch(mode, self.prompt(most + 1, mode, ratio))
        return ModeFigures(
            mode=mode, ratio=ratio, kv_bytes_per_token=per_token, compression=dense / per_token, max_context=most,
            bounded_by=bound, device_context=held,
        )  # fmt: skip

    def notes(self) -> list[str]:
        assumed, used = self.assumptions, self.device.utilisation
        found = [
            "predicted on paper; no vision tower, tokenising, queue or host in TTFT",
            f"ratios: {self.ratios[1]}",
            f"shares of peaks reached: products {used.gemm:g} ({used.lazy_gemm:g} of T's rows), dense attention "
            f"{used.dense_attention:g}, sparse {used.sparse_attention:g}, memory {used.memory:g}",
            f"admission: a request enters a pool of {show_bytes(assumed.pool_bytes)} while its worst case (ratio_max "
            f"{assumed.ratio_max:g}) is free, {assumed.max_batch} at most; column device: a pool of all memory left",
            f"{assumed.reserved_share:.0%} of memory left to driver and libraries; {assumed.new_tokens} new tokens a "
            f"request; pages of {assumed.page_size} tokens; backend {assumed.backend}",
            "quantise and evict+quantise: no backend has them yet; scales and zero points as in ZipCache "
            "(docs/planning.md), the time of quantising left out",
        ]
        if self.recipe.zipvl.dense_below == "auto":
            found.append("zipvl.dense_below is measured by the build: short inputs will run dense, here none does")
        return found
