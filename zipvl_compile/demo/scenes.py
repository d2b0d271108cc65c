"""Scenes of handwritten digits: what the demo model looks at.

A frame is a 6 x 6 grid of 8 x 8 pixel cells. A cell holds a digit in one of six colours or white,
coloured clutter, or nothing. The glyphs are scikit-learn's bundled handwritten digits; 360 of them
are held out for evaluation and never seen in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from zipvl_serving.arrays import Array

GRID = 6
CELL = 8
SIDE = GRID * CELL
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
WHITE, CLUTTER, EMPTY = 6, 7, 8
"""Kinds of cell after the colours 0-5."""

_RGB = np.array(
    [[1, 0.15, 0.15], [0.15, 0.9, 0.2], [0.25, 0.35, 1], [1, 0.9, 0.1], [0.75, 0.2, 0.85], [0.1, 0.9, 0.9], [1, 1, 1]],
    dtype=np.float32,
)
_HELD_OUT = 360
_SHIFTS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


@dataclass(frozen=True)
class Scene:
    """One image, or the frames of one video, with what is in every cell."""

    frames: Array
    """uint8 [frames, 48, 48, 3], RGB."""
    kind: Array
    """int [frames, 6, 6]: an index into COLORS, or WHITE, CLUTTER, EMPTY."""
    digit: Array
    """int [frames, 6, 6]: 0-9, or -1 where the cell holds no digit."""


@lru_cache(maxsize=2)
def glyphs(held_out: bool) -> tuple[Array, Array]:
    """Handwritten digits in all nine one-pixel shifts.

    Returns (ink float32 [glyphs, 9, 8, 8] in 0-1, label int [glyphs]); the split is fixed by seed 0.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.target))
    chosen = order[:_HELD_OUT] if held_out else order[_HELD_OUT:]
    ink = data.images[chosen].astype(np.float32) / 16
    padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    shifted = [padded[:, 1 + dy : 1 + dy + CELL, 1 + dx : 1 + dx + CELL] for dy, dx in _SHIFTS]
    return np.stack(shifted, axis=1), data.target[chosen].astype(np.int64)


def _color_counts(rng: np.random.Generator, most: int) -> Array:
    """How often each colour appears: once (45 %), never (7 %), else 2-9 times; `most` cells at most in all."""
    while True:
        draw = rng.random(len(COLORS))
        counts = np.where(draw < 0.45, 1, np.where(draw < 0.52, 0, rng.integers(2, 10, len(COLORS))))
        if counts.sum() <= most:
            return counts


def sample_scenes(rng: np.random.Generator, scenes: int, frames: int, *, held_out: bool) -> list[Scene]:
    """Draw `scenes` scenes of `frames` frames each; the same generator state gives the same scenes."""
    cells = frames * GRID * GRID
    kind = np.empty((scenes, cells), dtype=np.int64)
    for row in kind:
        # Crowded and sparse scenes alike, so that neither length nor density tells the answer.
        filler = rng.dirichlet((1.0, 0.7, 1.0))
        row[:] = rng.choice((WHITE, CLUTTER, EMPTY), size=cells, p=filler)
        colored = np.repeat(np.arange(len(COLORS)), _color_counts(rng, cells))
        row[rng.choice(cells, size=len(colored), replace=False)] = colored
    ink, label = glyphs(held_out)
    glyph = rng.integers(0, len(label), kind.shape)
    images = _render(rng, kind, ink[glyph, rng.integers(0, len(_SHIFTS), kind.shape)])
    digit = np.where(kind <= WHITE, label[glyph], -1)
    grid = (scenes, frames, GRID, GRID)
    return [
        Scene(f, k, d)
        for f, k, d in zip(
            images.reshape(scenes, frames, SIDE, SIDE, 3), kind.reshape(grid), digit.reshape(grid), strict=True
        )
    ]


def _render(rng: np.random.Generator, kind: Array, ink: Array) -> Array:
    """Paint cells: kind int [scenes, cells], ink [scenes, cells, 8, 8] -> uint8 [scenes, frames, 48, 48, 3]."""
    shape = kind.shape
    brightness = rng.uniform(0.7, 1.0, shape).astype(np.float32)
    tint = _RGB[np.minimum(kind, WHITE)] * brightness[..., None]
    is_clutter = kind == CLUTTER
    tint[is_clutter] = rng.uniform(0, 1, (int(is_clutter.sum()), 3)).astype(np.float32)
    ink = np.where(is_clutter[..., None, None], rng.random(ink.shape, dtype=np.float32), ink)
    ink[kind == EMPTY] = 0
    cells = ink[..., None] * tint[:, :, None, None, :]
    frames = shape[1] // (GRID * GRID)
    image = cells.reshape(shape[0], frames, GRID, GRID, CELL, CELL, 3).transpose(0, 1, 2, 4, 3, 5, 6)
    image = image.reshape(shape[0], frames, SIDE, SIDE, 3)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * 0.03
    return (np.clip(image + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
