"""What pydantic found wrong with a recipe or a workload, as one line: file, line, key, what would be valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from zipvl_compile.recipe.source import Key, Mark, problem, shorten, show
from zipvl_serving.errors import InputError, nearest

_KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
_SIGNS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "pattern": "matching {}"}


@dataclass(frozen=True)
class _Accepted:
    """What one key takes: a plain type, a literal, a list or a model, or null as well; and the bounds on it."""

    kind: Any
    null: bool = False
    bounds: str = ""

    @classmethod
    def of(cls, annotation: Any, metadata: tuple[Any, ...] = ()) -> _Accepted:
        annotation, metadata = _bare(annotation, metadata)
        null = False
        if get_origin(annotation) in (Union, UnionType):
            first, *others = get_args(annotation)
            null = type(None) in others
            annotation, metadata = _bare(first, metadata)
        inner = [part for mark in metadata for part in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
        found = [(sign, getattr(m, n, None)) for m in inner for n, sign in _SIGNS.items()]
        return cls(annotation, null, " and ".join(sign.format(bound) for sign, bound in found if bound is not None))

    @property
    def model(self) -> type[BaseModel] | None:
        return self.kind if isinstance(self.kind, type) and issubclass(self.kind, BaseModel) else None

    @property
    def entry(self) -> _Accepted | None:
        """What the entries of a list are."""
        return _Accepted.of(*get_args(self.kind)) if get_origin(self.kind) is list else None

    def __str__(self) -> str:
        if self.model:  # WRITTEN: how a model is spelt that has a spelling of its own
            return getattr(self.model, "WRITTEN", f"a mapping; valid: {', '.join(sorted(self.model.model_fields))}")
        if self.entry:
            words = f"a list of {self.entry}"
        elif get_origin(self.kind) is Literal:
            words = f"one of {', '.join(map(str, get_args(self.kind)))}"
        else:
            words = " ".join([_KINDS[self.kind], *([self.bounds] if self.bounds else [])])
        return f"{words} or null" if self.null else words


def _bare(annotation: Any, metadata: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without Annotated, whose marks join the metadata."""
    if get_origin(annotation) is not Annotated:
        return annotation, metadata
    bare, *marks = get_args(annotation)
    return bare, (*metadata, *marks)


def first_problem(error: ValidationError, marks: Mapping[Key, Mark], file: Path, root: type[BaseModel]) -> InputError:
    """The error to report of a file that `root` refused: one line that names file, line and key, and counts the
    others."""
    found = []
    for details in error.errors(include_url=False):
        key = _key(details, marks)
        written = key
        while written not in marks:  # a missing key is reported at the section that lacks it
            written = written[:-1]
        mark = marks[written]
        # A misspelt key often leaves a required one missing: report the spelling first. Then the order of reading.
        rank = (details["type"] == "missing", mark.file != file, str(mark.file), mark.line)
        found.append((rank, mark, key, _message(details, key, mark, root)))
    _, mark, key, message = min(found, key=lambda item: item[0])
    more = f" (+{len(found) - 1} more)" if len(found) > 1 else ""
    return problem(mark, key, message + more)


def _key(details: ErrorDetails, marks: Mapping[Key, Mark]) -> Key:
    parent = tuple(str(part) for part in details["loc"])
    keys = [(*parent, *key) for key in details.get("ctx", {}).get("keys", [()])]
    return next((key for key in keys if key in marks), keys[0])


def _message(details: ErrorDetails, key: Key, mark: Mark, root: type[BaseModel]) -> str:
    kind, value = details["type"], details["input"]
    model, accepted = _declared(key, root)
    if kind == "extra_forbidden":
        names = [*model.model_fields, *(["extends"] if model is root and mark.file else [])]
        return f"unknown key; {nearest(shorten(key[-1]), names)}"
    if kind in ("value_error", "clash"):
        return str(details["ctx"].get("error") or details["ctx"]["message"])
    assert accepted is not None  # pydantic rejects only what is declared
    if kind in ("missing", "too_short"):
        return f"{'missing' if kind == 'missing' else 'is empty'}; must be {accepted}"
    if kind == "literal_error":
        choices = [str(choice) for choice in get_args(accepted.kind)]
        return f"{show(value)} is not valid; {nearest(shorten(str(value)), choices)}"
    if accepted.bounds and isinstance(value, int | float) and not isinstance(value, bool) and "_type" not in kind:
        return f"{show(value)} is out of range; must be {accepted.bounds}"
    return f"{show(value)} is wrong; must be {accepted}"


def _declared(key: Key, root: type[BaseModel]) -> tuple[type[BaseModel], _Accepted | None]:
    """The model that declares the last part of a key, and what that part takes where it is declared."""
    model, accepted = root, None
    for part in key:
        if accepted and accepted.entry:
            accepted = accepted.entry
            continue
        model = accepted.model if accepted and accepted.model else model
        field = model.model_fields.get(part)
        accepted = _Accepted.of(field.annotation, tuple(field.metadata)) if field else None
    return model, accepted
