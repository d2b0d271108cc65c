"""Recipes as files in the working directory, loaded or refused."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from zipvl_compile.recipe.load import LoadedRecipe, load_recipe
from zipvl_serving.errors import InputError

HEAD = "name: r\nmodel:\n  source: here\n"  # lines 1 to 3 of most recipes below


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


def load(text: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(write("r.yaml", text), overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    line = str(caught.value)
    assert line.isprintable(), line  # no line break, no control character
    return line
