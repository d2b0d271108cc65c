"""Prompts to measure on, made from a seed: random token ids, or the demo's scenes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from zipvl_compile.demo.questions import ask
from zipvl_compile.demo.scenes import sample_scenes
from zipvl_serving.errors import InputError
from zipvl_serving.generator import Generator
from zipvl_serving.manifest import Manifest
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.sequence import check_prompt

InputKind = Literal["random", "scenes"]


def frames_of(tokens: int, manifest: Manifest) -> int:
    """Frames that make at least so many visual tokens."""
    return -(-tokens // manifest.model.shape.tokens_per_image)


def check_lengths(kind: InputKind, lengths: Sequence[int], manifest: Manifest) -> None:
    """InputError where scenes of two lengths, in tokens, would have the same number of frames."""
    if kind == "random":
        return
    for shorter, longer in itertools.pairwise(lengths):
        if (frames := frames_of(longer, manifest)) == frames_of(shorter, manifest):
            raise InputError(
                f"lengths: {shorter} and {longer} are both {frames} frames of {manifest.model.shape.tokens_per_image} "
                "tokens each; keep one"
            )


def make_prompt(generator: Generator, kind: InputKind, tokens: int, seed: int) -> EncodedPrompt:
    """The same prompt for the same arguments; InputError where it is too long for the bundle.

    random: `tokens` ids over the vocabulary without images. All but the last stand for visual tokens: none is forced
    as text is, or a bundle that keeps text would keep everything.
    scenes: a question about one scene of held-out glyphs whose frames make at least `tokens` visual tokens.
    """
    manifest = generator.bundle.manifest
    rng = np.random.default_rng((seed, tokens))
    if kind == "random":
        ids = rng.integers(0, manifest.model.shape.vocabulary, tokens)
        ids[ids == manifest.model.image_token] = (manifest.model.image_token + 1) % manifest.model.shape.vocabulary
        prompt = EncodedPrompt(
            text="",
            input_ids=ids,
            is_text=np.arange(tokens) == tokens - 1,
            position_ids=np.arange(tokens, dtype=np.int64),
            pixel_values=np.zeros((0, 3, 1, 1), dtype=np.float32),
        )
        check_prompt(prompt, manifest.limits)
        return prompt
    question = None
    while question is None:
        (scene,) = sample_scenes(rng, 1, frames_of(tokens, manifest), held_out=True)
        question = ask(rng, scene, "color")
    return generator.prepare(question.text, [Image.fromarray(frame) for frame in scene.frames])
