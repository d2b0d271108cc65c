"""From a request's options to the serving side's types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zipvl_serving.errors import InputError
from zipvl_serving.generator import Generator, MethodParams
from zipvl_serving.images import load_image
from zipvl_serving.prompt import EncodedPrompt


def method_params(
    generator: Generator,
    tau: float | None,
    ratio_min: float | None,
    ratio_max: float | None,
    probe_seed: int | None,
    *,
    dense: bool,
) -> MethodParams:
    """The bundle's defaults with what the request says; a ceiling below the default floor lowers that floor too."""
    asked: dict[str, Any] = {"tau": tau, "ratio_min": ratio_min, "ratio_max": ratio_max, "seed": probe_seed}
    given = {name: value for name, value in asked.items() if value is not None}
    if dense and given:
        raise InputError(f"--dense keeps every token: --{next(iter(given)).replace('_', '-')} has no effect beside it")
    params = MethodParams.defaults(generator.bundle.manifest.method)
    if "ratio_max" in given and "ratio_min" not in given:
        given["ratio_min"] = min(params.ratio_min, max(given["ratio_max"], 0.0))
    if "ratio_min" in given and "ratio_max" not in given:
        given["ratio_max"] = max(params.ratio_max, min(given["ratio_min"], 1.0))
    return replace(params, dense=dense, **given)


def encode(generator: Generator, prompt: str, images: Sequence[Path] | None, *, raw: bool) -> EncodedPrompt:
    """Read the images and encode the prompt."""
    return generator.prepare(prompt, [load_image(path) for path in images or ()], raw=raw)
