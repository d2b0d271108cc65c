"""The requests of a load."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from helpers.load import workload
from PIL import Image

from zipvl_compile.bench.serving.prompts import make_prompts

LOAD = {"requests": 5, "images": {"distribution": "uniform", "low": 1, "high": 3}, "seed": 3}


def pixels(png: bytes) -> Any:
    image = Image.open(io.BytesIO(png))
    image.load()
    return np.asarray(image)


@pytest.mark.parametrize(("kind", "side"), [("scenes", 48), ("noise", 336)])
def test_the_seed_fixes_everything(kind: str, side: int) -> None:
    load = {**LOAD, "input": kind}
    prompts = make_prompts(workload(**load))
    assert prompts == make_prompts(workload(**load))
    assert prompts != make_prompts(workload(**load | {"seed": 4}))
    assert len(prompts) == 5 and {len(prompt.images) for prompt in prompts} <= {1, 2, 3}
    assert all(pixels(image).shape == (side, side, 3) for prompt in prompts for image in prompt.images)
    assert len({image for prompt in prompts for image in prompt.images}) == sum(len(one.images) for one in prompts)
    assert all(prompt.text.startswith("which digit is") == (kind == "scenes") for prompt in prompts)


def test_a_fresh_prompt_is_the_same_picture_in_another_file() -> None:
    (prompt,) = make_prompts(workload(requests=1, rounds=1))
    one, other = prompt.fresh("a-1"), prompt.fresh("a-2")
    files = [prompt.images[0], one.images[0], other.images[0]]
    assert len(set(files)) == 3
    assert all(np.array_equal(pixels(file), pixels(files[0])) for file in files)
    assert (one.text, one.new_tokens) == (prompt.text, prompt.new_tokens)
