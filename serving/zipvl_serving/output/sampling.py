"""From logits to the next token."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from zipvl_serving.arrays import Array
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.output.penalties import Penalties

MOST_STOPS = 16
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and how many.

    temperature: 0 takes the most likely token; anything above samples.
    top_k: only the k most likely tokens (and those that tie with the last of them); 0 for all.
    top_p: only the fewest most likely tokens that together have this probability; 1 for all.
    min_p: only tokens at least this fraction as likely as the most likely one; 0 for all.
    repetition_penalty: divides the positive and multiplies the negative logits of tokens that the prompt or the answer
        has; 1 for none.
    presence_penalty: subtracted from the logits of tokens that the answer has; 0 for none.
    frequency_penalty: subtracted from a token's logit for each time that the answer has it; 0 for none.
    logit_bias: added to the logits of these token ids.
    seed: makes a run repeatable; None draws a fresh one.
    max_new_tokens: None for the bundle's default.
    stop: texts that end the answer.
    ignore_eos: go on after the model's end token.
    logprobs: the log-probability of every token is returned, and this many of the likeliest; None for none.

    Raises InputError, one line, naming a field outside its range, its value and the range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._require("temperature", _is_number(self.temperature) and self.temperature >= 0, "a number >= 0")
        self._require("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "a number in (0, 1]")
        self._require("top_k", _is_integer(self.top_k) and self.top_k >= 0, "an integer >= 0 (0: off)")
        self._require("min_p", _is_number(self.min_p) and 0 <= self.min_p < 1, "a number in [0, 1)")
        penalty = self.repetition_penalty
        self._require("repetition_penalty", _is_number(penalty) and penalty > 0, "a number > 0 (1: off)")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            self._require(name, _is_number(value) and -2 <= value <= 2, "a number in [-2, 2] (0: off)")
        self._require_logit_bias()
        seed = self.seed
        self._require("seed", seed is None or (_is_integer(seed) and seed >= 0), "an integer >= 0, or none")
        most = self.max_new_tokens
        self._require("max_new_tokens", most is None or (_is_integer(most) and most >= 1), "an integer >= 1, or none")
        holds = isinstance(self.stop, tuple) and all(isinstance(text, str) and text for text in self.stop)
        self._require("stop", holds and len(self.stop) <= MOST_STOPS, f"at most {MOST_STOPS} texts, none of them empty")
        self._require("ignore_eos", isinstance(self.ignore_eos, bool), "true or false")
        top = self.logprobs
        holds = top is None or (_is_integer(top) and 0 <= top <= MOST_LOGPROBS)
        self._require("logprobs", holds, f"an integer from 0 to {MOST_LOGPROBS}, or none")

    def _require_logit_bias(self) -> None:
        valid = "token ids (integers >= 0), each with a number in [-100, 100]"
        self._require("logit_bias", isinstance(self.logit_bias, Mapping), valid)
        for token, bias in self.logit_bias.items():
            if not (_is_integer(token) and token >= 0 and _is_number(bias) and -100 <= bias <= 100):
                _refuse("logit_bias", {token: bias}, valid)

    def _require(self, name: str, holds: bool, valid: str) -> None:
        if not holds:
            _refuse(name, getattr(self, name), valid)


def _refuse(name: str, value: object, valid: str) -> None:
    raise InputError(f"{name} is {reprlib.repr(value)}; valid: {valid}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token, before penalties, bias and temperature; natural logarithms.

    top: (token id, log-probability) of the likeliest tokens, descending, the lower id first among equals. Tokens that
        the model rules out (a logit of -inf) are not among them, so it can be shorter than was asked for.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Sampler:
    """Chooses the tokens of one sequence; the generator's state moves on by one draw per sampled token.

    It follows the sequence for the penalties: from call to call the prompt is the same array, and `generated` grows.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._penalties = Penalties(
            params.repetition_penalty, params.presence_penalty, params.frequency_penalty, params.logit_bias
        )

    def sample(self, logits: Array, prompt_ids: Array, generated: Sequence[int]) -> int:
        """The next token's id.

        logits: float32 [vocab], left unchanged. prompt_ids: int64 [n]. generated: the answer's tokens so far. The
        tokens are read for the penalties only; ids outside the vocabulary have no effect. The greedy choice is the
        highest logit after penalties and bias, the lowest id among equals. Raises ZipvlError when a logit is NaN or
        +inf, or when all are -inf.
        """
        if self.params.temperature == 0:
            return self._scores(logits, prompt_ids, generated)[1]
        ids, weights = self.candidates(logits, prompt_ids, generated)
        cumulative = weights.cumsum(out=weights)
        total = cumulative[-1]
        at = cumulative.searchsorted(self._random.random() * total, "right")
        if at == len(cumulative):  # the product rounded up to the total: stay on the last token with any probability
            at = cumulative.searchsorted(total)
        return int(ids[at])

    def candidates(self, logits: Array, prompt_ids: Array, generated: Sequence[int]) -> tuple[Array, Array]:
        """The tokens to draw from, ids int64 [m] ascending, and their weights float64 [m], the likeliest's 1.

        Penalties and bias come first, then the filters in Hugging Face's order: temperature, top_k, top_p, min_p, each
        on what the one before it left. Greedy leaves one token. Arguments and errors as for `sample`.
        """
        params = self.params
        scores, best = self._scores(logits, prompt_ids, generated)
        if params.temperature == 0:
            return np.array([best]), np.ones(1)
        peak, ids = scores[best], _all_ids(len(scores))
        if 0 < params.top_k < len(scores):
            ids = np.flatnonzero(scores >= _kth_largest(scores, params.top_k))
            scores = scores[ids]
        weights = np.subtract(scores, peak, dtype=np.float64)  # so that no exponent is above 0
        weights /= max(params.temperature, _COLDEST)
        np.exp(weights, out=weights)
        if params.top_p < 1:
            inside = nucleus(weights, params.top_p)
            ids, weights = ids[inside], weights[inside]
        if params.min_p > 0:
            inside = np.flatnonzero(weights >= params.min_p)
            ids, weights = ids[inside], weights[inside]
        return ids, weights

    def _scores(self, logits: Array, prompt_ids: Array, generated: Sequence[int]) -> tuple[Array, int]:
        """The logits after penalties and bias, and the first of the highest."""
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):  # argmax stops at a NaN
            raise ZipvlError(f"the model returned unusable logits: the highest is {logits[best]}")
        if not self._penalties.active:
            return logits, best
        scores = self._penalties.apply(logits, prompt_ids, generated)
        return scores, int(scores.argmax())

    def logprob(self, logits: Array, token: int) -> TokenLogprob | None:
        """How likely the model found `token`, from the same logits float32 [vocab]; None where nobody asked for it."""
        count = self.params.logprobs
        if count is None:
            return None
        logprobs = logits.astype(np.float64)
        logprobs -= logprobs.max()
        logprobs -= math.log(np.exp(logprobs).sum())
        return TokenLogprob(token, float(logprobs[token]), _largest(logprobs, count))


_COLDEST = 1e-60
"""Colder still changes nothing, as any two different logits are too far apart already, but overflows."""


@lru_cache(maxsize=4)
def _all_ids(vocabulary: int) -> Array:
    ids = np.arange(vocabulary)
    ids.setflags(write=False)
    return ids


def nucleus(weights: Array, top_p: float) -> Array:
    """The fewest largest weights that together are `top_p` of the sum: their places, int64 [m], ascending.

    weights: float64 [n], none negative. Among equals the first come first; one weight is always inside.
    """
    undecided, total = weights, weights.sum()
    budget = (1 - top_p) * total  # what may stay outside
    # So that only few are sorted: those below the mean are outside where together they fit in the budget, else the
    # others are inside.
    for _ in range(_MOST_SPLITS):
        if len(undecided) <= _FEW:
            break
        is_heavy = undecided >= total / len(undecided)
        heavy = undecided[is_heavy]
        if len(heavy) in (0, len(undecided)):
            break
        heavy_total = heavy.sum()
        light_total = total - heavy_total
        if light_total <= budget:
            budget -= light_total
            undecided, total = heavy, heavy_total
        else:
            undecided, total = undecided[~is_heavy], light_total
    ascending = np.sort(undecided)
    outside = min(int(ascending.cumsum().searchsorted(budget, "right")), len(ascending) - 1)
    smallest = ascending[outside]
    is_inside = weights >= smallest
    equals_outside = outside - int(ascending.searchsorted(smallest))
    if equals_outside:
        is_inside[np.flatnonzero(weights == smallest)[-equals_outside:]] = False
    return np.flatnonzero(is_inside)


_FEW = 256
"""So many weights sort as quickly as they split."""

_MOST_SPLITS = 32
"""Weights that differ by orders of magnitude split unevenly; after so many rounds sorting is the surer way."""


def _kth_largest(values: Array, k: int) -> float:
    """The k-th largest of the values [n], 1 <= k <= n."""
    columns = values[: len(values) // _ROWS * _ROWS].reshape(_ROWS, -1)
    if columns.shape[1] > 4 * k:
        # k columns have a value that is no less than the k-th largest of their maxima: nothing below it can be meant.
        values = values[values >= np.partition(columns.max(axis=0), -k)[-k]]
    return np.partition(values, -k)[-k]


_ROWS = 32


def _largest(values: Array, count: int) -> list[tuple[int, float]]:
    """(place, value) of the `count` largest values above -inf, descending, the first place first among equals."""
    if count == 0:
        return []
    places = np.flatnonzero(values > -np.inf)
    if count < len(places):
        places = np.flatnonzero(values >= _kth_largest(values, count))
    order = places[np.argsort(-values[places], kind="stable")][:count]
    return list(zip(order.tolist(), values[order].tolist(), strict=True))
