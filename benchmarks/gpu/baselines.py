"""What the kernels are compared with: dense causal attention as PyTorch and flash-attn offer it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.machine import Machine
from zipvl_compile.models.decoder import Attention, Prefill, rotate
from zipvl_plugins import flash_attention
from zipvl_plugins.trim import trim

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""q [n, heads, d]; k, v [n, kv_heads, d] -> [n, heads * d], causal."""


def dense_attentions(machine: Machine, *, grouped: bool = True) -> dict[str, Attend]:
    """Those that work here, by name: torch's FlashAttention, cuDNN's, and flash-attn where it is installed.

    `grouped`: several heads share a key head, which not all of them know.
    """
    if machine.rehearsal:
        return {"torch": _sdpa()}
    candidates = {
        "torch flash": _sdpa(SDPBackend.FLASH_ATTENTION),
        "torch flash, heads repeated": _sdpa(SDPBackend.FLASH_ATTENTION, repeat=True),
        "torch cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
        "flash-attn": lambda q, k, v: flash_attention.causal(q, k, v, q.shape[-1] ** -0.5),
    }
    found = {name: attend for name, attend in candidates.items() if _works(machine, attend, 2 if grouped else 8)}
    if "torch flash" in found:
        del found["torch flash, heads repeated"]
    return found


class DensePrefill(Prefill):
    """The decoder's prefill with dense attention of one's choice, in a method whose layers are all dense."""

    attend: Attend

    def dense_attention(self, attention: Attention, x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key = (rotate(attention.heads(p(x)), table) for p in (attention.q_proj, attention.k_proj))
        value = attention.heads(attention.v_proj(x))
        attended = self.attend(query, key, value)
        index = torch.arange(len(x), dtype=torch.int32, device=x.device)
        count = torch.full((1,), len(x), dtype=torch.int32, device=x.device)
        return attention.o_proj(attended), index, count, key, value


class TrimmedPrefill(Prefill):
    """Every layer's K and V are cut to T at once, as the torch session does for long prompts."""

    def zipvl_attention(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        output, index, count, key, value = super().zipvl_attention(*arguments)
        return output, index, count, trim(key, count), trim(value, count)


def _sdpa(*backends: SDPBackend, repeat: bool = False) -> Attend:
    """torch's attention by one of the backends, any where none is named; `repeat` is for those that know no GQA."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if repeat:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        query, key, value = (t[None].transpose(1, 2) for t in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        with sdpa_kernel(list(backends)) if backends else contextlib.nullcontext():
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return out[0].transpose(0, 1).flatten(1)

    return attend


def _works(machine: Machine, attend: Attend, kv_heads: int) -> bool:
    q = torch.randn(256, 8, 128, dtype=torch.float16, device=machine.device)
    try:
        attend(q, q[:, :kv_heads].contiguous(), q[:, :kv_heads].contiguous())
        machine.synchronize()
    except (ImportError, RuntimeError):
        return False
    return True
