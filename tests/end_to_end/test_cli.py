"""The command line: what each command prints, and one line with the right exit code for everything that is wrong."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from helpers.bundles import LAYERS, MAX_INPUT_TOKENS, QUESTION, RECIPE, edit_manifest, flip_byte, random_image
from helpers.command_line import error_line, invoke, spawn, succeed
from PIL import Image
from typer.testing import CliRunner

from zipvl_compile.commands.guard import GuardedGroup
from zipvl_serving.errors import InputError, ZipvlError

IMAGES = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(IMAGES):
        random_image(seed).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


def with_images(images: list[Path], count: int) -> list[str]:
    return [part for image in images[:count] for part in ("--image", str(image))]


# --- recipe, doctor ---


def test_recipe_list_names_what_validate_takes() -> None:
    names = succeed("recipe", "list").split()
    assert "digits" in names
    for name in names:
        assert succeed("recipe", "validate", name).startswith("valid: ")


def test_recipe_show_fills_everything_in(tiny_recipe: Path) -> None:
    shown = succeed("recipe", "show", tiny_recipe, "--set", "zipvl.tau=0.5")
    assert yaml.safe_load(shown)["zipvl"]["tau"] == 0.5
    as_json = json.loads(succeed("recipe", "show", tiny_recipe, "--set", "zipvl.tau=0.5", "--json"))
    assert as_json["zipvl"] == yaml.safe_load(shown)["zipvl"]
    assert as_json["zipvl"]["cache"] == "evict"


def test_recipe_schema_is_json() -> None:
    schema = json.loads(succeed("recipe", "schema"))
    assert {"name", "model", "zipvl", "target", "extends"} <= schema["properties"].keys()


def test_doctor_names_every_backend(session_cache: Path) -> None:
    report = json.loads(succeed("doctor", "--json"))
    assert report["backends"]["onnxruntime"]["usable"]
    assert not report["backends"]["tensorrt"]["usable"]
    assert report["cache"] == str(session_cache)
    printed = succeed("doctor")
    assert all(name in printed for name in (*report["backends"], *report["extras"]))


# --- build, inspect ---


def test_build_says_what_it_did(tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    result = invoke("build", tiny_recipe, "--out", tmp_path / "bundle")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"cache hit: {tmp_path / 'bundle'} (")
    assert result.stderr == "read checkpoint ...\n"
    result = invoke("build", tiny_recipe, "--out", tmp_path / "bundle", "--json")
    report = json.loads(result.stdout)
    assert report["bundle"] == str(tmp_path / "bundle") and report["cache_hit"] is True
    assert result.stderr == ""


def test_build_goes_to_the_recipes_name(
    tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(succeed("build", tiny_recipe, "--json"))["bundle"] == "build/tiny"
    assert (tmp_path / "build" / "tiny" / "manifest.json").is_file()


def test_inspect_shows_the_manifest(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    del manifest["digest"]
    assert json.loads(succeed("inspect", tiny_bundle, "--json")) == manifest
    printed = succeed("inspect", tiny_bundle)
    for part in ("LlavaForConditionalGeneration", "tau 0.8", "prefill.onnx", f"{MAX_INPUT_TOKENS} input tokens"):
        assert part in " ".join(printed.split())


def test_inspect_shows_what_each_layer_keeps(tiny_bundle: Path, images: list[Path]) -> None:
    command = ["inspect", tiny_bundle, "--prompt", QUESTION, *with_images(images, 2), "--tau", "0.6"]
    report = json.loads(succeed(*command, "--json"))
    assert not report["dense"] and len(report["kept_tokens_per_layer"]) == LAYERS
    for ratio, kept in zip(report["ratio_per_layer"], report["kept_tokens_per_layer"], strict=True):
        assert 0 < ratio < 1
        assert len(kept) == round(ratio * report["prompt_tokens"]) and kept == sorted(set(kept))
        assert kept[-1] == report["prompt_tokens"] - 1
    printed = succeed(*command)
    for layer, kept in enumerate(report["kept_tokens_per_layer"]):
        assert f"layer {layer}: {len(kept)} tokens kept" in printed
    dense = json.loads(succeed(*command[:-2], "--dense", "--json"))
    assert dense["dense"] and dense["ratio_per_layer"] == [1.0] * LAYERS


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("jpg", b"\xff\xd8\xff")])
def test_inspect_draws(tiny_bundle: Path, images: list[Path], tmp_path: Path, suffix: str, start: bytes) -> None:
    picture = tmp_path / "new" / f"kept.{suffix}"
    command = ["inspect", tiny_bundle, "--prompt", QUESTION, *with_images(images, 3), "--plot", picture]
    assert f"picture: {picture}" in succeed(*command)
    assert picture.read_bytes().startswith(start)
    if suffix != "svg":
        with Image.open(picture) as drawn:
            drawn.load()
            assert min(drawn.size) > 100 and len(drawn.convert("RGB").getcolors(1 << 24)) > 100


# --- generate ---


@pytest.mark.parametrize("count", [0, 1, IMAGES])
def test_the_streamed_text_is_the_text_in_json(tiny_bundle: Path, images: list[Path], count: int) -> None:
    command = ["generate", tiny_bundle, "--prompt", QUESTION, *with_images(images, count), "--max-new-tokens", "12"]
    streamed = invoke(*command)
    assert streamed.exit_code == 0
    report = json.loads(succeed(*command, "--json"))
    assert streamed.stdout == report["text"] + "\n"
    assert report["text"] and len(report["token_ids"]) <= 12
    assert report["sampling"]["max_new_tokens"] == 12 and report["method"]["tau"] == 0.8
    (summary,) = streamed.stderr.splitlines()
    assert summary.startswith(f"[{report['prompt_tokens']} prompt tokens, TTFT ")
    assert summary.endswith(f"ratio per layer {' '.join(f'{ratio:.2f}' for ratio in report['ratio_per_layer'])}]")


def test_generate_takes_the_methods_options(tiny_bundle: Path, images: list[Path]) -> None:
    def answer(*options: str) -> dict[str, Any]:
        prompt = ["--prompt", QUESTION, *with_images(images, 2)]
        return dict(json.loads(succeed("generate", tiny_bundle, *prompt, *options, "--json")))

    usual, dense, complete = answer(), answer("--dense"), answer("--tau", "1")
    assert max(usual["ratio_per_layer"]) < 1
    assert dense["dense"] and not complete["dense"]
    assert dense["text"] == complete["text"] and dense["ratio_per_layer"] == [1.0] * LAYERS
    forced = answer("--ratio-min", "0.25", "--ratio-max", "0.25")
    wanted = round(0.25 * forced["prompt_tokens"])
    assert all(wanted <= count <= wanted + 1 for count in forced["kept_tokens_per_layer"])
    assert answer("--probe-seed", "7")["method"]["seed"] == 7
    sampled = [answer("--temperature", "3", "--seed", "5")["token_ids"] for _ in range(2)]
    assert sampled[0] == sampled[1] != usual["token_ids"]
    assert len(answer()["token_ids"]) <= 8, "the bundle's default"


def test_a_bound_that_is_asked_for_moves_the_bundles_other_one(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    edit_manifest(bundle, lambda body: body["method"].update(ratio_min=0.4, ratio_max=0.6), seal=True)
    for option, value, bounds in (
        ("--ratio-min", 0.8, (0.8, 0.8)),
        ("--ratio-min", 0.5, (0.5, 0.6)),
        ("--ratio-max", 0.2, (0.2, 0.2)),
        ("--ratio-max", 0.5, (0.4, 0.5)),
    ):
        method = json.loads(succeed("generate", bundle, "--prompt", QUESTION, option, str(value), "--json"))["method"]
        assert (method["ratio_min"], method["ratio_max"]) == bounds


def test_image_tokens_in_the_prompt_place_the_images(tiny_bundle: Path, images: list[Path]) -> None:
    def answer(prompt: str, *options: str) -> Any:
        command = ["generate", tiny_bundle, "--prompt", prompt, *with_images(images, 1), *options, "--json"]
        return json.loads(succeed(*command))["token_ids"]

    placed = answer(f"<image> {QUESTION}")
    assert placed == answer(QUESTION)
    assert placed == answer(f"<s> USER : <image> {QUESTION} ASSISTANT :", "--raw")


def test_the_console_script_does_the_same(tiny_bundle: Path, images: list[Path]) -> None:
    command = ["generate", tiny_bundle, "--prompt", QUESTION, *with_images(images, 1)]
    process = spawn(*command)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "prompt tokens" in stderr
    assert stdout == succeed(*command)


def test_a_reader_that_goes_away_is_no_error(tiny_bundle: Path) -> None:
    process = spawn("inspect", tiny_bundle, "--json")
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


def test_demo_answers_and_draws(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A file of that name goes before the recipe that ships.
    Path("digits").write_text(RECIPE.replace("source: checkpoint", f"source: {tiny_checkpoint}"))
    printed = dict(line.split(": ", 1) for line in succeed("demo", "--out", "build").splitlines())
    assert {"image", "question", "answer", "ratio per layer", "picture"} <= printed.keys()
    for name in ("image", "picture"):
        with Image.open(printed[name]) as image:
            image.load()


# --- what is wrong ---


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path, tiny_bundle: Path, images: list[Path]
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "unknown.yaml").write_text(RECIPE.replace("tau:", "tua:"))
    (folder / "tau.yaml").write_text(RECIPE.replace("tau: 0.8", "tau: 1.5"))
    (folder / "text.png").write_text("I am no image")
    (folder / "truncated.png").write_bytes(images[0].read_bytes()[:2000])
    (folder / "folder.png").mkdir()
    shutil.copytree(tiny_bundle, folder / "tampered")
    flip_byte(folder / "tampered" / "weights.safetensors")
    return {"tmp": folder, "recipe": tiny_recipe, "bundle": tiny_bundle, "image": images[0]}


ASK = f"generate {{bundle}} --prompt '{QUESTION}'"
LOOK = f"inspect {{bundle}} --prompt '{QUESTION}'"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("recipe validate {tmp}/unknown.yaml", 2, "unknown.yaml:5: zipvl.tua: unknown key; did you mean 'tau'?"),
        (
            "recipe validate {recipe} --set target.backend=tensorrt_rtx --set target.gpu=a1000",
            2,
            "target.gpu: unknown GPU 'a1000'; did you mean 'a100'?",
        ),
        (
            "recipe validate {recipe} --set target.backend=torch --set target.gpu=a100",
            2,
            "target.gpu: 'a100' cannot be",
        ),
        ("recipe validate {tmp}/tau.yaml", 2, "tau.yaml:5: zipvl.tau: 1.5 is out of range; must be > 0 and <= 1"),
        ("recipe show {recipe} --set zipvl.tau=1.5", 2, "--set: zipvl.tau: 1.5 is out of range"),
        ("recipe show {tmp}/nothing.yaml", 2, "nothing.yaml: no such recipe file; valid: "),
        ("build {tmp}/tau.yaml --out {tmp}/out", 2, "zipvl.tau: 1.5 is out of range"),
        ("build {recipe} --set zipvl.tua=1 --out {tmp}/out", 2, "--set: zipvl.tua: unknown key"),
        ("build {recipe} --set model.source={tmp}/nothing --out {tmp}/out", 2, "checkpoint not found"),
        (
            "build {recipe} --set target.backend=tensorrt --out {tmp}/out",
            2,
            "'tensorrt' is not usable here: tensorrt's libraries are missing",
        ),
        ("build {recipe} --out {tmp}/text.png", 2, "text.png: is a file; --out names a directory"),
        ("build {recipe} --out {tmp}", 2, "is a directory with other content"),
        ("inspect {tmp}/nothing", 2, "nothing: not a bundle: it does not exist"),
        ("inspect {tmp}/folder.png", 2, "folder.png: not a bundle: it has no manifest.json"),
        ("inspect {tmp}/tampered", 1, "tampered/weights.safetensors: was changed after the build"),
        ("inspect {bundle} --image {image}", 2, "--image, --plot, --raw and the method's options need --prompt"),
        (LOOK + " --plot {tmp}/x.png", 2, "give at least one --image"),
        (LOOK + " --image {image} --plot {tmp}/x.bmp", 2, "unknown suffix '.bmp'; valid: .png, .svg, .pdf, .jpg"),
        (LOOK + " --image {image} --plot {tmp}/x", 2, "unknown suffix ''"),
        (LOOK + " --image {image} --plot {tmp}/folder.png", 1, "folder.png: cannot be written: Is a directory"),
        (LOOK + " --tau 1.5", 2, "tau: 1.5 is out of range; must be > 0 and <= 1"),
        ("generate {tmp}/nothing --prompt x", 2, "nothing: not a bundle: it does not exist"),
        ("generate {tmp}/tampered --prompt x", 1, "was changed after the build"),
        (ASK + " --tau 1.5", 2, "tau: 1.5 is out of range; must be > 0 and <= 1"),
        (ASK + " --tau 0", 2, "tau: 0.0 is out of range"),
        (ASK + " --ratio-min 0.6 --ratio-max 0.5", 2, "ratio_min: 0.6 is above ratio_max, 0.5"),
        (ASK + " --probe-seed -1", 2, "probe seed: -1 is out of range"),
        (ASK + " --max-new-tokens 33", 2, "max_new_tokens: 33 is out of range; this bundle takes 1 to 32"),
        (ASK + " --max-new-tokens 0", 2, "max_new_tokens is 0; valid: an integer >= 1"),
        (ASK + " --temperature -1", 2, "temperature is -1.0; valid: a number >= 0"),
        (ASK + " --top-p 0", 2, "top_p is 0.0; valid: a number in (0, 1]"),
        (ASK + " --image {tmp}/missing.png", 2, "missing.png: an image file was expected, but it does not exist"),
        (ASK + " --image {tmp}/text.png", 2, "text.png: not an image in a known format"),
        (ASK + " --image {tmp}/truncated.png", 2, "truncated.png: the image is truncated or broken"),
        (ASK + " --image {tmp}/folder.png", 2, "folder.png: an image file was expected, but it is a directory"),
        (ASK + " --raw --image {image}", 2, "the prompt has 0 image tokens ('<image>') but 1 image was given"),
        ("generate {bundle} --raw --prompt '<image> x' --image {image} --image {image}", 2, "but 2 images were given"),
        (
            "generate {bundle} --prompt '<image> x'",
            2,
            "the prompt has 1 image token ('<image>') but 0 images were given",
        ),
        ("generate {bundle} --prompt ' '", 2, "the prompt is empty"),
        (
            f"generate {{bundle}} --prompt '{'digit ' * 600}'",
            2,
            f"tokens, this bundle takes {MAX_INPUT_TOKENS} at most",
        ),
        (ASK + " --image {image}" * 14, 2, "the prompt has 514 tokens, this bundle takes 512 at most"),
    ],
)
def test_what_is_wrong_is_one_line(places: dict[str, Path], command: str, code: int, message: str) -> None:
    result = invoke(*shlex.split(command.format(**places)))
    assert message in error_line(result.stderr)
    assert result.exit_code == code
    assert result.stdout == ""
    assert not (places["tmp"] / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate {bundle} --prompt x --nonsense", "No such option: --nonsense"),
        ("generate {bundle}", "Missing option '--prompt'"),
        ("generate {bundle} --prompt x --tau high", "Invalid value for '--tau'"),
        ("nonsense", "No such command 'nonsense'"),
        ("recipe nonsense", "No such command 'nonsense'"),
    ],
)
def test_wrong_usage_is_explained(places: dict[str, Path], command: str, message: str) -> None:
    result = invoke(*shlex.split(command.format(**places)))
    assert result.exit_code == 2
    assert message in error_line(result.stderr)


def test_the_console_script_fails_the_same(places: dict[str, Path]) -> None:
    process = spawn("inspect", places["tmp"] / "tampered")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert "was changed after the build" in error_line(stderr)


def test_a_full_stdout_is_one_line(tiny_bundle: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = spawn("inspect", tiny_bundle, "--json", stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left on device" in error_line(stderr)


# --- the guard around every command ---


def guarded(command: Callable[[], None], **environment: str) -> Any:
    app = typer.Typer(cls=GuardedGroup, pretty_exceptions_enable=False)
    app.command()(command)
    app.callback()(lambda: None)
    return CliRunner(env=environment).invoke(app, ["command"])


def test_a_bug_is_one_line_and_its_traceback_on_demand() -> None:
    def command() -> None:
        raise ValueError("first\nsecond")

    result = guarded(command)
    line = "internal: ValueError: first second (a bug; ZIPVL_TRACEBACK=1 shows where)"
    assert (result.exit_code, error_line(result.stderr)) == (1, line)
    shown = guarded(command, ZIPVL_TRACEBACK="1").stderr
    assert "Traceback" in shown and shown.endswith(f"error: {line}\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ZipvlError("first\nsecond"), 1, "first second"),
        (InputError("wrong"), 2, "wrong"),
        (PermissionError(13, "Permission denied", "a.txt"), 1, "a.txt: Permission denied"),
        (OSError("odd"), 1, "system: odd"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written was left behind"),
    ],
)
def test_every_error_is_one_line(error: BaseException, code: int, line: str) -> None:
    def command() -> None:
        raise error

    result = guarded(command)
    assert (result.exit_code, error_line(result.stderr)) == (code, line)


@pytest.fixture
def heed_sigint() -> Iterator[None]:
    """A suite started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_within_a_callback_is_not_lost(signum: signal.Signals, heed_sigint: None) -> None:
    """Python drops what a weakref callback raises."""

    class Target:
        pass

    def command() -> None:
        target = Target()
        reference = weakref.ref(target, lambda _: signal.raise_signal(signum))
        del target
        assert reference() is None
        for _ in range(500):
            time.sleep(0.01)
        typer.echo("survived")

    handler = signal.getsignal(signal.SIGTERM)
    result = guarded(command)
    assert (result.exit_code, result.stdout) == (130, "")
    assert error_line(result.stderr) == "interrupted; nothing half-written was left behind"
    assert signal.getsignal(signal.SIGTERM) is handler


def test_demo_score_fills_its_table(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    printed = succeed("demo", "score", "--questions", "1", "--out", tmp_path, "--json-out", figures)
    scores = json.loads(figures.read_text())["scores"]
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][1:] == list(scores)
    assert len(scores) == 4 and all(len(columns) == 6 for columns in scores.values())
    assert all(score["ratio"] == 1 for score in scores["full"].values())
    assert all(score["ratio"] < 1 for score in scores["ZipVL, literal"].values())
