"""The recipe: everything that decides what a build leaves, as one validated and immutable value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from zipvl_compile.recipe_source import (
    Key,
    Mark,
    find_recipe,
    gather,
    is_dir,
    merge,
    problem,
    read_override,
    shorten,
)
from zipvl_serving.errors import InputError, nearest

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt_rtx", "torch")
PLANNED_CACHES = ("quantise", "evict+quantise")

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def parse_size(value: object) -> int:
    """Bytes from an integer or a string such as `256MiB`."""
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]{1,15}) ?(KiB|MiB|GiB)?", value)):
        value = int(found[1]) * _UNITS.get(found[2], 1)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError(f"{_show(value)} is not a size; must be bytes > 0, or a string such as 512KiB, 256MiB or 2GiB")


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


def _power_of_two(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256 and value.bit_count() == 1:
        return value
    raise ValueError(f"{_show(value)} is not a page size; must be a power of two from 1 to 256")


def _dense_below(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"{_show(value)} is not a length; must be a number of tokens >= 0, or auto")


def _lengths(value: object) -> object:
    if value is None:
        return value
    if isinstance(value, list) and value and all(type(n) is int and n >= 1 for n in value) and value == sorted(value):
        return value
    raise ValueError(f"{_show(value)} is not a list of lengths; must be token counts >= 1 in ascending order, or null")


Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | str)]
Ratio = Annotated[float, BeforeValidator(_exponent), Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Model(_Part):
    """The checkpoint to compile."""

    source: str = Field(
        description="Checkpoint: a local directory, relative to the file that names it, or a hub id `owner/name`."
    )
    revision: str | None = Field(default=None, description="Hub branch, tag or commit; null is the default branch.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="Type of weights and activations."
    )

    @field_validator("source")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value.strip() and value.isprintable():
            return value
        raise ValueError(f"{_show(value)} is not a source; must be a directory or a hub id owner/name")


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

    tau: Ratio = Field(
        default=0.975,
        gt=0,
        le=1,
        description="Share of a layer's attention mass that the kept tokens retain.",
    )
    ratio_min: Ratio = Field(default=0.0, ge=0, le=1, description="Floor on the share of tokens that a layer keeps.")
    ratio_max: Ratio = Field(
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
            raise ValueError(f"{_show(value)} is not available yet; valid: evict, full")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> ZipVL:
        if self.ratio_min > self.ratio_max:
            what = f"zipvl.ratio_min {self.ratio_min} is above zipvl.ratio_max {self.ratio_max}; must be at most that"
            raise _clash(what, ("ratio_min",), ("ratio_max",))
        return self


class Limits(_Part):
    """Capacities that the engine and its KV pool are built for."""

    max_input_tokens: int = Field(default=4096, ge=1, description="Longest prompt, image tokens included, in tokens.")
    max_batch: int = Field(default=8, ge=1, description="Most sequences decoded together.")
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
            raise ValueError(f"{_show(value)} is no backend; {nearest(shorten(value), BACKENDS)}")
        return value


class Serving(_Part):
    """Defaults of the served model; a request may override them."""

    max_new_tokens_default: int = Field(
        default=64, ge=1, description="Tokens generated where a request names no number; at most limits.max_new_tokens."
    )
    stream_interval: int = Field(default=1, ge=1, description="Tokens per streamed response.")


class Benchmarks(_Part):
    """How the build measures the length from which ZipVL pays off."""

    break_even_ratio: Ratio = Field(
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
            raise _clash(f"{what}; must be at most that", *keys)
        return self

    def lock(self) -> dict[str, Any]:
        """The recipe as plain JSON values with every default filled in: for the manifest and the cache key."""
        return self.model_dump(mode="json")


def dump_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with every default filled in; loading it gives the same recipe."""
    values = recipe.lock()
    values["target"]["limits"]["kv_bytes"] = format_size(recipe.target.limits.kv_bytes)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where it came from."""

    recipe: Recipe
    path: Path  # the recipe's own file
    model_source: Path | str  # an absolute directory, or a hub id
    model_base: Path  # the directory that a relative model.source starts from


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe by path, or by name from `recipes_dir()`; overrides are `KEY=VALUE` with a YAML value.

    Raises InputError with one line, `FILE:LINE: KEY: what was wrong; what would have been valid`.
    """
    file = find_recipe(path)
    tree = gather(file)
    for override in overrides:
        tree = merge(tree, read_override(override))
    marks = dict(tree.marks())
    try:
        recipe = Recipe.model_validate(tree.plain())
    except ValidationError as error:
        raise _first_problem(error, marks, file) from None
    mark = marks[("model", "source")]
    base = mark.file.parent.resolve() if mark.file else Path.cwd()
    return LoadedRecipe(recipe, file.resolve(), _locate(recipe.model.source, base, mark), base)


def _locate(source: str, base: Path, mark: Mark) -> Path | str:
    # A directory wins over a hub id of the same spelling; what looks like neither is a directory yet to come.
    try:
        directory = (base / Path(source).expanduser()).resolve()
    except (OSError, RuntimeError) as error:
        raise problem(mark, ("model", "source"), f"{error}; must be a directory or a hub id owner/name") from None
    return source if _HUB_ID.fullmatch(source) and not is_dir(directory) else directory


# --- error lines -----------------------------------------------------------------------------------------------------


def _clash(message: str, *keys: Key) -> PydanticCustomError:
    """Two values that exclude each other; the line to report is that of the first key that was written."""
    return PydanticCustomError("clash", "{message}", {"message": message, "keys": keys})


def _first_problem(error: ValidationError, marks: Mapping[Key, Mark], file: Path) -> InputError:
    found = []
    for details in error.errors(include_url=False):
        key = _key(details, marks)
        written = key
        while written not in marks:  # a missing key is reported at the section that lacks it
            written = written[:-1]
        mark = marks[written]
        # A misspelt key often leaves a required one missing: report the spelling first. Then the order of reading.
        rank = (details["type"] == "missing", mark.file != file, str(mark.file), mark.line)
        found.append((rank, mark, key, _message(details, key, mark)))
    _, mark, key, message = min(found, key=lambda item: item[0])
    more = f" (+{len(found) - 1} more)" if len(found) > 1 else ""
    return problem(mark, key, message + more)


def _key(details: ErrorDetails, marks: Mapping[Key, Mark]) -> Key:
    parent = tuple(str(part) for part in details["loc"])
    keys = [(*parent, *key) for key in details.get("ctx", {}).get("keys", [()])]
    return next((key for key in keys if key in marks), keys[0])


def _message(details: ErrorDetails, key: Key, mark: Mark) -> str:
    kind, value = details["type"], details["input"]
    model, field = _declared(key)
    if kind == "extra_forbidden":
        names = [*model.model_fields, *(["extends"] if model is Recipe and mark.file else [])]
        return f"unknown key; {nearest(shorten(key[-1]), names)}"
    if kind in ("value_error", "clash"):
        return str(details["ctx"].get("error") or details["ctx"]["message"])
    assert field is not None  # pydantic rejects only what is declared
    if kind == "missing":
        return f"missing; must be {_valid(field)}"
    if kind == "literal_error":
        choices = [str(choice) for choice in get_args(field.annotation)]
        return f"{_show(value)} is not valid; {nearest(shorten(str(value)), choices)}"
    if _bounds(field) and isinstance(value, int | float) and not isinstance(value, bool) and "_type" not in kind:
        return f"{_show(value)} is out of range; must be {_bounds(field)}"
    return f"{_show(value)} is wrong; must be {_valid(field)}"


def _declared(key: Key) -> tuple[type[BaseModel], FieldInfo | None]:
    """The model that declares the last part of a key, and its field where that exists."""
    model: type[BaseModel] = Recipe
    field = None
    for i, part in enumerate(key):
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        if i < len(key) - 1 and isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return model, field


def _valid(field: FieldInfo) -> str:
    kinds = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
    accepted = get_args(field.annotation) or (field.annotation,)
    inner = accepted[0]
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return f"a mapping; valid: {', '.join(sorted(inner.model_fields))}"
    words = " or ".join(kinds[kind] for kind in accepted)
    return " ".join([words, *([_bounds(field)] if _bounds(field) else [])])


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "pattern": "matching {}"}
    found = [(signs[n], getattr(m, n)) for m in field.metadata for n in signs if getattr(m, n, None) is not None]
    return " and ".join(sign.format(bound) for sign, bound in found)


def _show(value: object) -> str:
    """A value as it looks in YAML, short enough for an error line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return shorten(repr(value))
