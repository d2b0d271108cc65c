"""The decoder, once: prefill with adaptive token selection and decode over pages, in the ops of zipvl_plugins.

Parameters carry Hugging Face's names, so a checkpoint's tensors map one to one. Token tensors have no batch
dimension: prefill is one request, because every request has its own T.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from zipvl_compile.models.spec import DecoderSpec, MethodSpec, Rope
from zipvl_plugins.gather_projection.reference import gather_projection
from zipvl_plugins.gather_rows.reference import gather_rows
from zipvl_plugins.paged_attention.reference import paged_attention
from zipvl_plugins.probe_scores.reference import probe_scores
from zipvl_plugins.projection_scatter.reference import projection_scatter
from zipvl_plugins.select_tokens.reference import select_tokens
from zipvl_plugins.sparse_attention.reference import sparse_attention


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


def rotary_table(rope: Rope, position_ids: torch.Tensor) -> torch.Tensor:
    """cos and sin of every token's angles, float32 [n, head_dim]: cosines in the first half, sines in the second."""
    if torch.compiler.is_exporting():
        frequencies = torch.tensor(rope.inverse_frequencies, dtype=torch.float32)
    else:
        frequencies = _frequencies(rope, position_ids.device)
    angles = position_ids.float().unsqueeze(1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * rope.attention_factor


@functools.cache
def _frequencies(rope: Rope, device: torch.device) -> torch.Tensor:
    """Copied to a device once: a step that is captured must not read the host's memory."""
    return torch.tensor(rope.inverse_frequencies, dtype=torch.float32, device=device)


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Apply RoPE: x [n, heads, head_dim], table [n, head_dim] as rotary_table makes it."""
    half = x.shape[-1] // 2
    per_head = table.unsqueeze(1).to(x.dtype)
    cos, sin = per_head[..., :half], per_head[..., half:]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """The four projections of one layer; prefill and decode use them in their own ways."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden, queries, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(spec.hidden, keys, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(spec.hidden, keys, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(queries, spec.hidden, bias=spec.output_bias)
        self.head_dim, self.scale = spec.head_dim, spec.softmax_scale

    def heads(self, projected: torch.Tensor) -> torch.Tensor:
        """[n, heads * head_dim] -> [n, heads, head_dim]."""
        # An explicit -1 stays in the graph: rows of T are fewer than the n that tracing would write here.
        return projected.view(-1, projected.shape[-1] // self.head_dim, self.head_dim)

    def dense(self, x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attention of every token to every earlier one: output [n, hidden], key and value [n, kv_heads, head_dim]."""
        count = torch.full((1,), x.shape[0], dtype=torch.int32, device=x.device)
        query, key = (rotate(self.heads(project(x)), table) for project in (self.q_proj, self.k_proj))
        value = self.heads(self.v_proj(x))
        return self.o_proj(sparse_attention(query, key, value, count, self.scale)), key, value


class MLP(nn.Module):
    """Gated SiLU feed-forward."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden, spec.intermediate, bias=spec.mlp_bias)
        self.up_proj = nn.Linear(spec.hidden, spec.intermediate, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate, spec.hidden, bias=spec.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.self_attn = Attention(spec)
        self.mlp = MLP(spec)
        self.input_layernorm = RMSNorm(spec.hidden, spec.norm_eps)
        self.post_attention_layernorm = RMSNorm(spec.hidden, spec.norm_eps)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Weights of a Llama-family decoder; `Prefill` and `Decode` run them."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocabulary, spec.hidden)
        self.layers = nn.ModuleList(DecoderLayer(spec) for _ in range(spec.layers))
        self.norm = RMSNorm(spec.hidden, spec.norm_eps)
        if not spec.tied_embeddings:
            self.lm_head = nn.Linear(spec.hidden, spec.vocabulary, bias=False)

    def embed(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """Embeddings [n, hidden] with the k-th image token replaced by the k-th image feature."""
        is_image = input_ids == self.spec.image_token
        visual = image_features.index_select(0, (is_image.long().cumsum(0) - 1).clamp(min=0))
        return torch.where(is_image.unsqueeze(1), visual, self.embed_tokens(input_ids))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> float32 [rows, vocabulary]."""
        head = self.embed_tokens if self.spec.tied_embeddings else self.lm_head
        return F.linear(self.norm(x), head.weight).float()


class Prefill(nn.Module):
    """One request's prompt: logits of the last token and, per layer, the KV of its important tokens."""

    def __init__(self, decoder: Decoder, method: MethodSpec) -> None:
        super().__init__()
        self.decoder = decoder
        self.method = method

    def forward(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor,
        position_ids: torch.Tensor,
        probe_positions: torch.Tensor,
        forced: torch.Tensor,
        tau: torch.Tensor,
        ratio_min: torch.Tensor,
        ratio_max: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Run the prompt.

        input_ids, position_ids int64 [n]; image_features [visual, hidden], in the order of the image tokens, at least
        one row (unused where the prompt has no image token); probe_positions int64 [m], ascending places in 0..n-1,
        the last token among them; forced bool [n]; tau, ratio_min, ratio_max float32 [1].
        Returns logits [vocabulary], counts int32 [layers], then per layer index int32 [n], key and value
        [rows, kv_heads, head_dim].
        """
        spec, counts, kept = self.decoder.spec, [], []
        x = self.decoder.embed(input_ids, image_features)
        table = rotary_table(spec.rope, position_ids)
        for number, layer in enumerate(self.decoder.layers):
            normed = layer.input_layernorm(x)
            if number < self.method.dense_layers:
                attended, key, value = layer.self_attn.dense(normed, table)
                count = torch.full((1,), x.shape[0], dtype=torch.int32, device=x.device)
                index = torch.arange(x.shape[0], dtype=torch.int32, device=x.device)
            else:
                attended, index, count, key, value = self.zipvl_attention(
                    layer.self_attn, normed, table, probe_positions, forced, tau, ratio_min, ratio_max
                )
            x = x + attended
            if number == spec.layers - 1:
                x = x[-1:]  # only the last token's logits are wanted
            x = layer.feed_forward(x)
            counts.append(count)
            kept += [index, key, value]
        return self.decoder.logits(x)[0], torch.cat(counts), *kept

    def zipvl_attention(
        self,
        attention: Attention,
        x: torch.Tensor,
        table: torch.Tensor,
        probe_positions: torch.Tensor,
        forced: torch.Tensor,
        tau: torch.Tensor,
        ratio_min: torch.Tensor,
        ratio_max: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Algorithm 1 with lazy projections: Q, V and the output projection of tokens outside T are never computed."""
        key = rotate(attention.heads(attention.k_proj(x)), table)
        probe_rows, probe_table = (t.index_select(0, probe_positions) for t in (x, table))
        probe = rotate(attention.heads(attention.q_proj(probe_rows)), probe_table)
        scores = probe_scores(probe, key, probe_positions, ratio_min, attention.scale)
        index, count = select_tokens(*scores, forced, tau, ratio_min, ratio_max)
        kept_table = gather_rows(table, index, count)
        query = gather_projection(x, attention.q_proj.weight, attention.q_proj.bias, index, count)
        query = rotate(attention.heads(query), kept_table)
        kept_key = gather_rows(key, index, count)
        if self.method.keep_full_cache:
            value = attention.heads(attention.v_proj(x))
            kept_value = gather_rows(value, index, count)
        else:
            projected = gather_projection(x, attention.v_proj.weight, attention.v_proj.bias, index, count)
            kept_value = attention.heads(projected)
        attended = sparse_attention(query, kept_key, kept_value, count, attention.scale)
        output = projection_scatter(attended, attention.o_proj.weight, attention.o_proj.bias, index, count)
        if self.method.keep_full_cache:
            return output, index, count, key, value
        return output, index, count, kept_key, kept_value


class DensePrefill(nn.Module):
    """One request's prompt, every token kept in every layer."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, input_ids: torch.Tensor, image_features: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Inputs as Prefill's; returns logits [vocabulary], then per layer key and value [n, kv_heads, head_dim]."""
        x, kept = self.decoder.embed(input_ids, image_features), []
        table = rotary_table(self.decoder.spec.rope, position_ids)
        for number, layer in enumerate(self.decoder.layers):
            attended, *rows = layer.self_attn.dense(layer.input_layernorm(x), table)
            x = x + attended
            if number == self.decoder.spec.layers - 1:
                x = x[-1:]  # only the last token's logits are wanted
            x = layer.feed_forward(x)
            kept += rows
        return self.decoder.logits(x)[0], *kept


class Decode(nn.Module):
    """One step of a batch of sequences over paged KV."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        key_pages: torch.Tensor,
        value_pages: torch.Tensor,
        block_tables: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Advance every sequence by one token.

        input_ids, position_ids int64 [batch], positions in the uncompressed prompt; key_pages, value_pages
        [pages, page_size, kv_heads, head_dim]; block_tables int32 [layers, batch, blocks]; context int32
        [layers, batch], rows in the cache. Returns logits [batch, vocabulary] and the new rows, keys and values
        [layers, batch, kv_heads, head_dim], which the caller appends.
        """
        x = self.decoder.embed_tokens(input_ids)
        table = rotary_table(self.decoder.spec.rope, position_ids)
        keys, values = [], []
        for number, layer in enumerate(self.decoder.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(x)
            query, key = (rotate(attention.heads(p(normed)), table) for p in (attention.q_proj, attention.k_proj))
            value = attention.heads(attention.v_proj(normed))
            attended = paged_attention(
                query, key, value, key_pages, value_pages, block_tables[number], context[number], attention.scale
            )
            x = layer.feed_forward(x + attention.o_proj(attended))
            keys.append(key)
            values.append(value)
        return self.decoder.logits(x), torch.stack(keys), torch.stack(values)
