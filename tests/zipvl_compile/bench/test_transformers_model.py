"""transformers computes the same decoder: its last logits are those of the bundle run dense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.bench import Clock, opened, quiet, ttft_workload

from zipvl_compile.bench.inputs import InputKind, make_prompt
from zipvl_compile.bench.sessions import Watched
from zipvl_compile.bench.transformers_model import TransformersDecoder
from zipvl_compile.bench.ttft import measure
from zipvl_compile.bench.workload import Mode
from zipvl_serving.bundle import Bundle


@pytest.mark.parametrize("kind", ["random", "scenes"])
def test_the_same_work(kind: InputKind, tiny_bundle: Path) -> None:
    target = opened(tiny_bundle)
    watched = Watched(target.session)
    generator = target.generator(lambda _: watched)
    prompt = make_prompt(generator, kind, 60, seed=3)
    result, _ = generator.prefill(prompt, target.params(Mode(kind="dense")))
    logits = TransformersDecoder(target.bundle, threads=1).prefill(prompt, watched.features)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, result.logits, atol=1e-4, rtol=1e-4)
    assert np.ptp(result.logits) > 0.1


def test_the_rotary_base_is_the_recipes(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    model = {**bundle.manifest.recipe["model"], "rope_theta": 4e4}
    manifest = bundle.manifest.model_copy(update={"recipe": {**bundle.manifest.recipe, "model": model}})
    plain, stretched = (
        TransformersDecoder(one, threads=1)._decoder.model.rotary_emb.inv_freq
        for one in (bundle, Bundle(bundle.path, manifest))
    )
    np.testing.assert_allclose(plain / stretched, 4.0 ** (np.arange(len(plain)) / len(plain)), rtol=1e-5)


def test_it_stands_beside_the_others(tiny_bundle: Path) -> None:
    workload = ttft_workload(modes=["dense", "transformers"], lengths=[40], input="scenes", rounds=2)
    (cells,) = measure(opened(tiny_bundle), workload, quiet, clock=Clock())
    assert [cell.mode for cell in cells] == ["dense", "transformers SDPA"]
    assert cells[1].samples == {"ttft_s": [2.0, 2.0], "prefill_s": [1.0, 1.0]}
    assert cells[1].facts == {"frames": 2, "visual_tokens": 72}
