"""Accuracy of compiled bundles on scenes of held-out glyphs: full attention and ZipVL side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from zipvl_compile.demo.questions import VIDEO_TASKS, Question, ask
from zipvl_compile.demo.scenes import Scene, sample_scenes
from zipvl_serving.generator import Generator
from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams


@dataclass(frozen=True)
class Column:
    """One column of the table: a task over a number of frames."""

    task: str
    frames: int
    easy: bool

    @property
    def name(self) -> str:
        return f"{self.task}, {self.frames} frame{'s' if self.frames > 1 else ''}"


COLUMNS = (
    Column("color", 1, easy=True),
    Column("cell", 1, easy=True),
    Column("count", 1, easy=False),
    Column("row", 1, easy=False),
    Column("color", 8, easy=True),
    Column("count", 8, easy=False),
)


def video_columns(frames: Sequence[int]) -> tuple[Column, ...]:
    """The tasks that make sense over many frames, each over every one of these numbers of frames."""
    return tuple(Column(task, number, easy=task == "color") for number in frames for task in VIDEO_TASKS)


@dataclass(frozen=True)
class Score:
    """Share of right answers. `content` ignores whether the answer also ended where it should (`</s>`)."""

    exact: float
    content: float
    ratio: float
    """Mean share of tokens kept, over layers and questions."""
    questions: int


def held_out_questions(column: Column, questions: int, seed: int) -> Iterator[tuple[Scene, Question]]:
    """The same scenes and questions for the same seed, whatever answers them."""
    rng = np.random.default_rng(seed)
    asked = 0
    while asked < questions:
        for scene in sample_scenes(rng, 16, column.frames, held_out=True):
            question = ask(rng, scene, column.task)
            if question is not None and asked < questions:
                asked += 1
                yield scene, question


def score(
    generator: Generator,
    column: Column,
    params: MethodParams,
    questions: int,
    seed: int,
    on_question: Callable[[], None],
) -> Score:
    """Ask one column's questions of a bundle, greedily."""
    exact, content, ratios = 0, 0, []
    for number, (scene, question) in enumerate(held_out_questions(column, questions, seed)):
        prompt = generator.prepare(question.text, [Image.fromarray(frame) for frame in scene.frames])
        wanted = question.answer.split()
        answer = generator.answer(
            prompt, SamplingParams(max_new_tokens=len(wanted) + 1), replace(params, seed=params.seed + number)
        )
        tokens = [generator.processor.tokenizer.id_to_token(token) for token in answer.token_ids]
        content += tokens[: len(wanted)] == wanted
        exact += tokens == [*wanted, "</s>"]
        ratios.append(float(np.mean(answer.prompt.ratios)))
        on_question()
    return Score(exact / questions, content / questions, float(np.mean(ratios)), questions)
