"""A session that computes nothing: counts and tokens follow from the prompt, so that tests know them beforehand."""

from __future__ import annotations

import threading

import numpy as np

from helpers.clients import PATIENCE_S
from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.manifest import Manifest
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs, Session


class FakeSession(Session):
    """The next token after `t` at position `q` is (7 t + q) mod the vocabulary, whatever else is in the batch.

    Layer l keeps the first max(1, n // (l + 2)) tokens, or all of a dense prompt; keys hold the token ids.
    """

    def __init__(self, bundle: Bundle, **manifest: dict[str, object]) -> None:
        super().__init__(Bundle(bundle.path, changed(bundle.manifest, **manifest)))
        self.shape = self.bundle.manifest.model.shape
        self.prefilled: list[int] = []
        """Lengths of the prompts that ran."""
        self.batches: list[int] = []
        """Rows of each decode step."""
        self.fail_prefill_at: int | None = None
        self.fail_decode = False
        self.poisoned: int | None = None
        """A token after which the logits are NaN."""

    def kept(self, tokens: int, layer: int, ratio_min: float = 0.0) -> int:
        return tokens if ratio_min >= 1 else max(1, tokens // (layer + 2))

    def vision(self, pixel_values: Array) -> Array:
        return np.zeros((len(pixel_values) * self.shape.tokens_per_image, self.shape.hidden), np.float32)

    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        tokens = len(inputs.input_ids)
        if tokens == self.fail_prefill_at:
            raise RuntimeError("prefill broke")
        self.prefilled.append(tokens)
        index, cache = [], []
        for layer in range(self.shape.layers):
            count = self.kept(tokens, layer, inputs.ratio_min)
            index.append(np.arange(count, dtype=np.int32))
            rows = np.broadcast_to(
                inputs.input_ids[:count, None, None], (count, self.shape.kv_heads, self.shape.head_dim)
            )
            cache.append((rows.astype(np.float32), -rows.astype(np.float32)))
        counts = np.array([len(rows) for rows in index], dtype=np.int32)
        return PrefillOutputs(self._logits(inputs.input_ids[-1:], np.array([tokens - 1]))[0], counts, index, cache)

    def decode(self, inputs: DecodeInputs) -> tuple[Array, Array, Array]:
        if self.fail_decode:
            raise RuntimeError("decode broke")
        batch = len(inputs.input_ids)
        self.batches.append(batch)
        assert inputs.block_tables.shape[:2] == inputs.context.shape == (self.shape.layers, batch)
        rows = np.broadcast_to(
            inputs.input_ids[None, :, None, None], (self.shape.layers, batch, self.shape.kv_heads, self.shape.head_dim)
        ).astype(np.float32)
        return self._logits(inputs.input_ids, inputs.position_ids), rows, -rows

    def next_token(self, token: int, position: int) -> int:
        return (7 * token + position) % self.shape.vocabulary

    def _logits(self, ids: Array, positions: Array) -> Array:
        logits = np.zeros((len(ids), self.shape.vocabulary), np.float32)
        for row, (token, position) in enumerate(zip(ids.tolist(), positions.tolist(), strict=True)):
            logits[row, self.next_token(token, position)] = 5.0
            if token == self.poisoned:
                logits[row] = np.nan
        return logits

    def answer(self, prompt: EncodedPrompt, tokens: int) -> list[int]:
        """The greedy answer of `tokens` tokens."""
        out, token = [], int(prompt.input_ids[-1])
        for step in range(tokens):
            token = self.next_token(token, len(prompt.input_ids) - 1 + step)
            out.append(token)
        return out


class Gate(FakeSession):
    """A fake session whose decode waits until the test lets it on."""

    def __init__(self, bundle: Bundle, **manifest: dict[str, object]) -> None:
        super().__init__(bundle, **manifest)
        self.open, self.reached = threading.Event(), threading.Event()

    def decode(self, inputs: DecodeInputs) -> tuple[Array, Array, Array]:
        self.reached.set()
        assert self.open.wait(PATIENCE_S)
        return super().decode(inputs)


def changed(manifest: Manifest, **parts: dict[str, object]) -> Manifest:
    """A manifest with some fields of its parts changed: changed(m, limits={"max_batch": 2})."""
    return manifest.model_copy(
        update={name: getattr(manifest, name).model_copy(update=fields) for name, fields in parts.items()}
    )


def text_prompt(ids: list[int]) -> EncodedPrompt:
    """A prompt without images."""
    array = np.array(ids, dtype=np.int64)
    return EncodedPrompt(
        "", array, np.ones(len(ids), bool), np.arange(len(ids), dtype=np.int64), np.zeros((0, 3, 1, 1), np.float32)
    )
