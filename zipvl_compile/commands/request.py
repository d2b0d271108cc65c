"""From a request's options to the serving side's types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zipvl_serving.generator import Generator
from zipvl_serving.method import MethodParams
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.vision.images import load_image


def method_params(
    generator: Generator,
    tau: float | None,
    ratio_min: float | None,
    ratio_max: float | None,
    probe_seed: int | None,
    *,
    dense: bool,
) -> MethodParams:
    """The bundle's defaults with what the request says."""
    defaults = MethodParams.defaults(generator.bundle.manifest.method)
    return defaults.override(tau, ratio_min, ratio_max, probe_seed, dense=dense)


def encode(generator: Generator, prompt: str, images: Sequence[Path] | None, *, raw: bool) -> EncodedPrompt:
    """Read the images and encode the prompt."""
    return generator.prepare(prompt, [load_image(path) for path in images or ()], raw=raw)
