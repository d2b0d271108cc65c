"""The picture of a prompt: which visual tokens each layer kept, over the image, beside the ratio per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from zipvl_serving.arrays import Array
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.runner import PromptResult

_MOST_IMAGES = 4
_PANELS_PER_ROW = 8
_SUFFIXES = (".png", ".svg", ".pdf", ".jpg")


def visual_grids(prompt: EncodedPrompt, result: PromptResult, images: int) -> Array:
    """bool [layers, images, side, side]: True where a layer kept the visual token of that patch.

    InputError where an image's tokens are not a square grid.
    """
    visual = np.flatnonzero(~prompt.is_text)
    per_image = len(visual) // images
    side = math.isqrt(per_image)
    if side * side != per_image:
        raise InputError(f"an image of this model has {per_image} visual tokens, which is no square grid to draw")
    kept = np.stack([np.isin(visual, index) for index in result.index])
    return kept.reshape(len(result.index), images, side, side)


def draw(path: Path, images: Sequence[Image.Image], prompt: EncodedPrompt, result: PromptResult, caption: str) -> None:
    """Write the picture; the suffix of `path` chooses the format.

    `images` are as the model saw them, resized and cropped (ImageProcessor.geometry): its patches lie on those.

    Raises InputError for a prompt without images or an unknown suffix, ZipvlError where the file cannot be written.
    """
    if not images:
        raise InputError("--plot draws kept visual tokens: give at least one --image")
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"--plot {path}: unknown suffix {path.suffix!r}; valid: {', '.join(_SUFFIXES)}")
    from matplotlib.figure import Figure

    grids = visual_grids(prompt, result, len(images))
    layers, shown = len(grids), min(len(images), _MOST_IMAGES)
    columns = min(layers, _PANELS_PER_ROW)
    bands = math.ceil(layers / columns)
    figure = Figure(figsize=(1.9 * (columns + 1.6), 2.1 * bands * shown + 0.9), layout="constrained")
    panels, chart = cast("np.ndarray[Any, Any]", figure.subfigures(1, 2, width_ratios=[columns, 1.6]))
    axes = panels.subplots(bands * shown, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for layer in range(layers):
        for at in range(shown):
            axis = axes[(layer // columns) * shown + at, layer % columns]
            axis.imshow(_dimmed(images[at], grids[layer, at]), interpolation="nearest")
            if at == 0:
                axis.set_title(f"layer {layer}: {grids[layer].mean():.0%}", fontsize=9)
    bars = chart.subplots()
    bars.barh(range(layers), result.ratios, color="#33658a")
    bars.set(xlim=(0, 1), ylim=(layers - 0.5, -0.5), xlabel="tokens kept, text included", ylabel="layer")
    bars.set_yticks(range(layers) if layers <= 16 else range(0, layers, 4))
    more = f" (first {shown} of {len(images)} images)" if shown < len(images) else ""
    figure.suptitle(f"{caption}{more}: visual tokens kept per layer", fontsize=11)
    unfinished = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(unfinished, dpi=110)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ZipvlError(f"{path}: cannot be written: {error.strerror or error}") from None


def _dimmed(image: Image.Image, kept: Array) -> Array:
    """The image, enlarged, with the patches that were not kept faded towards white: uint8 [size, size, 3]."""
    side = len(kept)
    scale = max(1, 240 // side)
    pixels = np.asarray(image.convert("RGB").resize((side * scale, side * scale), Image.Resampling.NEAREST))
    mask = kept.repeat(scale, axis=0).repeat(scale, axis=1)[..., None]
    return np.where(mask, pixels, 255 - (255 - pixels.astype(np.uint16)) // 5).astype(np.uint8)
