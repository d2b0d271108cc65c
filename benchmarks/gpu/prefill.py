"""TTFT of 7B- and 13B-shaped decoders with random weights: forced ratios against dense attention, in one process.

The prompt's embeddings, all layers and the first logits; no vision tower, no tokenising, no queue. Arms take turns, so
a slow spell of the machine hits all of them. The KV of every layer is kept, as serving needs it (of a long prompt what
T needs, cut layer by layer as the torch session does): where that does not fit the arm says OOM, and a decoder of half
the layers, whose ratios are the same, is measured beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.baselines import DensePrefill, TrimmedPrefill, dense_attentions
from benchmarks.gpu.cases import Maker
from benchmarks.gpu.entry import Entry
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.micro_compute import half
from benchmarks.gpu.oracle import relative_error
from benchmarks.gpu.shapes import RATIOS, decoder, length, probes
from benchmarks.gpu.timing import host_seconds
from zipvl_compile.cost.hardware import EAGER_ELEMENTWISE
from zipvl_compile.cost.prediction import predict
from zipvl_compile.cost.work import prefill as work_of_prefill
from zipvl_compile.models.decoder import Decoder, Prefill
from zipvl_compile.models.spec import DecoderSpec, MethodSpec
from zipvl_plugins.trim import TRIM_FROM

K = 1024
ORDER = (
    ("13B", None, 16 * K), ("13B", None, 4 * K), ("7B", None, 16 * K), ("7B", None, 4 * K), ("13B", None, 32 * K),
    ("7B", None, 128 * K), ("13B", 20, 128 * K), ("13B", None, 8 * K), ("7B", None, 32 * K), ("7B", None, 64 * K),
    ("13B", None, 64 * K), ("7B", None, 8 * K), ("13B", None, 128 * K),
)  # fmt: skip
"""Decoder, layers of it (None: all) and tokens; what tells most first."""
LOGITS_TOLERANCE = 0.1
"""Relative; bf16 rounds 2^-9 of every number that 40 layers write, in an order of its own in each kernel."""


def entries(machine: Machine) -> list[Entry]:
    order = (("tiny", None, 24),) if machine.rehearsal else ORDER

    def entry(name: str, layers: int | None, n: int) -> Entry:
        spec = decoder(name, layers)
        cut = "" if layers is None else f", {layers} layers"
        rounds = _rounds(machine, spec, n)
        expected = 6.0 + (rounds + 1) * sum(_predicted(machine, spec, n).values())
        return Entry(f"{name}{cut}/{length(n)}", expected, lambda: _ttft(machine, spec, n, rounds))

    return [entry(*size) for size in order]


def random_decoder(machine: Machine, spec: DecoderSpec, layers: int | None = None) -> Decoder:
    """Weights of the usual scale, made on the device; the last decoder asked for is kept."""
    return _decoder(machine, spec if layers is None else dataclasses.replace(spec, layers=layers))


@functools.lru_cache(maxsize=1)
def _decoder(machine: Machine, spec: DecoderSpec) -> Decoder:
    with torch.device("meta"):
        model = Decoder(spec)
    model.to(half(machine)).to_empty(device=machine.device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1) if "norm" in name else parameter.normal_(std=0.02)
    return model


def release(machine: Machine) -> None:
    """Give back what other stages and decoders hold."""
    _decoder.cache_clear()
    gc.collect()
    machine.free_memory()


def prompt(machine: Machine, spec: DecoderSpec, n: int, ratio: float) -> tuple[torch.Tensor, ...]:
    """Arguments of Prefill for n random tokens, the last one forced, and a forced ratio."""
    make, m = Maker(machine.device, half(machine)), probes(rehearsal=machine.rehearsal)
    forced = torch.zeros(n, dtype=torch.bool, device=machine.device)
    forced[-1] = True
    return (
        torch.randint(spec.vocabulary, (n,), device=machine.device), make.normal(1, spec.hidden),
        torch.arange(n, device=machine.device), make.probe_positions(n, m), forced,
        make.scalar(0.975), make.scalar(ratio), make.scalar(ratio),
    )  # fmt: skip


def _ttft(machine: Machine, spec: DecoderSpec, n: int, rounds: int) -> dict[str, Any]:
    machine.use_kernels()
    arms, memory, logits, oom = {}, {}, {}, []
    for name, run in _arms(machine, spec, n).items():
        try:
            machine.peak_gib()
            logits[name] = run()
            machine.synchronize()
            arms[name], memory[name] = run, machine.peak_gib()
        except torch.cuda.OutOfMemoryError:
            oom.append(name)
            gc.collect()
            machine.free_memory()
    seconds = host_seconds(machine, arms, rounds)
    oom += [name for name in arms if name not in seconds]
    dense = {name.removeprefix("dense, "): taken for name, taken in seconds.items() if name.startswith("dense, ")}
    expected = _predicted(machine, spec, n)
    return {
        **_checked(logits),
        "ttft_s": {name: round(taken, 4) for name, taken in seconds.items()} | dict.fromkeys(oom, "OOM"),
        "speedup_over": {
            attention: {name: round(whole / taken, 3) for name, taken in seconds.items() if name.startswith("ratio")}
            for attention, whole in dense.items()
        },
        "predicted_s": {name: round(taken, 4) for name, taken in expected.items()},
        "peak_gib": memory,
        "rounds": rounds,
        "dtype": str(half(machine)).removeprefix("torch."),
    }


def _checked(logits: dict[str, torch.Tensor]) -> dict[str, Any]:
    """All logits are finite, and those of every token kept are dense attention's but for rounding in every layer."""
    figures: dict[str, Any] = {"passed": all(bool(values.isfinite().all()) for values in logits.values())}
    dense = next((values for name, values in logits.items() if name.startswith("dense")), None)
    if dense is not None and "ratio 1" in logits:
        figures["logits_error_at_ratio_1"] = relative_error(logits["ratio 1"], dense)
        figures["passed"] &= figures["logits_error_at_ratio_1"] <= LOGITS_TOLERANCE
    return figures


def _arms(machine: Machine, spec: DecoderSpec, n: int) -> dict[str, Callable[[], torch.Tensor]]:
    """By name, a prefill that returns its logits; all take the same prompt."""
    model = random_decoder(machine, spec)
    prompts = {ratio: prompt(machine, spec, n, ratio) for ratio in RATIOS}
    ids, features = prompts[RATIOS[0]][:2]

    def arm(module: Prefill, ratio: float) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.no_grad():
                logits: torch.Tensor = module(ids, features, *prompts[ratio][2:])[0]
                return logits

        return run

    arms = {}
    for name, attend in dense_attentions(machine, grouped=spec.heads != spec.kv_heads).items():
        dense = DensePrefill(model, MethodSpec(dense_layers=spec.layers))
        dense.attend = attend
        arms[f"dense, {name}"] = arm(dense, 1.0)
    for ratio in RATIOS:
        arms[f"ratio {ratio:g}"] = arm((TrimmedPrefill if n >= TRIM_FROM else Prefill)(model, MethodSpec()), ratio)
    return arms


def _predicted(machine: Machine, spec: DecoderSpec, n: int) -> dict[str, float]:
    """By the cost model, with eager elementwise traffic."""
    used = dataclasses.replace(machine.gpu.utilisation, elementwise=EAGER_ELEMENTWISE)
    dense = predict(work_of_prefill(spec, n, "dense"), machine.gpu, used).total
    sparse = {
        f"ratio {ratio:g}": predict(work_of_prefill(spec, n, "zipvl", ratio=ratio), machine.gpu, used).total
        for ratio in RATIOS
    }
    return {"dense": dense} | sparse


def _rounds(machine: Machine, spec: DecoderSpec, n: int) -> int:
    """Five turns of every arm where they are quick, one where they take minutes."""
    if machine.rehearsal:
        return 1
    once = sum(_predicted(machine, spec, n).values())
    return 5 if once < 4 else 3 if once < 12 else 1
