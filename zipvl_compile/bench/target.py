"""What is measured: a bundle by its directory, or a recipe that is built first."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from zipvl_compile.bench.results import Target
from zipvl_compile.bench.workload import Mode
from zipvl_compile.recipe.source import find_shipped, is_dir, recipe_names, recipes_dir
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.generator import Generator
from zipvl_serving.machine import usable_cores
from zipvl_serving.manifest import Manifest, digest
from zipvl_serving.method import MethodParams
from zipvl_serving.sessions.base import Session, open_as_served

BUNDLE_FOLDER = "bundle"
"""Under --out: the bundle of a recipe."""

Weights = Literal["checkpoint", "random"]
RANDOM_WEIGHTS_NOTE = "random weights: cost only; no ratio that a tau chose and no answer means anything"


def weights_of(manifest: Manifest) -> Weights:
    """Where a bundle's weights come from."""
    return "random" if manifest.recipe["model"].get("weights") == "random" else "checkpoint"


@dataclass(frozen=True)
class Opened:
    """An open bundle; `generator` runs prompts as the serving runtime does, one at a time."""

    bundle: Bundle
    session: Session
    threads: int
    source: str

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def weights(self) -> Weights:
        return weights_of(self.manifest)

    def generator(self, around: Callable[[Session], Session], dense_below: int | None = None) -> Generator:
        """A generator over `around(session)`; dense_below replaces the bundle's own."""
        manifest = self.manifest
        if dense_below is not None:
            method = manifest.method.model_copy(update={"dense_below": dense_below})
            manifest = manifest.model_copy(update={"method": method})
        return Generator(replace(self.bundle, manifest=manifest), around(self.session))

    def params(self, mode: Mode) -> MethodParams:
        """The method's settings of a mode; of transformers, which has none, those of dense."""
        return MethodParams.defaults(self.manifest.method).override(**mode.method)

    def describe(self) -> Target:
        serving = self.manifest.serving
        return describe_bundle(
            self.manifest,
            self.source,
            {"threads": self.threads, "spinning": serving.spinning, "prepack": serving.prepack},
        )


def describe_bundle(manifest: Manifest, source: str, how: Mapping[str, Any]) -> Target:
    """What results say of a bundle; `how`: how it was run."""
    return Target(
        name=manifest.name,
        source=source,
        digest=digest(manifest.model_dump(mode="json")),
        weights=weights_of(manifest),
        description={
            "backend": f"{manifest.engine.backend} {manifest.engine.backend_version}",
            "dtype": manifest.model.dtype,
            "parameters": manifest.model.parameters,
            "shape": asdict(manifest.model.shape),
            "page_size": manifest.limits.page_size,
            "cache": manifest.method.cache,
            "dense_below": manifest.method.dense_below,
            "dense_layers": manifest.method.dense_layers,
            "force_text": manifest.method.force_text,
            "break_even_tokens": manifest.break_even.tokens,
            **how,
        },
    )


def stop_spinning() -> None:
    """Keep torch's OpenMP threads from spinning, which would slow every other runtime here; before torch is loaded."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def open_target(target: str, out: Path, on_step: Callable[[str, str], None]) -> Opened:
    """Open a bundle's directory, or build a recipe (by path or name) into `out`/bundle and open that.

    The engine gets the threads and the waiting that the bundle is served with. InputError, one line, where `target` is
    neither.
    """
    if is_dir(Path(target)):
        bundle, source = Bundle.open(target), target
    else:
        from zipvl_compile.bundling.pipeline import build
        from zipvl_compile.recipe.load import load_recipe

        recipe = find_shipped(target, recipe_names(), recipes_dir(), "bundle's directory or recipe")
        built = build(load_recipe(recipe), out / BUNDLE_FOLDER, on_step=on_step)
        bundle, source = Bundle.open(built.bundle, verify=False), str(target)
    serving = bundle.manifest.serving
    return Opened(bundle, open_as_served(bundle), serving.threads or usable_cores(), source)


def check_modes(opened: Opened, modes: Sequence[Mode]) -> None:
    """InputError, one line, for a mode that this bundle cannot be measured in."""
    check_forced(opened.manifest, modes)
    engine = opened.manifest.engine
    for mode in modes:
        if mode.kind == "transformers" and (engine.weights is None or engine.backend != "onnxruntime"):
            raise InputError(
                f"mode {mode.name}: compares on this CPU with a bundle of onnxruntime, whose weights it reads; "
                f"{opened.manifest.name} is for {engine.backend}; remove the mode"
            )


def check_forced(manifest: Manifest, modes: Sequence[Mode]) -> None:
    """InputError, one line, for a forced ratio on a trained bundle."""
    for mode in modes:
        if mode.kind == "forced_ratio" and weights_of(manifest) != "random":
            raise InputError(
                f"mode {mode.name}: a forced ratio studies the cost of random weights, {manifest.name} is trained; "
                f"use fixed_ratio: {mode.value}, the fixed-ratio baseline"
            )
