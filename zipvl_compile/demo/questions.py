"""Questions about a scene and their answers, as words of the demo vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zipvl_compile.demo.scenes import CLUTTER, COLORS, EMPTY, GRID, WHITE, Scene
from zipvl_serving.arrays import Array

_CELL_WORDS = (*COLORS, "white", "_", "_")
"""The word for each kind of cell; indexable by Scene.kind."""
assert (WHITE, CLUTTER, EMPTY) == (6, 7, 8)

VOCABULARY = (
    *("<pad>", "<unk>", "<s>", "</s>", "<image>", "USER", "ASSISTANT", ":", "?", "_"),
    *(str(digit) for digit in range(10)),
    *(f"row{row}" for row in range(GRID)),
    *(f"col{col}" for col in range(GRID)),
    *(*COLORS, "white", "which", "what", "digit", "digits", "color", "colors", "is", "at", "of", "how", "many", "read"),
)
"""Every word the model knows; a word's place is its token id."""


VIDEO_TASKS = ("color", "count")
"""Tasks that make sense over many frames; the others name a place in one frame."""


@dataclass(frozen=True)
class Question:
    """What is asked and what the answer is; both are words separated by blanks."""

    task: str
    text: str
    answer: str


def _digit_word(digit: int) -> str:
    return str(digit) if digit >= 0 else "_"


def _count_weights(counts: Array) -> Array:
    """Weights that make the answers 0-9 equally likely over many scenes (a colour is mostly seen once)."""
    odds = np.where(counts == 1, 0.45, np.where(counts == 0, 0.07, 0.06))
    weights = 1 / odds
    return weights / weights.sum()


def ask(rng: np.random.Generator, scene: Scene, task: str) -> Question | None:
    """One question of a task about a scene, or None where it has none (no colour seen once; a place in many frames)."""
    if len(scene.frames) > 1 and task not in VIDEO_TASKS:
        return None
    row, col = (int(v) for v in rng.integers(0, GRID, 2))
    counts = np.bincount(scene.kind[scene.kind < WHITE], minlength=len(COLORS))
    if task == "color":
        once = np.flatnonzero(counts == 1)
        if not len(once):
            return None
        color = int(rng.choice(once))
        return Question(task, f"which digit is {COLORS[color]} ?", str(scene.digit[scene.kind == color][0]))
    if task == "count":
        color = int(rng.choice(len(COLORS), p=_count_weights(counts)))
        return Question(task, f"how many digits is {COLORS[color]} ?", str(counts[color]))
    digits, kinds = scene.digit[0], scene.kind[0]
    places = {
        "cell": (f"which digit at row{row} col{col} ?", [_digit_word(digits[row, col])]),
        "row": (f"read row{row} ?", [_digit_word(digit) for digit in digits[row]]),
        "cell_color": (f"what color at row{row} col{col} ?", [_CELL_WORDS[kinds[row, col]]]),
        "row_colors": (f"read colors of row{row} ?", [_CELL_WORDS[kind] for kind in kinds[row]]),
    }
    if task in places:
        text, words = places[task]
        return Question(task, text, " ".join(words))
    raise ValueError(f"unknown task {task!r}; tasks are color, count, cell, row, cell_color, row_colors")
