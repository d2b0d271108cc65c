"""From logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zipvl_serving.errors import InputError, ZipvlError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and how many.

    temperature: 0 takes the most likely token; anything above samples.
    top_k: only the k most likely tokens (and those that tie with the last of them); 0 for all.
    top_p: only the fewest most likely tokens that together have this probability; 1 for all.
    min_p: only tokens at least this fraction as likely as the most likely one; 0 for all.
    repetition_penalty: divides the positive and multiplies the negative logits of tokens seen before; 1 for none.
    seed: makes a run repeatable; None draws a fresh one.
    max_new_tokens: None for the bundle's default.

    Raises InputError, one line, naming a field outside its range, its value and the range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        self._require("temperature", _is_number(self.temperature) and self.temperature >= 0, "a number >= 0")
        self._require("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "a number in (0, 1]")
        self._require("top_k", _is_integer(self.top_k) and self.top_k >= 0, "an integer >= 0 (0: off)")
        self._require("min_p", _is_number(self.min_p) and 0 <= self.min_p < 1, "a number in [0, 1)")
        penalty = self.repetition_penalty
        self._require("repetition_penalty", _is_number(penalty) and penalty > 0, "a number > 0 (1: off)")
        seed = self.seed
        self._require("seed", seed is None or (_is_integer(seed) and seed >= 0), "an integer >= 0, or none")
        self._require(
            "max_new_tokens",
            self.max_new_tokens is None or (_is_integer(self.max_new_tokens) and self.max_new_tokens >= 1),
            "an integer >= 1, or none",
        )

    def _require(self, field: str, holds: bool, valid: str) -> None:
        if not holds:
            raise InputError(f"{field} is {getattr(self, field)!r}; valid: {valid}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Sampler:
    """Chooses the tokens of one sequence; the generator's state moves on by one draw per sampled token."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def sample(self, logits: NDArray[np.float32], seen: Sequence[int]) -> int:
        """The next token's id, from the logits float32 [vocab] (left unchanged) and the ids seen so far.

        `seen` is prompt and answer, read for the repetition penalty only; ids outside the vocabulary have no effect.
        The greedy choice is the highest logit, the lowest id among equals. Raises ZipvlError when a logit is NaN or
        +inf, or when all are -inf.
        """
        probabilities = self.distribution(logits, seen)
        if self.params.temperature == 0:
            return int(probabilities.argmax())
        cumulative = probabilities.cumsum()
        # The product may round up to the total itself: stay on the last token that has any probability.
        draw = min(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"),
                   np.searchsorted(cumulative, cumulative[-1]))  # fmt: skip
        return int(draw)

    def distribution(self, logits: NDArray[np.float32], seen: Sequence[int]) -> NDArray[np.float64]:
        """The probability of each token, float64 [vocab], 0 for those filtered out; one 1 when greedy.

        The filters run in Hugging Face's order: repetition penalty, temperature, top_k, top_p, min_p, each on what
        the one before it left. Errors as for `sample`.
        """
        peak = logits.max()
        if not np.isfinite(peak):  # max() carries a NaN through
            raise ZipvlError(f"the model returned unusable logits: the highest is {peak}")
        scores = self._penalised(logits, seen)
        if self.params.temperature == 0:
            probabilities = np.zeros(len(scores))
            probabilities[scores.argmax()] = 1
            return probabilities
        # With the peak taken off first, neither large logits nor a tiny temperature can overflow upwards.
        with np.errstate(over="ignore"):
            exponents = (scores - scores.max()) / self.params.temperature
        probabilities = np.exp(exponents)
        if 0 < self.params.top_k < len(probabilities):
            probabilities[exponents < np.partition(exponents, -self.params.top_k)[-self.params.top_k]] = 0
        if self.params.top_p < 1:
            probabilities[_outside_nucleus(probabilities, self.params.top_p)] = 0
        probabilities[probabilities < self.params.min_p * probabilities.max()] = 0
        return np.asarray(probabilities / probabilities.sum())

    def _penalised(self, logits: NDArray[np.float32], seen: Sequence[int]) -> NDArray[np.float64]:
        scores = logits.astype(np.float64)
        if self.params.repetition_penalty == 1:
            return scores
        ids = np.unique(np.asarray(seen, np.int64))
        ids = ids[(ids >= 0) & (ids < len(scores))]
        ids = ids[np.isfinite(scores[ids])]  # -inf is a ban, which no penalty lifts
        limit = np.finfo(np.float64).max
        with np.errstate(over="ignore"):
            times, over = scores[ids] * self.params.repetition_penalty, scores[ids] / self.params.repetition_penalty
        scores[ids] = np.where(scores[ids] < 0, times, over).clip(-limit, limit)
        return scores


def _outside_nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Ids of the tokens that the most likely ones, together `top_p` of the sum, can do without; never all of them."""
    ascending = np.argsort(-probabilities, kind="stable")[::-1]  # among equals the lowest id is kept longest
    tail = probabilities[ascending].cumsum()
    outside = int(np.count_nonzero(tail <= (1 - top_p) * tail[-1]))
    return np.array(ascending[: min(outside, len(ascending) - 1)])
