"""Bundles, repositories, and models of repositories."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.bundles import refusal

from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.gateway.sources import Source, find_source
from zipvl_serving.triton.repository import write_repository

SETTINGS = {"max_waiting": "8", "batch_invariant": "false", "drain_s": "0.5"}


@pytest.fixture
def repository(tiny_bundle: Path, tmp_path: Path) -> Path:
    write_repository(Bundle.open(tiny_bundle), tmp_path / "repository", SETTINGS)
    return tmp_path / "repository"


def test_a_bundle_is_itself(tiny_bundle: Path) -> None:
    assert find_source(tiny_bundle) == Source(tiny_bundle)


def test_a_repository_of_one_model_and_the_model(tiny_bundle: Path, repository: Path) -> None:
    model = repository / "tiny"
    for path in (repository, model):
        source = find_source(path)
        assert (source.bundle, source.model) == (model / "1" / "bundle", model)
        serving = Bundle.open(source.bundle).manifest.serving
        assert serving.override(source.settings) == serving.override(SETTINGS)


def test_several_models_are_too_many(repository: Path) -> None:
    shutil.copytree(repository / "tiny", repository / "other")
    with refusal(InputError, "several models", repository / "other", repository / "tiny"):
        find_source(repository)
    assert find_source(repository / "other").model == repository / "other"


def test_a_configuration_laid_out_by_hand_is_read(repository: Path) -> None:
    config = repository / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace(", value: { string_value: ", "\n  value {\n    string_value:  "))
    assert find_source(repository).settings["drain_s"] == "0.5"


def test_settings_that_cannot_be_read_are_refused(repository: Path) -> None:
    config = repository / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace('"0.5"', "'0.5'"))
    with refusal(InputError, config, "package the bundle again"):
        find_source(repository)


def test_what_is_neither_is_left_to_the_bundle(tmp_path: Path) -> None:
    assert find_source(tmp_path / "nothing") == Source(tmp_path / "nothing")
