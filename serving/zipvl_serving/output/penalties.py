"""What the tokens of a sequence and the request itself do to the logits before a token is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from zipvl_serving.arrays import Array

# A stronger repetition penalty changes nothing, as no float32 logit comes near what it leaves, but overflows.
_STRONGEST = 1e200


class Penalties:
    """The penalties and the bias of one sequence; the arguments are SamplingParams' fields.

    It follows the sequence, so that what it costs per token does not grow with the prompt: from call to call
    `generated` grows at its end. Where it shrinks, or another array is the prompt, the count starts anew.

    active: whether there is anything to apply.
    """

    def __init__(self, repetition: float, presence: float, frequency: float, logit_bias: Mapping[int, float]) -> None:
        self._repetition = min(max(repetition, 1 / _STRONGEST), _STRONGEST)
        self._presence, self._frequency = presence, frequency
        self._logit_bias = logit_bias
        self._adds = presence != 0 or frequency != 0 or bool(logit_bias)
        self.active = repetition != 1 or self._adds
        self._prompt_ids: Array | None = None
        self._followed = 0
        self._counts: Counter[int] = Counter()
        # Per token of the vocabulary: whether prompt or answer has it, and what is added to its logit.
        self._seen = np.zeros(0, np.bool_)
        self._offsets = np.zeros(0, np.float64)

    def apply(self, logits: Array, prompt_ids: Array, generated: Sequence[int]) -> Array:
        """The scores float64 [vocab] that the logits float32 [vocab] become.

        prompt_ids: int64 [n]. First the repetition penalty, as Hugging Face defines it; then the presence and the
        frequency penalty, as OpenAI does, and the bias. -inf is a ban, which none of them lifts; ids outside the
        vocabulary have no effect.
        """
        scores = logits.astype(np.float64)
        self._follow(len(scores), prompt_ids, generated)
        if self._repetition != 1:
            ids = np.flatnonzero(self._seen)
            times = scores[ids]
            over = times / self._repetition
            times *= self._repetition
            # For a penalty above 1 the product is the lower one of negative logits, the quotient of positive ones.
            pick = np.minimum if self._repetition > 1 else np.maximum
            scores[ids] = pick(times, over, out=over)
        if self._adds:
            scores += self._offsets
        return scores

    def _follow(self, vocabulary: int, prompt_ids: Array, generated: Sequence[int]) -> None:
        """Take in what is new."""
        if prompt_ids is not self._prompt_ids or vocabulary != len(self._seen) or len(generated) < self._followed:
            self._start(vocabulary, prompt_ids)
        for token in generated[self._followed :]:
            if 0 <= token < vocabulary:
                self._counts[token] += 1
                self._seen[token] = True
                penalty = self._presence + self._frequency * self._counts[token]
                self._offsets[token] = self._logit_bias.get(token, 0.0) - penalty
        self._followed = len(generated)

    def _start(self, vocabulary: int, prompt_ids: Array) -> None:
        self._prompt_ids, self._followed = prompt_ids, 0
        self._counts.clear()
        self._seen = np.zeros(vocabulary, np.bool_)
        self._seen[prompt_ids[(prompt_ids >= 0) & (prompt_ids < vocabulary)]] = True
        self._offsets = np.zeros(vocabulary, np.float64)
        for token, bias in self._logit_bias.items():
            if token < vocabulary:
                self._offsets[token] = bias
