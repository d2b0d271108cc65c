"""Builds: what is reused, what is replaced, and what is left when one fails or is stopped."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.bundles import build_recipe, contents, flip_byte, names, refusal
from helpers.command_line import error_line, invoke, spawn

from zipvl_compile.bundling import cache as build_cache
from zipvl_compile.bundling.writer import staged_directory
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError


def entry(cache: Path, bundle: Path) -> Path:
    return cache / "bundles" / Bundle.open(bundle).manifest.cache_key


# --- the cache ---


def test_a_second_build_is_a_copy(cache: Path, tiny_recipe: Path, tiny_bundle: Path, work: Path) -> None:
    result = build_recipe(tiny_recipe, work / "again")
    assert result.cache_hit and result.bundle == work / "again"
    assert contents(work / "again") == contents(tiny_bundle)
    assert names(work) == ["again"]


def test_without_the_cache_the_same_is_built_anew(
    cache: Path, real_export: None, tiny_recipe: Path, tiny_bundle: Path, work: Path
) -> None:
    before = contents(cache)
    result = build_recipe(tiny_recipe, work / "anew", use_cache=False)
    assert not result.cache_hit
    assert contents(cache) == before
    anew, first = contents(work / "anew"), contents(tiny_bundle)
    assert anew.keys() == first.keys()
    assert [name for name in anew if anew[name] != first[name]] == ["manifest.json"]
    manifests = [json.loads(files["manifest.json"]) for files in (anew, first)]
    measured = {"created", "timings", "break_even", "digest"}
    assert {k for k in manifests[0] if manifests[0][k] != manifests[1][k]} <= measured


def test_what_a_build_leaves_is_in_the_cache(
    empty_cache: Path, quick_export: None, tiny_recipe: Path, work: Path
) -> None:
    result = build_recipe(tiny_recipe, work / "first")
    assert not result.cache_hit
    assert contents(entry(empty_cache, work / "first")) == contents(work / "first")
    assert build_recipe(tiny_recipe, work / "second").cache_hit
    assert names(empty_cache) == ["bundles", "checkpoint-hashes.json"]
    assert names(empty_cache / "bundles") == sorted([result.cache_key, f"{result.cache_key}.lock"])


def _other_version(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "onnxscript" else real(name))


def _other_weight(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    flip_byte(recipe.parent / "checkpoint" / "model.safetensors")


def _other_template(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    template = recipe.parent / "checkpoint" / "chat_template.jinja"
    template.write_text(template.read_text().replace("USER", "which"))


def _other_value(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("tau: 0.8", "tau: 0.7"))


def _other_code(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    monkeypatch.setattr(build_cache, "_sources_digest", lambda: "0" * 16)


def _other_machine(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    monkeypatch.setattr(build_cache, "processor_name", lambda: "abacus x 1")


@pytest.mark.parametrize(
    "change", [_other_value, _other_weight, _other_template, _other_version, _other_code, _other_machine]
)
def test_whatever_has_a_say_in_the_result_is_in_the_key(
    cache: Path,
    quick_export: None,
    recipe: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    assert build_recipe(recipe, work / "before").cache_hit, "the checkpoint lies elsewhere, which changes nothing"
    change(monkeypatch, recipe)
    assert not build_recipe(recipe, work / "after").cache_hit
    assert build_recipe(recipe, work / "again").cache_hit


def test_a_value_is_in_the_key_and_neither_its_spelling_nor_the_source_is(
    cache: Path, quick_export: None, recipe: Path, work: Path
) -> None:
    assert build_recipe(recipe, work / "same", "zipvl.tau=0.80", "target.limits.kv_bytes=1024KiB").cache_hit
    assert build_recipe(recipe, work / "moved", f"model.source={recipe.parent / 'checkpoint'}").cache_hit
    assert not build_recipe(recipe, work / "other", "zipvl.tau=0.81").cache_hit


def test_a_gpu_is_what_its_name_means() -> None:
    def key(name: str, gpu: str) -> str:
        return build_cache.cache_key({"model": {}, "target": {"gpu": name}}, {}, {}, gpu)

    assert key("a100", "SM80") == key("A100 80GB", "SM80") != key("l4", "SM89")


def _drop_manifest(found: Path) -> None:
    (found / "manifest.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: flip_byte(found / "weights.safetensors"),
        lambda found: (found / "prefill.onnx").unlink(),
        _drop_manifest,
        lambda found: flip_byte(found / "manifest.json"),
        lambda found: [path.unlink() for path in list(found.iterdir()) if path.is_file()],
    ],
)
def test_a_damaged_entry_is_built_again(
    cache: Path,
    quick_export: None,
    tiny_recipe: Path,
    tiny_bundle: Path,
    work: Path,
    damage: Callable[[Path], object],
) -> None:
    damage(entry(cache, tiny_bundle))
    assert not build_recipe(tiny_recipe, work / "first").cache_hit
    Bundle.open(work / "first")
    assert build_recipe(tiny_recipe, work / "second").cache_hit
    assert contents(work / "second") == contents(work / "first")


def test_a_build_that_cannot_be_cached_is_still_built(
    cache: Path, quick_export: None, tiny_recipe: Path, tiny_bundle: Path, work: Path
) -> None:
    place = entry(cache, tiny_bundle)
    shutil.rmtree(place)
    place.touch()
    assert not build_recipe(tiny_recipe, work / "bundle").cache_hit
    Bundle.open(work / "bundle")


def test_an_unwritable_cache_is_done_without(
    quick_export: None, tiny_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "file").touch()
    monkeypatch.setenv("ZIPVL_CACHE_DIR", str(work / "file"))
    result = build_recipe(tiny_recipe, work / "bundle")
    assert not result.cache_hit
    assert result.note == f"not cached: {work / 'file'} cannot be written; set ZIPVL_CACHE_DIR or use --no-cache"
    Bundle.open(work / "bundle")


@pytest.mark.parametrize("content", ['{"name": "an extension"}', "not json", "[]"])
def test_a_manifest_of_somebody_else_is_no_bundle(cache: Path, tiny_recipe: Path, work: Path, content: str) -> None:
    (work / "webapp").mkdir()
    (work / "webapp" / "manifest.json").write_text(content)
    (work / "webapp" / "thesis.txt").write_text("precious")
    with refusal(InputError, work / "webapp", "is a directory with other content"):
        build_recipe(tiny_recipe, work / "webapp")
    assert (work / "webapp" / "thesis.txt").read_text() == "precious"


def test_nothing_is_built_inside_a_bundle(tiny_recipe: Path, tiny_bundle: Path) -> None:
    with refusal(InputError, tiny_bundle / "inner", f"lies inside the bundle {tiny_bundle}"):
        build_recipe(tiny_recipe, tiny_bundle / "inner")


def test_two_processes_at_once_do_the_work_once(empty_cache: Path, tiny_recipe: Path, work: Path) -> None:
    processes = [spawn("build", tiny_recipe, "--out", work / "bundle") for _ in range(2)]
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert sorted(stdout.split(":")[0] for stdout, _ in printed) == ["built", "cache hit"]
    Bundle.open(work / "bundle")
    assert names(work) == ["bundle"]


# --- the place of the bundle ---


def test_a_bundle_is_replaced_whole(cache: Path, tiny_recipe: Path, tiny_bundle: Path, work: Path) -> None:
    shutil.copytree(tiny_bundle, work / "bundle")
    (work / "bundle" / "prefill.onnx").unlink()
    (work / "bundle" / "weights.safetensors").write_text("damaged")
    build_recipe(tiny_recipe, work / "bundle")
    assert contents(work / "bundle") == contents(tiny_bundle)
    assert names(work) == ["bundle"]


@pytest.mark.parametrize("place", ["new/deep/bundle", "empty", "link"])
def test_places_that_will_do(cache: Path, tiny_recipe: Path, tiny_bundle: Path, work: Path, place: str) -> None:
    (work / "empty").mkdir()
    shutil.copytree(tiny_bundle, work / "target")
    (work / "link").symlink_to("target")
    build_recipe(tiny_recipe, work / place)
    assert contents(work / place) == contents(tiny_bundle)
    assert (work / "link").is_symlink() and names(work / "link") == names(tiny_bundle)
    assert not any(work.rglob(".*"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("other", "is a directory with other content (notes.txt) | --out takes a new directory or a bundle to replace"),
        ("other/notes.txt", "is a file; --out names a directory"),
        ("dangling", "is a file; --out names a directory"),
    ],
)
def test_other_content_is_left_alone(cache: Path, tiny_recipe: Path, work: Path, place: str, message: str) -> None:
    (work / "other").mkdir()
    (work / "other" / "notes.txt").write_text("mine")
    (work / "dangling").symlink_to("nowhere")
    with refusal(InputError, work / place, *message.split(" | ")):
        build_recipe(tiny_recipe, work / place)
    assert contents(work) == {"other/notes.txt": b"mine"}
    assert names(work) == ["dangling", "other"]


def test_a_file_in_the_way_is_one_line(cache: Path, tiny_recipe: Path, work: Path) -> None:
    (work / "file").touch()
    for out in (work / "file" / "bundle", work / "file" / "deep" / "bundle"):
        with refusal(InputError, f"{out}: cannot be written: {out.parent} is not a directory"):
            build_recipe(tiny_recipe, out)


def test_what_appears_during_a_build_is_left_alone(work: Path) -> None:
    with refusal(InputError, work / "bundle", "other content"), staged_directory(work / "bundle") as staging:
        (staging / "manifest.json").touch()
        (work / "bundle").mkdir()
        (work / "bundle" / "notes.txt").write_text("mine")
    assert contents(work) == {"bundle/notes.txt": b"mine"}
    assert names(work) == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_build_leaves_the_old_bundle(
    quick_export: None,
    tiny_recipe: Path,
    tiny_bundle: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    shutil.copytree(tiny_bundle, work / "bundle")
    monkeypatch.setattr("zipvl_compile.bundling.break_even.measure", fail)
    with pytest.raises(error):
        build_recipe(tiny_recipe, work / "bundle", use_cache=False)
    assert contents(work / "bundle") == contents(tiny_bundle)
    assert names(work) == ["bundle"]


# --- stopped ---


@contextmanager
def running_build(recipe: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A build in a process of its own that has begun to write."""
    process = spawn("build", recipe, "--out", out)
    try:
        for _ in itertools.takewhile(lambda _: process.poll() is None, itertools.count()):
            if any(path.name.startswith(f".{out.name}.partial-") for path in out.parent.iterdir()):
                break
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(
    empty_cache: Path, tiny_recipe: Path, work: Path, signum: signal.Signals
) -> None:
    with running_build(tiny_recipe, work / "bundle") as process:
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error_line(stderr) == "interrupted; nothing half-written was left behind"
    assert names(work) == []
    assert all(name.endswith(".lock") for name in names(empty_cache / "bundles"))


def test_the_build_after_a_killed_one_sweeps_up(
    empty_cache: Path, quick_export: None, tiny_recipe: Path, work: Path
) -> None:
    with running_build(tiny_recipe, work / "bundle") as process:
        process.kill()
        process.wait(timeout=60)
    assert len(names(work)) == 1 and not (work / "bundle").exists(), "killed while it wrote"
    assert not build_recipe(tiny_recipe, work / "bundle").cache_hit
    Bundle.open(work / "bundle")
    assert names(work) == ["bundle"]


# --- a full disk ---


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """A disk of that size at `folder`; where none can be mounted, no file may be larger than 8 KiB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("kib", [8, 64, 140, 200])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    quick_export: None, tiny_recipe: Path, tmp_path: Path, kib: int
) -> None:
    with small_disk(tmp_path / "disk", kib):
        result = invoke("build", tiny_recipe, "--out", tmp_path / "disk" / "bundle", "--no-cache")
        left = names(tmp_path / "disk")
    assert result.exit_code == 1
    assert _is_full(error_line(result.stderr), tmp_path / "disk" / "bundle")
    assert left == []


def test_a_disk_too_full_for_a_copy(cache: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64):
        result = invoke("build", tiny_recipe, "--out", tmp_path / "disk" / "bundle")
        left = names(tmp_path / "disk")
    assert result.exit_code == 1
    assert _is_full(error_line(result.stderr), tmp_path / "disk" / "bundle")
    assert left == []


def _is_full(line: str, out: Path) -> bool:
    reasons = ("No space left on device", "File too large")
    return (
        line.startswith(f"{out}: cannot be written: ") and any(reason in line for reason in reasons) and len(line) < 300
    )
