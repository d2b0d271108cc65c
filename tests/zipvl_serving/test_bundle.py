"""Bundles: one that is whole opens, one that is not is refused by the name of the file."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import LAYERS, edit_manifest, flip_byte, refusal

from zipvl_serving.bundle import Bundle, describe_files
from zipvl_serving.contract import GRAPHS
from zipvl_serving.errors import InputError, ZipvlError

Damage = Callable[[Path], object]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_whole_bundle_opens(tiny_bundle: Path) -> None:
    bundle = Bundle.open(str(tiny_bundle))
    assert bundle.manifest.model.shape.layers == LAYERS
    assert all(bundle.graph_path(graph).is_file() for graph in GRAPHS)
    assert (bundle.processor_folder / "tokenizer.json").is_file()
    assert dict(describe_files(tiny_bundle)) == bundle.manifest.files


def test_the_manifest_lists_every_file_once(tiny_bundle: Path) -> None:
    on_disk = {str(file.relative_to(tiny_bundle)) for file in tiny_bundle.rglob("*") if file.is_file()}
    assert set(Bundle.open(tiny_bundle).manifest.files) == on_disk - {"manifest.json"}


@pytest.mark.parametrize("name", ["notes.txt", "processor/chat_template.json", "more/prefill.onnx"])
def test_a_file_that_is_not_listed_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("mine")
    with refusal(ZipvlError, bundle / name, "is not listed in the manifest"):
        Bundle.open(bundle)


def test_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "vision.onnx").rename(tmp_path / "elsewhere.onnx")
    (bundle / "vision.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with refusal(ZipvlError, bundle / "vision.onnx", "is a symbolic link"):
        Bundle.open(bundle)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _become_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("weights.safetensors", flip_byte, "its SHA-256 does not match"),
        ("processor/tokenizer.json", flip_byte, "its SHA-256 does not match"),
        ("prefill.onnx", _truncate, "bytes, the manifest says"),
        ("decode.onnx", lambda file: file.write_bytes(b""), "has 0 bytes, the manifest says"),
        ("vision.onnx", Path.unlink, "is missing; the manifest lists it"),
        ("processor/config.json", _become_folder, "is missing; the manifest lists it"),
    ],
)
def test_a_damaged_file_is_named(bundle: Path, name: str, damage: Damage, message: str) -> None:
    damage(bundle / name)
    with refusal(ZipvlError, bundle / name, message, "rebuild the bundle"):
        Bundle.open(bundle)


def test_without_verification_sizes_are_still_compared(bundle: Path) -> None:
    flip_byte(bundle / "weights.safetensors")
    Bundle.open(bundle, verify=False)
    _truncate(bundle / "weights.safetensors")
    with refusal(ZipvlError, bundle / "weights.safetensors"):
        Bundle.open(bundle, verify=False)


@pytest.mark.parametrize(
    ("change", "seal", "message"),
    [
        (lambda body: body["method"].update(tau=0.5), False, "its digest does not match"),
        (lambda body: body["files"].pop("weights.safetensors"), False, "its digest does not match"),
        (lambda body: body.pop("digest"), False, "its digest does not match"),
        (lambda body: body.update(schema_version=1), True, "schema version 1 is not readable here"),
        (lambda body: body.pop("schema_version"), True, "schema version None is not readable here"),
        (lambda body: body["limits"].pop("page_size"), True, "limits.page_size: Field required"),
        (lambda body: body.update(extra=1), True, "extra: Extra inputs are not permitted"),
        (lambda body: body.update(schema_version=True), True, "schema version True is not readable here"),
        (lambda body: body["limits"].update(page_size=0), True, "limits.page_size"),
        (lambda body: body["limits"].update(kv_bytes=-5), True, "limits.kv_bytes"),
        (lambda body: body["method"].update(force_last=0), True, "method.force_last"),
        (lambda body: body["method"].update(probe_random=-1), True, "method.probe_random"),
        (lambda body: body["method"].update(tau=1.5), True, "method.tau"),
        (lambda body: body["model"]["shape"].update(layers=0), True, "layers is 0; must be >= 1"),
        (lambda body: body["engine"].update(backend="nope"), True, "engine.backend"),
        (lambda body: body["engine"]["graphs"].pop("decode"), True, "must name vision, prefill, decode"),
        (lambda body: body["engine"]["graphs"].update(vision="../vision.onnx"), True, "not listed among the files"),
        (lambda body: body["files"].pop("weights.safetensors"), True, "not listed among the files"),
        (lambda body: body["files"].update({"../x": body["files"]["vision.onnx"]}), True, "stay inside the bundle"),
        (lambda body: body["files"].update({"/etc/x": body["files"]["vision.onnx"]}), True, "stay inside the bundle"),
        (lambda body: body.update(files={}), True, "lists no files"),
    ],
)
def test_an_edited_manifest_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], seal: bool, message: str
) -> None:
    edit_manifest(bundle, change, seal=seal)
    with refusal(ZipvlError, bundle / "manifest.json", message, "rebuild the bundle"):
        Bundle.open(bundle)


def test_a_manifest_sealed_anew_opens(bundle: Path) -> None:
    edit_manifest(bundle, lambda body: body["method"].update(tau=0.5), seal=True)
    assert Bundle.open(bundle).manifest.method.tau == 0.5


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"x"', b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with refusal(ZipvlError, bundle / "manifest.json", "rebuild the bundle"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothing", "not a bundle: it does not exist"),
        ("empty", "not a bundle: it has no manifest.json"),
        ("file", "not a bundle: it is a file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_is_no_bundle_is_refused(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with refusal(ZipvlError if "long" in message else InputError, tmp_path / place, message):
        Bundle.open(tmp_path / place)


# --- the runtime's version ---


@pytest.mark.parametrize(
    ("built", "here", "opens"),
    [
        ("1.31.2", "1.31.2", True),
        ("1.31.2", "1.31.0", True),
        ("1.31.2", "1.40.0", True),
        ("1.31.2", "1.31.0rc1", True),
        ("1.31.2", "1.32rc1", True),
        ("1.31.2", "1.30.9", False),
        ("1.31.2", "0.99", False),
        ("1.31.2", "2.0.0", False),
    ],
)
def test_the_runtime_is_of_the_same_major_version_and_not_older(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, built: str, here: str, opens: bool
) -> None:
    edit_manifest(bundle, lambda body: body["engine"].update(backend_version=built), seal=True)
    monkeypatch.setattr(importlib.metadata, "version", {"onnxruntime": here}.__getitem__)
    if opens:
        Bundle.open(bundle)
        return
    with refusal(ZipvlError, bundle, f"built with onnxruntime {built}, here is {here}", "install onnxruntime>=1.31,<2"):
        Bundle.open(bundle)


def test_an_absent_runtime_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with refusal(ZipvlError, bundle, "needs onnxruntime; install it: pip install onnxruntime"):
        Bundle.open(bundle)
