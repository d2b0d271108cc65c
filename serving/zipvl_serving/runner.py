"""Runs a bundle's graphs for whoever holds the requests: prefill of one prompt, one decode step of a batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zipvl_serving.arrays import Array
from zipvl_serving.kv_pool import CachedSequence, KVPool, block_tables
from zipvl_serving.manifest import Manifest
from zipvl_serving.method import MethodParams
from zipvl_serving.probes import forced_tokens, probe_positions
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs, Session


@dataclass(frozen=True)
class PromptResult:
    """What prefill learnt of one prompt."""

    tokens: int
    dense: bool
    """Whether selection was skipped, by request or because the prompt is below the break-even length."""
    counts: list[int]
    """Per layer, tokens in T."""
    index: Sequence[Array]
    """Per layer, int32 [count], the tokens of T."""
    logits: Array
    """float32 [vocabulary]."""

    @property
    def ratios(self) -> list[float]:
        return [count / self.tokens for count in self.counts]


class Runner:
    """One session and the method's settings that the bundle fixes."""

    def __init__(self, session: Session, manifest: Manifest, *, batch_invariant: bool = True) -> None:
        """batch_invariant: decode at least the session's `invariant_rows`.

        Of weights that are not packed ONNX Runtime multiplies one row by another routine than several, in another order
        of sums, and logits would differ in their last bits.
        """
        self.session = session
        self.manifest = manifest
        self.engine_s = 0.0
        """Seconds spent inside the session."""
        self._least_rows = session.invariant_rows if batch_invariant else 1

    def runs_dense(self, tokens: int, params: MethodParams) -> bool:
        """Whether a prompt keeps every token: by request, or because it is below the break-even length."""
        return params.dense or tokens < self.manifest.method.dense_below

    def most_rows(self, prompt: EncodedPrompt, params: MethodParams) -> list[int]:
        """Per layer, the most rows that this prompt can leave in the cache, known before it runs."""
        tokens, method = len(prompt.input_ids), self.manifest.method
        # The graph rounds ratio_max * tokens in float32: at a half it may go either way.
        chosen = int(params.ratio_max * tokens) + 1 + int(self._forced(prompt).sum())
        if self.runs_dense(tokens, params) or method.cache == "full":
            chosen = tokens
        layers = self.manifest.model.shape.layers
        return [tokens if layer < method.dense_layers else min(chosen, tokens) for layer in range(layers)]

    def prefill(
        self, prompt: EncodedPrompt, features: Array | None, params: MethodParams
    ) -> tuple[PromptResult, PrefillOutputs]:
        """Run a prompt over its image features [visual, hidden] (None without images)."""
        method, tokens = self.manifest.method, len(prompt.input_ids)
        dense = self.runs_dense(tokens, params)
        if dense:
            params = replace(params, ratio_min=1.0, ratio_max=1.0)
        inputs = PrefillInputs(
            input_ids=prompt.input_ids,
            position_ids=prompt.position_ids,
            probe_positions=probe_positions(tokens, method.probe_recent, method.probe_random, params.seed),
            forced=self._forced(prompt),
            tau=params.tau,
            ratio_min=params.ratio_min,
            ratio_max=params.ratio_max,
        )
        begun = time.perf_counter()
        outputs = self.session.prefill(inputs, features)
        self.engine_s += time.perf_counter() - begun
        return PromptResult(tokens, dense, outputs.counts.tolist(), outputs.index, outputs.logits), outputs

    def decode(
        self, pool: KVPool, cached: Sequence[CachedSequence], tokens: Sequence[int], positions: Sequence[int]
    ) -> Array:
        """Advance a batch by one token: feed each sequence its last one at its position and append the new rows.

        Returns logits float32 [batch, vocabulary]. Raises ZipvlError where the pool is full.
        """
        batch = len(cached)
        rows = list(range(batch)) + [0] * (self._least_rows - batch)
        tables, context = block_tables([cached[row] for row in rows])
        inputs = DecodeInputs(
            input_ids=np.array([tokens[row] for row in rows], dtype=np.int64),
            position_ids=np.array([positions[row] for row in rows], dtype=np.int64),
            key_pages=pool.keys,
            value_pages=pool.values,
            block_tables=tables,
            context=context,
        )
        begun = time.perf_counter()
        logits, keys, values = self.session.decode(inputs)
        self.engine_s += time.perf_counter() - begun
        pool.append(cached, keys, values)
        return logits[:batch]

    def _forced(self, prompt: EncodedPrompt) -> Array:
        method = self.manifest.method
        return forced_tokens(prompt.is_text, method.force_last, text=method.force_text)
