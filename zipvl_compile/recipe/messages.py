"""What pydantic found wrong with a recipe, as one line that names file, line, key and what would have been valid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from zipvl_compile.recipe.schema import Recipe
from zipvl_compile.recipe.source import Key, Mark, problem, shorten, show
from zipvl_serving.errors import InputError, nearest


def first_problem(error: ValidationError, marks: Mapping[Key, Mark], file: Path) -> InputError:
    """The error to report: one line that names file, line and key, and counts the others."""
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
        return f"{show(value)} is not valid; {nearest(shorten(str(value)), choices)}"
    if _bounds(field) and isinstance(value, int | float) and not isinstance(value, bool) and "_type" not in kind:
        return f"{show(value)} is out of range; must be {_bounds(field)}"
    return f"{show(value)} is wrong; must be {_valid(field)}"


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
