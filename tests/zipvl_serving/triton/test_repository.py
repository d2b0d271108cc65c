"""Model repositories: what is written, what is found in them, what is refused."""

from __future__ import annotations

import errno
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from helpers import pb_utils
from helpers.bundles import contents, refusal
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.triton.repository import (
    find_bundle,
    is_model,
    is_repository,
    model_files,
    models,
    templates_folder,
    write_repository,
)
from zipvl_serving.triton.tensors import INPUTS, OUTPUTS


@pytest.fixture
def model(tiny_bundle: Path, tmp_path: Path) -> Path:
    return write_repository(Bundle.open(tiny_bundle), tmp_path / "repo", {"max_waiting": "3", "batch_invariant": "no"})


def test_the_bundle_inside_is_a_bundle(model: Path, tiny_bundle: Path) -> None:
    inside = model / "1" / "bundle"
    assert Bundle.open(inside).manifest == Bundle.open(tiny_bundle).manifest
    assert contents(inside) == contents(tiny_bundle)
    assert (inside / "weights.safetensors").samefile(tiny_bundle / "weights.safetensors")


def test_without_links_it_is_copied(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    inside = write_repository(Bundle.open(tiny_bundle), tmp_path, {}) / "1" / "bundle"
    assert contents(inside) == contents(tiny_bundle)
    assert not (inside / "weights.safetensors").samefile(tiny_bundle / "weights.safetensors")


def test_the_configuration_is_tritons(model: Path) -> None:
    config = text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 0)
    assert config.model_transaction_policy.decoupled
    [group] = config.instance_group
    assert (group.kind, group.count) == (ModelInstanceGroup.KIND_CPU, 1)
    for found, expected in ((config.input, INPUTS), (config.output, OUTPUTS)):
        assert {tensor.name: (DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in found} == {
            name: (f"TYPE_{spec.kind}", [spec.count]) for name, spec in expected.items()
        }
    assert all(tensor.optional for tensor in config.input)
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "zipvl.max_waiting": "3", "zipvl.batch_invariant": "false",
    }  # fmt: skip


def test_the_models_entry_point_hands_over(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len((templates_folder() / "1" / "model.py").read_text().splitlines()) <= 60
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    entry = runpy.run_path(str(model / "1" / "model.py"))["TritonPythonModel"]()
    with pytest.raises(pb_utils.TritonModelException, match="not a bundle"):
        entry.initialize({"model_repository": "/nowhere", "model_version": "1", "model_config": "{}"})


def test_models_are_found(model: Path, tiny_bundle: Path) -> None:
    repository = model.parent
    assert models(repository) == {"tiny": model / "1" / "bundle"}
    assert find_bundle(repository) == find_bundle(model) == model / "1" / "bundle"
    assert is_repository(repository)
    assert not is_repository(model)
    assert not is_repository(tiny_bundle)
    assert not is_model(tiny_bundle)
    (repository / ".tiny.partial-x").mkdir()
    assert list(models(repository)) == ["tiny"]


def test_one_of_several_models_must_be_named(model: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    other = replace(bundle, manifest=bundle.manifest.model_copy(update={"name": "other"}))
    assert write_repository(other, model.parent, {}).name == "other"
    with refusal(InputError, "holds several models", str(model.parent / "other"), str(model)):
        find_bundle(model.parent)


def test_other_places_are_no_repository(model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    foreign = model.parent / "resnet"
    foreign.mkdir()
    for place, problem in (
        (tmp_path / "nowhere", "does not exist"),
        (model / "config.pbtxt", "is a file"),
        (empty, "holds no model"),
        (tiny_bundle, "is no model of it"),
        (model.parent, "resnet is no model of it"),
    ):
        with refusal(InputError, place, problem):
            models(place)


def test_the_files_of_a_model_are_known(model: Path) -> None:
    compiled = model / "1" / "__pycache__" / "model.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    assert model_files(model) == set(contents(model))
    (model / "notes.txt").touch()
    assert set(contents(model)) - (model_files(model) or set()) == {"notes.txt"}
    (model / "config.pbtxt").write_text('name: "mine"')
    assert model_files(model) is None


@pytest.mark.parametrize("settings", [{"max_waitin": "3"}, {"max_waiting": "none"}])
def test_a_wrong_setting_is_refused_before_anything_is_written(
    settings: dict[str, str], tiny_bundle: Path, tmp_path: Path
) -> None:
    with refusal(InputError, next(iter(settings))):
        write_repository(Bundle.open(tiny_bundle), tmp_path, settings)
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", 'a"b'])
def test_a_name_must_be_a_directorys(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with refusal(InputError, "can be no model's name"):
        write_repository(replace(bundle, manifest=bundle.manifest.model_copy(update={"name": name})), tmp_path, {})
    assert not contents(tmp_path)
