"""What is asked: scenes of the demo with their questions, or noise; the same for every mode."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from zipvl_compile.bench.serving.lengths import draw
from zipvl_compile.bench.workload import ServingLoad
from zipvl_serving.arrays import Array

_NOISE_SIDE, _NOISE_CELLS = 336, 42
_NOISE_TEXT = "What is in the picture ?"
_IEND_BYTES = 12


@dataclass(frozen=True)
class Prompt:
    """One request of the load: a user's message, its images as PNG files, and how many tokens to answer with."""

    text: str
    images: tuple[bytes, ...]
    new_tokens: int

    def fresh(self, mark: str) -> Prompt:
        """The same pixels in files that no other mark has, so that a server's cache of images never has them."""
        return replace(self, images=tuple(_marked(image, mark) for image in self.images))


def make_prompts(workload: ServingLoad) -> list[Prompt]:
    """`workload.requests` prompts by the workload's seed and distributions.

    scenes: held-out glyphs of the demo and a question about a colour. noise: of 336 x 336 pixels, and a plain question.
    """
    count = workload.requests
    rng = np.random.default_rng([workload.seed, 0])
    frames = draw(workload.images, count, rng)
    new_tokens = draw(workload.new_tokens, count, rng)
    make = _scene if workload.input == "scenes" else _noise
    return [Prompt(*make(rng, frames[at]), new_tokens[at]) for at in range(count)]


def _scene(rng: np.random.Generator, frames: int) -> tuple[str, tuple[bytes, ...]]:
    from zipvl_compile.demo.questions import ask
    from zipvl_compile.demo.scenes import sample_scenes

    while True:
        scene = sample_scenes(rng, 1, frames, held_out=True)[0]
        question = ask(rng, scene, "color")
        if question is not None:
            return question.text, tuple(_png(frame) for frame in scene.frames)


def _noise(rng: np.random.Generator, frames: int) -> tuple[str, tuple[bytes, ...]]:
    """In cells of 8 x 8 pixels: a file of photographs' size, not of random bytes'."""
    cells = rng.integers(0, 256, (frames, _NOISE_CELLS, _NOISE_CELLS, 3), dtype=np.uint8)
    scale = _NOISE_SIDE // _NOISE_CELLS
    return _NOISE_TEXT, tuple(_png(frame.repeat(scale, axis=0).repeat(scale, axis=1)) for frame in cells)


def _png(pixels: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _marked(png: bytes, mark: str) -> bytes:
    """The file with one more text chunk before its end."""
    body = b"tEXt" + b"mark\0" + mark.encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:-_IEND_BYTES] + chunk + png[-_IEND_BYTES:]
