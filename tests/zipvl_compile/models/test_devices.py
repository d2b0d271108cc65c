"""The decoder run as it is, eagerly, on a device that is not the CPU: meta tensors refuse to meet a CPU's."""

from __future__ import annotations

import pytest
import torch

from zipvl_compile.models import decoder
from zipvl_compile.models.decoder import Decode, Decoder, Prefill
from zipvl_compile.models.spec import DecoderSpec, MethodSpec, Rope

SPEC = DecoderSpec(
    layers=2, hidden=24, heads=6, kv_heads=2, head_dim=4, intermediate=16, vocabulary=11, norm_eps=1e-5,
    rope=Rope((1.0, 0.25)), image_token=3,
)  # fmt: skip
N, BATCH, PAGES = 7, 3, 5
META = torch.device("meta")


@pytest.mark.parametrize("method", [MethodSpec(), MethodSpec(dense_layers=1, keep_full_cache=True)], ids=str)
def test_prefill_stays_on_its_device(method: MethodSpec) -> None:
    with META:
        module, one, places = Prefill(Decoder(SPEC), method), torch.ones(1), torch.arange(N)
        features, probes, forced = torch.ones(2, 24), places[-2:], places == N - 1
    outputs = module(places, features, places, probes, forced, one, one, one)
    assert {output.device for output in outputs} == {META}


def test_decode_stays_on_its_device() -> None:
    with META:
        module, ids, pages = Decode(Decoder(SPEC)), torch.arange(BATCH), torch.ones(PAGES, 2, 2, 4)
        tables, context = torch.ones(2, BATCH, 2).int(), torch.ones(2, BATCH).int()
    outputs = module(ids, ids, pages, pages, tables, context)
    assert {output.device for output in outputs} == {META}


def test_rope_frequencies_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured decode step must not read the host's memory."""
    rope, positions = Rope((1.0, 0.3, 0.01)), torch.arange(5)
    first = decoder.rotary_table(rope, positions)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(decoder.rotary_table(rope, positions), first)
    angles = positions[:, None] * torch.as_tensor(rope.inverse_frequencies)
    assert torch.allclose(first, torch.cat([angles.cos(), angles.sin()], dim=-1))
