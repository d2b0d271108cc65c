"""Read a recipe: its file, what it extends, what the command line overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from zipvl_compile.checkpoint.hub import is_hub_id
from zipvl_compile.recipe.messages import first_problem
from zipvl_compile.recipe.schema import Recipe
from zipvl_compile.recipe.source import Mark, find_recipe, gather, is_dir, merge, problem, read_override


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
        raise first_problem(error, marks, file) from None
    mark = marks[("model", "source")]
    base = mark.file.parent.resolve() if mark.file else Path.cwd()
    return LoadedRecipe(recipe, file.resolve(), _locate(recipe.model.source, base, mark), base)


def _locate(source: str, base: Path, mark: Mark) -> Path | str:
    # A directory wins over a hub id of the same spelling; what looks like neither is a directory yet to come.
    try:
        directory = (base / Path(source).expanduser()).resolve()
    except (OSError, RuntimeError) as error:
        raise problem(mark, ("model", "source"), f"{error}; must be a directory or a hub id owner/name") from None
    return source if is_hub_id(source) and not is_dir(directory) else directory
