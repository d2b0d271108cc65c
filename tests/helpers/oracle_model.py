"""A Llama decoder's prefill in double precision, with the paper's Algorithm 1 written out, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from helpers import oracle


@dataclass(frozen=True)
class OracleResult:
    logits: torch.Tensor
    """double [vocabulary], of the last token."""
    selections: list[oracle.Selection]


def prefill(
    config: LlamaConfig,
    weights: dict[str, torch.Tensor],
    embeddings: torch.Tensor,
    positions: torch.Tensor,
    forced: torch.Tensor,
    tau: float,
    given: Sequence[Sequence[int]],
) -> OracleResult:
    """Run a prompt: `weights` by Hugging Face's names without a prefix; embeddings [n, hidden].

    `given` is T of every layer, to follow another implementation's choice: each layer's own selection is recorded
    beside it, so that the choice can be judged layer by layer.
    """
    n = len(embeddings)
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = (t.double() for t in rotary(embeddings[None].float(), torch.arange(n)[None]))
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    x, selections = embeddings.double(), []
    for layer in range(config.num_hidden_layers):
        w = {k.split(f"layers.{layer}.")[1]: v.double() for k, v in weights.items() if f"layers.{layer}." in k}

        def linear(name: str, value: torch.Tensor, w: dict[str, torch.Tensor] = w) -> torch.Tensor:
            bias = w.get(f"{name}.bias")
            return value @ w[f"{name}.weight"].T + (0 if bias is None else bias)

        hidden = _norm(x, w["input_layernorm.weight"], config.rms_norm_eps)
        q, k, v = (
            linear(f"self_attn.{name}_proj", hidden).reshape(n, count, -1).transpose(0, 1)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = (t[0] for t in apply_rotary_pos_emb(q[None], k[None], cos, sin))
        scale = config.head_dim**-0.5
        accumulated, normalised = oracle.scores(q.transpose(0, 1)[positions], k.transpose(0, 1), positions, scale)
        selections.append(oracle.select(accumulated, normalised, forced, tau))
        chosen = torch.tensor(given[layer])
        keys, values = (t[:, chosen].repeat_interleave(heads // kv_heads, dim=0) for t in (k, v))
        scores = q[:, chosen] @ keys.transpose(1, 2) * scale
        causal = torch.ones(len(chosen), len(chosen), dtype=torch.bool).tril()
        attended = scores.masked_fill(~causal, float("-inf")).softmax(-1) @ values
        padded = torch.zeros_like(x)
        padded[chosen] = linear("self_attn.o_proj", attended.transpose(0, 1).reshape(len(chosen), -1))
        x = x + padded
        hidden = _norm(x, w["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = torch.nn.functional.silu(linear("mlp.gate_proj", hidden))
        x = x + linear("mlp.down_proj", gate * linear("mlp.up_proj", hidden))
    last = _norm(x[-1], weights["norm.weight"].double(), config.rms_norm_eps)
    head = weights.get("lm_head.weight", weights["embed_tokens.weight"])
    return OracleResult(head.double() @ last, selections)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
