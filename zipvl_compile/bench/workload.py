"""A workload: what to measure, as one validated and immutable value. docs/benchmarks.md explains every key."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from zipvl_compile.recipe.schema import clash, parse_size
from zipvl_compile.recipe.source import show

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

Number = TypeVar("Number", int, float)
ModeKind = Literal["dense", "transformers", "tau", "forced_ratio", "fixed_ratio"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Mode(_Part):
    """One way to run a prompt.

    dense: every token, on the best dense graph that the backend has. transformers: the same weights in Hugging Face
    transformers with SDPA attention (ttft only). tau: ZipVL. forced_ratio: every layer keeps this share, whatever the
    attention says, to study cost on random weights. fixed_ratio: the same on a learned model: the fixed-ratio baseline.
    """

    WRITTEN: ClassVar[str] = "dense, transformers, tau: X, forced_ratio: X, fixed_ratio: X"

    kind: ModeKind
    value: Share | None = None

    @property
    def name(self) -> str:
        shown = f"{self.value:.4g}".removeprefix("0") if self.value is not None else ""
        return {
            "dense": "dense",
            "transformers": "transformers SDPA",
            "tau": f"zipvl tau {shown}",
            "forced_ratio": f"zipvl forced {shown}",
            "fixed_ratio": f"fixed ratio {shown}",
        }[self.kind]

    @property
    def method(self) -> dict[str, Any]:
        """What it says of the method, in the names that a request has; nothing that matters is left to defaults.

        A tau alone decides how much is kept: bounds that a bundle sets on the ratio do not hold.
        """
        if self.kind in ("dense", "transformers"):
            return {"dense": True}
        if self.kind == "tau":
            return {"tau": self.value, "ratio_min": 0.0, "ratio_max": 1.0}
        return {"ratio_min": self.value, "ratio_max": self.value}


def _mode(value: object) -> object:
    """`dense`, `transformers`, or one of {tau: .975}, {forced_ratio: .37}, {fixed_ratio: .5}."""
    plain, valued = ("dense", "transformers"), ("tau", "forced_ratio", "fixed_ratio")
    if isinstance(value, Mode):
        return value
    if isinstance(value, str) and value in plain:
        return {"kind": value}
    if isinstance(value, dict) and set(value) == {"kind", "value"}:
        return value
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in valued:
        kind, share = next(iter(value.items()))
        if isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1:
            return {"kind": kind, "value": float(share)}
        raise ValueError(f"{kind}: {show(share)} is out of range; must be > 0 and <= 1")
    raise ValueError(f"{show(value)} is no mode; valid: {Mode.WRITTEN}")


def _ascending(values: list[Number]) -> list[Number]:
    if values != sorted(set(values)):
        raise ValueError("must ascend, each value once")
    return values


def _budget(value: object) -> object:
    """A size, or a share where the number has a fraction."""
    if isinstance(value, float) and 0 < value <= 1:
        return value
    try:
        return parse_size(value)
    except ValueError:
        raise ValueError(
            f"{show(value)} is no budget; must be bytes, a size such as 256MiB, or a share of this machine's memory "
            "> 0.0 and <= 1.0"
        ) from None


Ascending = Annotated[list[Count], Field(min_length=1), AfterValidator(_ascending)]
AscendingRates = Annotated[list[Seconds], Field(min_length=1), AfterValidator(_ascending)]
Modes = Annotated[list[Annotated[Mode, BeforeValidator(_mode)]], Field(min_length=1)]


class _Workload(_Part):
    NO_TRANSFORMERS: ClassVar[str | None] = None
    """Why transformers is no mode of this kind; None where it is one."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Names the results.")
    modes: Modes = Field(description="What to compare; the first is the baseline.")
    seed: int = Field(default=0, ge=0, description="Of inputs, probes and arrivals.")

    @field_validator("modes")
    @classmethod
    def _different(cls, modes: list[Mode]) -> list[Mode]:
        names = [mode.name for mode in modes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"mode {name!r} is listed twice; keep one")
        return modes

    @field_validator("modes")
    @classmethod
    def _possible(cls, modes: list[Mode]) -> list[Mode]:
        if cls.NO_TRANSFORMERS and any(mode.kind == "transformers" for mode in modes):
            raise ValueError(f"transformers {cls.NO_TRANSFORMERS}; it is a mode of ttft")
        return modes


class Accuracy(_Part):
    """Questions of the demo's tasks, asked over inputs of each length; for the demo model only."""

    tasks: list[Literal["color", "count"]] = Field(default=["color"], min_length=1)
    questions: Count = 20


class TTFT(_Workload):
    """Time to the first token of one request alone, by input length."""

    kind: Literal["ttft"]
    lengths: Ascending = Field(
        description="Input lengths in tokens, ascending; of scenes, visual tokens, rounded up to whole frames."
    )
    input: Literal["random", "scenes"] = Field(
        default="random",
        description="`random` token ids, or multi-frame `scenes` of the demo through its vision tower.",
    )
    rounds: Count = Field(default=10, description="Samples of every mode at every length, in ABBA order.")
    warm_up: int = Field(default=1, ge=0, description="Runs of every mode at every length that are not counted.")
    dense_below: int | None = Field(
        default=None,
        ge=0,
        description="Run shorter inputs dense; null is the bundle's own, 0 shows what selection costs on any length.",
    )
    breakdown: int = Field(default=3, ge=0, description="Runs of every cell to profile op by op, interleaved too.")
    accuracy: Accuracy | None = Field(default=None, description="Ask questions too (input: scenes).")

    @field_validator("accuracy")
    @classmethod
    def _of_scenes(cls, value: Accuracy | None, info: ValidationInfo) -> Accuracy | None:
        if value is not None and info.data.get("input") == "random":
            raise ValueError("nobody can ask about random tokens; set input: scenes or remove it")
        return value


class Throughput(_Workload):
    """The most sequences that one KV budget holds, and how fast they decode together."""

    NO_TRANSFORMERS = "has no paged cache to fill"

    kind: Literal["throughput"]
    lengths: Ascending = Field(
        description="Input lengths in tokens, ascending; of scenes, visual tokens, rounded up to whole frames."
    )
    input: Literal["random", "scenes"] = "random"
    kv_budget: Annotated[int | float, BeforeValidator(_budget)] = Field(
        description="Of each mode: bytes, a size such as `256MiB`, or a share of this machine's memory such as 0.05."
    )
    new_tokens: Count = Field(default=64, description="Tokens of every answer.")
    max_batch: Count = Field(default=1024, description="Stop admitting here even if more would fit.")
    prefills: Count = Field(default=6, description="Samples of prefill of every mode, in ABBA order.")
    steps: Count = Field(default=5, description="Decode steps of a sample.")
    rounds: Count = Field(default=10, description="Samples of decode of every mode, in ABBA order.")
    warm_up: int = Field(default=1, ge=0, description="Prefills and samples of decode that are not counted.")

    @model_validator(mode="after")
    def _within_answers(self) -> Throughput:
        """Every sequence stays in the batch for the whole measurement, and claims what a real one would."""
        wanted, last = self.steps * (self.rounds + self.warm_up), self.new_tokens - 1
        if wanted >= last:
            raise clash(
                f"steps x (rounds + warm_up) is {wanted}; must be below new_tokens - 1, which is {last}: no sequence "
                "may end while it is measured",
                ("steps",), ("rounds",), ("new_tokens",), ("warm_up",),
            )  # fmt: skip
        return self


class Arrivals(_Part):
    """When requests come: `closed` keeps a number of them running, the others come by a rate whatever has ended."""

    process: Literal["closed", "constant", "poisson", "gamma"] = "closed"
    rate: Seconds | None = Field(default=None, description="Requests a second, of an open process.")
    burstiness: Seconds = Field(default=1.0, description="Shape of gamma: below 1 is burstier than poisson.")


class Lengths(_Part):
    """A distribution of whole numbers: constant (low), uniform (low to high) or lognormal clipped to them."""

    distribution: Literal["constant", "uniform", "lognormal"] = "constant"
    low: Count
    high: Count | None = None
    sigma: Seconds = 0.5

    @model_validator(mode="after")
    def _bounded(self) -> Lengths:
        if self.distribution != "constant" and (self.high is None or self.high < self.low):
            what = f"high is {show(self.high)}, low {self.low}; a {self.distribution} distribution needs high >= low"
            raise clash(what, ("high",), ("low",), ("distribution",))
        return self


class SLO(_Part):
    """What a request must keep to count as good."""

    ttft_s: Seconds | None = None
    itl_s: Seconds | None = Field(default=None, description="Mean inter-token latency of the request.")
    e2e_s: Seconds | None = None


class ServingLoad(_Workload):
    """Requests to a running server: latency percentiles, tokens/s and goodput."""

    NO_TRANSFORMERS = "cannot be asked of a server"

    kind: Literal["serving"]
    arrivals: Arrivals = Field(default_factory=Arrivals)
    concurrency: Ascending = Field(default=[1, 4, 16], description="Sweep of a closed process.")
    rates: AscendingRates | None = Field(default=None, description="Sweep of an open process, requests a second.")
    requests: Count = Field(default=120, description="Of every mode at every point, all rounds together.")
    warm_up: int = Field(default=4, ge=0, description="Requests before each point that are not counted.")
    input: Literal["noise", "scenes"] = Field(
        default="noise",
        description="`noise` of 336 x 336 pixels and a plain question, or `scenes` of the demo with theirs.",
    )
    images: Lengths = Field(default=Lengths(low=1), description="Pictures of a request.")
    new_tokens: Lengths = Field(default=Lengths(low=32), description="Tokens of an answer.")
    rounds: Count = Field(default=6, description="Passes over all modes at each point, in ABBA order.")
    slo: SLO = Field(default_factory=SLO)
    timeout_s: Seconds = Field(default=120.0, description="Of one request.")

    @model_validator(mode="after")
    def _swept(self) -> ServingLoad:
        """A closed process is swept by its concurrency, an open one by rates or its one rate."""
        process, rate = self.arrivals.process, self.arrivals.rate
        named = ("rates",), ("arrivals", "rate")
        if process == "closed" and (self.rates or rate):
            what = "a closed process has no rate; set arrivals.process to constant, poisson or gamma, or remove it"
            raise clash(what, *named)
        if process != "closed" and not (self.rates or rate):
            what = f"a {process} process needs rates, or arrivals.rate, in requests a second"
            raise clash(what, ("arrivals", "process"))
        if self.rates and rate:
            raise clash("rates and arrivals.rate say the same; keep one", *named)
        return self

    @model_validator(mode="after")
    def _enough(self) -> ServingLoad:
        if self.requests < self.rounds:
            what = f"requests is {self.requests}, rounds {self.rounds}; every round needs a request of its own"
            raise clash(what, ("requests",), ("rounds",))
        return self


Workload = TTFT | Throughput | ServingLoad

KINDS: dict[str, type[_Workload]] = {"ttft": TTFT, "throughput": Throughput, "serving": ServingLoad}


def dump(workload: Workload) -> dict[str, Any]:
    """Plain JSON values, every default filled in."""
    return workload.model_dump(mode="json")
