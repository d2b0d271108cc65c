"""probe_scores and select_tokens: microseconds, and as a share of the dense layer that they stand in."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.baselines import DensePrefill, dense_attentions
from benchmarks.gpu.cases import Maker, Shape, arguments
from benchmarks.gpu.entry import Entry, by_size
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.micro_compute import half
from benchmarks.gpu.prefill import random_decoder
from benchmarks.gpu.shapes import LENGTHS, decoder, probes
from benchmarks.gpu.timing import copies, kernel_seconds
from zipvl_compile.models.decoder import rotary_table
from zipvl_compile.models.spec import DecoderSpec, MethodSpec
from zipvl_plugins import ops


def entries(machine: Machine) -> list[Entry]:
    names = ("tiny",) if machine.rehearsal else ("13B", "7B")
    lengths = (24,) if machine.rehearsal else LENGTHS

    def entry(name: str) -> Entry:
        key = f"probe_scores+select_tokens/{name}"
        return Entry(key, 25.0, lambda: by_size(machine, lengths, lambda n: _selection(machine, name, n)))

    return [entry(name) for name in names]


def _selection(machine: Machine, name: str, n: int) -> dict[str, Any]:
    spec = decoder(name)
    make = Maker(machine.device, half(machine))
    shape = Shape(n, n, spec.heads, spec.kv_heads, spec.head_dim, probes=probes(rehearsal=machine.rehearsal))
    scored = copies(lambda: tuple(arguments("probe_scores", shape, make).values()))
    selected = copies(lambda: tuple(arguments("select_tokens", shape, make).values()), most=4)
    seconds = kernel_seconds(
        machine,
        {
            "probe_scores": (lambda *values: ops.run_kernels("probe_scores", *values), scored),
            "select_tokens": (lambda *values: ops.run_kernels("select_tokens", *values), selected),
        },
    )
    dense = _dense_layer(machine, spec, n)
    return {
        "us": {op: round(taken * 1e6, 1) for op, taken in seconds.items()},
        "dense_layer_us": {attention: round(taken * 1e6, 1) for attention, taken in dense.items()},
        "share": round(sum(seconds.values()) / min(dense.values()), 4),
    }


def _dense_layer(machine: Machine, spec: DecoderSpec, n: int) -> dict[str, float]:
    """Seconds of one decoder layer, attention and MLP, by the dense attention in it."""
    model = random_decoder(machine, spec, layers=1)
    layer, prefill = model.layers[0], DensePrefill(model, MethodSpec(dense_layers=1))
    x = torch.randn(n, spec.hidden, device=machine.device).to(half(machine))
    table = rotary_table(spec.rope, torch.arange(n, device=machine.device))

    def run(attend: Any) -> torch.Tensor:
        prefill.attend = attend
        with torch.no_grad():
            attended = prefill.dense_attention(layer.self_attn, layer.input_layernorm(x), table)[0]
            out: torch.Tensor = layer.feed_forward(x + attended)
            return out

    known = dense_attentions(machine, grouped=spec.heads != spec.kv_heads)
    arms = {attention: (run, [(attend,)]) for attention, attend in known.items()}
    return kernel_seconds(machine, arms, target_s=0.05)
