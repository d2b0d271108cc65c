"""The recipe: everything that decides what a build leaves, as one validated and immutable value."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from zipvl_compile.recipe.source import Key, shorten, show
from zipvl_serving.backends import BACKENDS
from zipvl_serving.config import ServingConfig
from zipvl_serving.errors import nearest

PLANNED_CACHES = ("quantise", "evict+quantise")

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_size(value: object) -> int:
    """Bytes from an integer or a string such as `256MiB`."""
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]{1,15}) ?(KiB|MiB|GiB)?", value)):
        value = int(found[1]) * _UNITS.get(found[2], 1)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError(f"{show(value)} is not a size; must be bytes > 0, or a string such as 512KiB, 256MiB or 2GiB")


def format_size(size: int) -> str | int:
    """The shortest exact spelling that `parse_size` reads back."""
    for unit, scale in reversed(_UNITS.items()):
        if size % scale == 0:
            return f"{size // scale}{unit}"
    return size


def _exponent(value: object) -> object:
    # YAML 1.1 takes 1e-3 for a string: it wants 1.0e-3.
    if isinstance(value, str) and re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+", value):
        return float(value)
    return value


def _size_or_zero(value: object) -> int:
    return 0 if value == 0 and not isinstance(value, bool) else parse_size(value)


def _power_of_two(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256 and value.bit_count() == 1:
        return value
    raise ValueError(f"{show(value)} is not a page size; must be a power of two from 1 to 256")


def _dense_below(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"{show(value)} is not a length; must be a number of tokens >= 0, or auto")


def _lengths(value: object) -> object:
    if value is None:
        return value
    if isinstance(value, list) and value and all(type(n) is int and n >= 1 for n in value) and value == sorted(value):
        return value
    raise ValueError(f"{show(value)} is not a list of lengths; must be token counts >= 1 in ascending order, or null")


Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | str)]
Number = Annotated[float, BeforeValidator(_exponent), Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Model(_Part):
    """The checkpoint to compile."""

    source: str = Field(
        description="Checkpoint: a local directory, relative to the file that names it, or a hub id `owner/name`."
    )
    revision: str | None = Field(default=None, description="Hub branch, tag or commit; null is the default branch.")
    weights: Literal["checkpoint", "random"] = Field(
        default="checkpoint",
        description="`random` makes weights up in the shapes of config.json: for what a model costs, not what it says.",
    )
    layers: int | None = Field(
        default=None, ge=1, description="Build only this many decoder layers, the first; null is all of them."
    )
    rope_theta: Number | None = Field(
        default=None,
        gt=0,
        description="Base of the rotary angles; null is config.json's. A larger one reaches past the training length.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="Type of weights and activations; `auto` is the backend's own: float32 on a CPU, float16 on a GPU.",
    )

    @field_validator("source")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value.strip() and value.isprintable():
            return value
        raise ValueError(f"{show(value)} is not a source; must be a directory or a hub id owner/name")


class Probe(_Part):
    """The probe tokens: the queries whose attention scores stand in for those of all tokens."""

    recent: int = Field(default=64, ge=1, description="Probes taken from the end of the prompt, in tokens.")
    random: int = Field(default=64, ge=0, description="Probes drawn from the tokens before those, in tokens.")


class Force(_Part):
    """Tokens that every layer keeps on top of the chosen ones."""

    last: int = Field(default=1, ge=1, description="Recent window that is always kept, in tokens.")
    text: bool = Field(default=False, description="Keep all text tokens, so that only image tokens are ever dropped.")


class ZipVL(_Part):
    """The method: how many tokens each layer keeps, and which."""

    tau: Number = Field(
        default=0.975,
        gt=0,
        le=1,
        description="Share of a layer's attention mass that the kept tokens retain.",
    )
    ratio_min: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Floor on the share of tokens that a layer chooses; forced tokens come on top.",
    )
    ratio_max: Number = Field(
        default=1.0, ge=0, le=1, description="Ceiling on that share; equal to ratio_min it forces a fixed ratio."
    )
    probe: Probe = Field(default_factory=Probe, description="How many probe tokens, and from where.")
    seed: int = Field(default=0, ge=0, description="Seed of the random probes where a request brings none.")
    cache: Literal["full", "evict"] = Field(
        default="evict", description="KV cache: `full` stores every token, `evict` only the kept tokens of each layer."
    )
    dense_below: Annotated[int | Literal["auto"], BeforeValidator(_dense_below)] = Field(
        default="auto",
        description="Inputs with fewer tokens run dense; `auto` is the break-even length that the build measures.",
    )
    dense_layers: int = Field(default=0, ge=0, description="First layers, by count, that keep all tokens.")
    force: Force = Field(default_factory=Force, description="Tokens that are always kept.")

    @field_validator("cache", mode="before")
    @classmethod
    def _planned(cls, value: object) -> object:
        if value in PLANNED_CACHES:
            raise ValueError(f"{show(value)} is not available yet; valid: evict, full")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> ZipVL:
        if self.ratio_min > self.ratio_max:
            what = f"zipvl.ratio_min {self.ratio_min} is above zipvl.ratio_max {self.ratio_max}; must be at most that"
            raise clash(what, ("ratio_min",), ("ratio_max",))
        return self


class Limits(_Part):
    """Capacities that the engine and its KV pool are built for."""

    max_input_tokens: int = Field(default=4096, ge=1, description="Longest prompt, image tokens included, in tokens.")
    max_batch: int = Field(default=32, ge=1, description="Most sequences decoded together.")
    max_new_tokens: int = Field(default=256, ge=1, description="Most tokens generated for one request.")
    kv_bytes: Size = Field(default=256 << 20, description="Memory of the page pool: bytes, or a size such as `256MiB`.")
    page_size: Annotated[int, BeforeValidator(_power_of_two)] = Field(
        default=16, ge=1, le=256, description="Tokens in one page of the KV pool: a power of two."
    )


class Target(_Part):
    """What the bundle is built to run on."""

    backend: str = Field(
        default="onnxruntime", description="Engine that runs the graphs.", json_schema_extra={"enum": list(BACKENDS)}
    )
    gpu: str | None = Field(default=None, description="GPU to build for; null is the one in this machine, or the CPU.")
    limits: Limits = Field(default_factory=Limits, description="Capacities of the engine.")

    @field_validator("backend")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BACKENDS:
            raise ValueError(f"{show(value)} is no backend; {nearest(shorten(value), BACKENDS)}")
        return value


class Serving(ServingConfig):
    """How the model is served, and the defaults of requests."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    max_new_tokens_default: int = Field(
        default=64, ge=1, description="Tokens generated where a request names no number; at most limits.max_new_tokens."
    )
    image_cache_bytes: Annotated[int, BeforeValidator(_size_or_zero, json_schema_input_type=int | str)] = Field(
        default=64 << 20, ge=0, description="Image embeddings kept for images that come again: a size; 0 keeps none."
    )
    max_image_bytes: Size = Field(default=20 << 20, ge=1, description="Size of one image file at most.")

    @property
    def config(self) -> ServingConfig:
        """What the serving runtime reads."""
        return ServingConfig(**{name: getattr(self, name) for name in ServingConfig.model_fields})


class Benchmarks(_Part):
    """How the build measures the length from which ZipVL pays off."""

    break_even_ratio: Number = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of kept tokens, forced, at which the break-even length is measured.",
    )
    break_even_lengths: Annotated[list[int] | None, BeforeValidator(_lengths)] = Field(
        default=None,
        description="Prompt lengths to measure, in tokens, ascending; null leaves the choice to the build.",
    )


def _with_extends(schema: dict[str, Any]) -> None:
    name = {"type": "string"}
    schema["properties"]["extends"] = {
        "anyOf": [name, {"type": "array", "items": name}],
        "description": "Shared parts to merge under this file: names in shared/, or paths relative to this file.",
    }


class Recipe(_Part):
    """A model, the method, what to build for, how to serve it and what to measure."""

    model_config = ConfigDict(json_schema_extra=_with_extends)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Name of the bundle and of the served model.")
    model: Model = Field(description="The checkpoint to compile.")
    zipvl: ZipVL = Field(default_factory=ZipVL, description="The method.")
    target: Target = Field(default_factory=Target, description="What to build for.")
    serving: Serving = Field(default_factory=Serving, description="Defaults of the served model.")
    benchmarks: Benchmarks = Field(default_factory=Benchmarks, description="How the break-even length is measured.")

    @model_validator(mode="after")
    def _within_limits(self) -> Recipe:
        default, limit = self.serving.max_new_tokens_default, self.target.limits.max_new_tokens
        if default > limit:
            what = f"serving.max_new_tokens_default {default} is above target.limits.max_new_tokens {limit}"
            keys = ("serving", "max_new_tokens_default"), ("target", "limits", "max_new_tokens")
            raise clash(f"{what}; must be at most that", *keys)
        return self

    def lock(self) -> dict[str, Any]:
        """The recipe as plain JSON values with every default filled in: for the manifest and the cache key."""
        return self.model_dump(mode="json")


def dump_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with every default filled in; loading it gives the same recipe."""
    values = recipe.lock()
    values["target"]["limits"]["kv_bytes"] = format_size(recipe.target.limits.kv_bytes)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def clash(message: str, *keys: Key) -> PydanticCustomError:
    """Two values that exclude each other; the line to report is that of the first key that was written."""
    return PydanticCustomError("clash", "{message}", {"message": message, "keys": keys})
