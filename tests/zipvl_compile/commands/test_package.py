"""`zipvl-compile package`: repositories appear whole or not at all, and nobody else's files are touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.bundles import contents, edit_manifest, names
from helpers.command_line import error_line, invoke, succeed

from zipvl_compile.bundling import writer
from zipvl_serving.bundle import Bundle
from zipvl_serving.triton.repository import models


def refused(*arguments: str | Path, code: int = 2) -> str:
    """The one line with which a command fails."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    return error_line(result.stderr)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy, for its files are linked to."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_repository_is_made(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "deep" / "repo"
    printed = json.loads(succeed("package", bundle, "--out", repository, "--set", "max_waiting=3", "--json"))
    assert printed == {"repository": str(repository), "model": "tiny", "settings": {"max_waiting": "3"}}
    assert names(repository) == ["tiny"]
    Bundle.open(models(repository)["tiny"])
    assert 'key: "zipvl.max_waiting", value: { string_value: "3" }' in (repository / "tiny/config.pbtxt").read_text()


def test_a_model_is_replaced_and_others_stay(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    succeed("package", bundle, "--out", repository)
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    edit_manifest(other, lambda body: body.update(name="other"), seal=True)
    succeed("package", other, "--out", repository)
    before = contents(repository / "other")
    assert "packaged: " in succeed("package", bundle, "--out", repository, "--set", "max_waiting=9")
    assert names(repository) == ["other", "tiny"]
    assert contents(repository / "other") == before
    assert "max_waiting" in (repository / "tiny" / "config.pbtxt").read_text()


@pytest.mark.parametrize("setting", ["max_waitin=3", "max_waiting=none", "max_waiting", "=3"])
def test_a_wrong_setting_leaves_nothing(setting: str, bundle: Path, tmp_path: Path) -> None:
    assert setting.partition("=")[0] in refused("package", bundle, "--out", tmp_path / "repo", "--set", setting)
    assert names(tmp_path) == ["bundle"]


def test_a_failure_on_the_way_leaves_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_sync", fail)
    assert "No space left on device" in refused("package", bundle, "--out", tmp_path / "repo", code=1)
    assert names(tmp_path) == ["bundle"]


def test_a_failure_keeps_the_model_that_was_there(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repo"
    succeed("package", bundle, "--out", repository)
    before = contents(repository)
    second = tmp_path / "second"
    shutil.copytree(bundle, second)

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_sync", fail)
    refused("package", second, "--out", repository, "--set", "max_waiting=9", code=1)
    assert contents(repository) == before


def test_what_is_not_ours_is_refused_and_kept(bundle: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    (foreign / "resnet").mkdir(parents=True)
    (foreign / "resnet" / "config.pbtxt").write_text('name: "resnet"')
    changed = tmp_path / "changed"
    succeed("package", bundle, "--out", changed)
    (changed / "tiny" / "notes.txt").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    before = contents(tmp_path)
    assert "resnet is no model of it" in refused("package", bundle, "--out", foreign)
    assert "other content (notes.txt)" in refused("package", bundle, "--out", changed)
    assert "is a file" in refused("package", bundle, "--out", file)
    assert "lies inside the bundle" in refused("package", bundle, "--out", bundle / "new")
    assert contents(tmp_path) == before


def test_a_bundle_does_not_replace_itself(bundle: Path, tmp_path: Path) -> None:
    succeed("package", bundle, "--out", tmp_path / "repo")
    inside = models(tmp_path / "repo")["tiny"]
    assert "would replace the bundle itself" in refused("package", inside, "--out", tmp_path / "repo")
    Bundle.open(inside)


def test_an_empty_directory_will_do(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    succeed("package", bundle, "--out", tmp_path / "repo")
    assert list(models(tmp_path / "repo")) == ["tiny"]


def test_no_bundle_is_one_line(tmp_path: Path) -> None:
    assert "not a bundle" in refused("package", tmp_path / "nowhere", "--out", tmp_path / "repo")
