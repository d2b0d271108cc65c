"""Times are compared where the work is the same: which prompts are run, and what both sides make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict

from zipvl_compile.gate.errors import GateError
from zipvl_compile.gate.process import Runs, Sampler
from zipvl_serving.errors import InputError

SAMPLE_S: Final = 0.02
"""Seconds that one sample should take: short, so that a slow spell of the machine covers both halves of a pair."""
_MOST_RUNS = 16
_WARM_UP = 2


class Work(BaseModel):
    """What a run of one prompt does, whatever time it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int
    """Of the prompt."""
    kept: tuple[int, ...]
    """Of them, per layer."""
    text: str
    """The answer."""

    @classmethod
    def of(cls, runs: Runs) -> Work:
        return cls(tokens=runs.tokens, kept=runs.kept, text=runs.text)


@dataclass(frozen=True)
class Prompt:
    """A prompt that every side runs.

    length: the tokens that were asked for. runs: how many of them make a sample. work: of each side, by its name.
    notes: what the sides make of it differently.
    """

    length: int
    runs: int
    work: dict[str, Work]
    notes: list[str]

    @property
    def tokens(self) -> int:
        """Those that it has."""
        return next(iter(self.work.values())).tokens


def prepare(sides: Mapping[str, Sampler], lengths: Sequence[int]) -> list[Prompt]:
    """Warm every side up, and see what each length comes to.

    Raises GateError where the sides do not run the same tokens, InputError where two lengths come to one prompt.
    """
    prompts: list[Prompt] = []
    for length in lengths:
        for side in sides.values():
            side.runs(length, _WARM_UP)
        found = {name: side.runs(length, _WARM_UP) for name, side in sides.items()}
        slowest = max(min(runs.seconds["ttft"]["wall"]) for runs in found.values())
        count = max(1, min(_MOST_RUNS, math.ceil(SAMPLE_S / max(slowest, 1e-9))))
        work = {name: Work.of(runs) for name, runs in found.items()}
        prompt = Prompt(length, count, work, differences(work, length))
        for other in prompts:
            if other.tokens == prompt.tokens:
                raise InputError(
                    f"--lengths: {other.length} and {length} come to one prompt, of {prompt.tokens} tokens: frames are "
                    "whole; leave one out"
                )
        prompts.append(prompt)
    return prompts


def differences(work: Mapping[str, Work], length: int) -> list[str]:
    """Lines on what the sides make of one prompt differently; GateError where they do not have one prompt."""
    (one, first), *others = work.items()
    lines = []
    for other, second in others:
        if first.tokens != second.tokens:
            raise GateError(
                f"the prompt of about {length} tokens has {first.tokens} on {one} and {second.tokens} on {other}: "
                "their times are not of the same work; image tokens or the chat template differ"
            )
        if first.kept != second.kept:
            kept = " and ".join(f"{list(each.kept)} on {name}" for name, each in ((one, first), (other, second)))
            lines.append(f"of {first.tokens} tokens, layers keep {kept}: their times are of different selections")
        if first.text != second.text:
            lines.append(f"to {first.tokens} tokens, {one} answers {first.text!r} and {other} {second.text!r}")
    return lines
