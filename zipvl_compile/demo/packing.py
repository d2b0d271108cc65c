"""Batches for training: many questions share one image prefix.

A row is `<s> USER : <image>... | question 1 | question 2 | ...`; a block-diagonal mask lets every question
see the prefix and itself only, and its positions restart after the prefix, exactly as if it were asked alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from zipvl_compile.demo.questions import VOCABULARY, Question, ask
from zipvl_compile.demo.scenes import GRID, Scene, sample_scenes

_ID = {word: i for i, word in enumerate(VOCABULARY)}
_IGNORE = -100


def encode(words: str) -> list[int]:
    """Token ids of words separated by blanks."""
    return [_ID[word] for word in words.split()]


@dataclass(frozen=True)
class PackedBatch:
    """Scenes with their packed questions; lengths are padded to the longest row."""

    pixels: torch.Tensor
    """float32 [scenes * frames, 3, 48, 48], normalised to -1..1 as the processor does."""
    input_ids: torch.Tensor
    """int64 [scenes, length]."""
    segment: torch.Tensor
    """int64 [scenes, length]: 0 in the prefix, 1.. in a question, -1 in padding."""
    position_ids: torch.Tensor
    """int64 [scenes, length]."""
    labels: torch.Tensor
    """int64 [scenes, length]: the next token where it is an answer's, else -100."""
    questions: list[list[Question]]

    def attention_mask(self) -> torch.Tensor:
        """bool [scenes, 1, length, length], True where a query may look."""
        length = self.segment.shape[1]
        query, key = self.segment[:, :, None], self.segment[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # Padding sees itself, so that no row of the softmax is empty.
        return (((key == 0) | (key == query)) & causal)[:, None]


def pixels_of(scenes: list[Scene]) -> torch.Tensor:
    """float32 [scenes * frames, 3, 48, 48] in -1..1."""
    frames = np.concatenate([scene.frames for scene in scenes])
    return torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def pack(
    rng: np.random.Generator, scenes: int, frames: int, tasks: Mapping[str, float], per_scene: int, *, held_out: bool
) -> PackedBatch:
    """Sample scenes, ask `per_scene` questions of each (tasks drawn by weight) and pack them."""
    names, weights = list(tasks), np.array(list(tasks.values()))
    drawn = sample_scenes(rng, scenes, frames, held_out=held_out)
    asked: list[list[Question]] = []
    for scene in drawn:
        wanted = rng.choice(names, size=per_scene, p=weights / weights.sum())
        asked.append([q for q in (ask(rng, scene, str(task)) for task in wanted) if q is not None])
    prefix = encode("<s> USER :") + [_ID["<image>"]] * (GRID * GRID * frames)
    rows = [_pack_row(prefix, questions) for questions in asked]
    length = max(len(row[0]) for row in rows)
    fills = (_ID["<pad>"], -1, 0, _IGNORE)
    ids, segment, positions, labels = (
        torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows]) for i, fill in enumerate(fills)
    )
    return PackedBatch(pixels_of(drawn), ids, segment, positions, labels, asked)


def _pack_row(prefix: list[int], questions: list[Question]) -> tuple[list[int], list[int], list[int], list[int]]:
    ids, segment = list(prefix), [0] * len(prefix)
    positions, labels = list(range(len(prefix))), [_IGNORE] * len(prefix)
    for number, question in enumerate(questions, start=1):
        asked, answer = encode(question.text + " ASSISTANT :"), encode(question.answer + " </s>")
        ids += asked + answer
        segment += [number] * (len(asked) + len(answer))
        positions += range(len(prefix), len(prefix) + len(asked) + len(answer))
        labels += [_IGNORE] * (len(asked) - 1) + answer + [_IGNORE]
    return ids, segment, positions, labels
