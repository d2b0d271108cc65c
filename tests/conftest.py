"""Fixtures that all tests share; what they need is imported when it is used, so that collecting stays quick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import bundles


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache directory of every build that does not choose another: never the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIPVL_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to read; copy it to change it."""
    return bundles.write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_recipe(tiny_checkpoint: Path) -> Path:
    """The recipe file beside that checkpoint."""
    recipe = tiny_checkpoint.parent / "tiny.yaml"
    recipe.write_text(bundles.RECIPE)
    return recipe


@pytest.fixture(scope="session")
def tiny_bundle(tiny_recipe: Path) -> Path:
    """The recipe's bundle to read, which is in the session's cache as well; copy it to change it."""
    return bundles.build_recipe(tiny_recipe, tiny_recipe.parent / "bundle").bundle
