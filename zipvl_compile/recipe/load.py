"""Read a recipe: its file, what it extends, what the command line overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from zipvl_compile.checkpoint.hub import is_hub_id
from zipvl_compile.recipe.messages import first_problem
from zipvl_compile.recipe.schema import Recipe
from zipvl_compile.recipe.source import Key, Mark, Section, find_recipe, gather, is_dir, merge, problem, read_override

Root = TypeVar("Root", bound=BaseModel)


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
    recipe, marks = validate(read_tree(file, overrides), Recipe, file)
    mark = marks[("model", "source")]
    base = mark.file.parent.resolve() if mark.file else Path.cwd()
    return LoadedRecipe(recipe, file.resolve(), _locate(recipe.model.source, base, mark), base)


def read_tree(file: Path, overrides: Sequence[str]) -> Section:
    """A YAML file over what it extends, and the overrides over both."""
    tree = gather(file)
    for override in overrides:
        tree = merge(tree, read_override(override))
    return tree


def validate(tree: Section, root: type[Root], file: Path) -> tuple[Root, dict[Key, Mark]]:
    """The value that a tree describes, and where each of its keys was written; InputError with one line."""
    marks = dict(tree.marks())
    try:
        return root.model_validate(tree.plain()), marks
    except ValidationError as error:
        raise first_problem(error, marks, file, root) from None


def _locate(source: str, base: Path, mark: Mark) -> Path | str:
    # A directory wins over a hub id of the same spelling; what looks like neither is a directory yet to come.
    try:
        directory = (base / Path(source).expanduser()).resolve()
    except (OSError, RuntimeError) as error:
        raise problem(mark, ("model", "source"), f"{error}; must be a directory or a hub id owner/name") from None
    return source if is_hub_id(source) and not is_dir(directory) else directory
