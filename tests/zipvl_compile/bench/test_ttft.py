"""TTFT on the tiny bundle: what a sample is, what stands beside it, and what is refused. No test looks at wall time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bench import Clock, opened, quiet, ttft_workload
from helpers.bundles import LAYERS, PAGE_SIZE, TOKENS_PER_IMAGE, refusal
from helpers.fake_session import FakeSession

from zipvl_compile.bench.breakdown import SELECTION
from zipvl_compile.bench.inputs import make_prompt
from zipvl_compile.bench.ttft import measure
from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.sessions.base import PrefillInputs


def test_cells_say_what_was_kept(tiny_bundle: Path) -> None:
    target = opened(tiny_bundle)
    found = list(measure(target, ttft_workload(rounds=3), quiet, clock=Clock()))
    assert [[(cell.mode, cell.at) for cell in cells] for cells in found] == [
        [("dense", {"tokens": 40}), ("zipvl tau .8", {"tokens": 40})],
        [("dense", {"tokens": 80}), ("zipvl tau .8", {"tokens": 80})],
    ]
    dense, zipvl = found[0]
    assert dense.facts["kept_tokens_per_layer"] == [40] * LAYERS
    assert dense.facts["dense"]
    assert not zipvl.facts["dense"]
    assert all(1 <= count < 40 for count in zipvl.facts["kept_tokens_per_layer"])
    for cell in (dense, zipvl):
        counts = cell.facts["kept_tokens_per_layer"]
        assert cell.facts["ratio_per_layer"] == [round(count / 40, 4) for count in counts]
        assert cell.facts["kv_pages"] == sum(-(-count // PAGE_SIZE) for count in counts)
        shape = target.manifest.model.shape
        page = 2 * PAGE_SIZE * shape.kv_heads * shape.head_dim * 4
        assert cell.facts["kv_bytes"] == cell.facts["kv_pages"] * page
        assert set(cell.samples) == {"ttft_s"}
        assert len(cell.samples["ttft_s"]) == 3


def test_a_sample_of_scenes_holds_vision_and_prefill(tiny_bundle: Path) -> None:
    """The clock ticks at every look: around the whole, and around the engine's prefill inside it."""
    workload = ttft_workload(input="scenes", lengths=[40], modes=["dense"], rounds=2)
    ((cell,),) = measure(opened(tiny_bundle), workload, quiet, clock=Clock())
    assert cell.samples == {"ttft_s": [3.0, 3.0], "prefill_s": [1.0, 1.0]}
    assert cell.facts["frames"] == 2
    assert cell.facts["visual_tokens"] == 2 * TOKENS_PER_IMAGE
    assert cell.at["tokens"] > cell.facts["visual_tokens"]


def test_the_same_seed_gives_the_same_inputs(tiny_bundle: Path) -> None:
    generator = opened(tiny_bundle).generator(lambda session: session)
    for kind in ("random", "scenes"):
        one, same, other = (make_prompt(generator, kind, 40, seed) for seed in (1, 1, 2))
        assert np.array_equal(one.input_ids, same.input_ids)
        assert np.array_equal(one.pixel_values, same.pixel_values)
        assert not np.array_equal(one.input_ids, other.input_ids) or not np.array_equal(
            one.pixel_values, other.pixel_values
        )
    random = make_prompt(generator, "random", 40, 1)
    assert generator.processor.image_token_id not in random.input_ids
    assert random.is_text.tolist() == [False] * 39 + [True]  # or a bundle that keeps text would keep everything


def test_below_the_break_even_a_prompt_runs_dense(tiny_bundle: Path) -> None:
    """As the bundle says, unless the workload says otherwise."""
    target = opened(tiny_bundle, FakeSession(Bundle.open(tiny_bundle)))
    cells = [cell for found in measure(target, ttft_workload(dense_below=60), quiet) for cell in found]
    ran_dense = {cell.at["tokens"]: cell.facts["dense"] for cell in cells if cell.mode != "dense"}
    assert ran_dense == {40: True, 80: False}


def test_every_cell_is_profiled_on_its_own_inputs(tiny_bundle: Path) -> None:
    """Modes take turns; the first run of each is a warm-up, and selection is paired with the dense run beside it."""
    ran: list[tuple[int, float]] = []

    class Profiled:
        def __init__(self, inputs: PrefillInputs, features: Array | None) -> None:
            self.about, self.runs = (len(inputs.input_ids), inputs.ratio_min), 0

        def run(self) -> dict[str, float]:
            ran.append(self.about)
            self.runs += 1
            return {}

        def end(self) -> list[dict[str, float]]:
            each = {"probe_scores": 1.0, "select_tokens": 0.5} if self.about[1] < 1 else dict.fromkeys(SELECTION, 0.0)
            return [{**each, "mlp": 10.0 * number} for number in range(self.runs)]

    workload = ttft_workload(breakdown=2)
    found = list(measure(opened(tiny_bundle), workload, quiet, profile=Profiled))  # type: ignore[arg-type]
    dense, selecting = (40, 1.0), (40, 0.0)
    assert ran[:6] == [dense, selecting, dense, selecting, selecting, dense]
    for cells in found:
        assert [cell.facts["breakdown"]["mlp"] for cell in cells] == [15.0, 15.0]
        assert cells[1].facts["breakdown_samples"]["probe_scores"] == [1.0, 1.0]
        assert cells[1].facts["selection_over_baseline"]["median"] == pytest.approx((1.5 / 10 + 1.5 / 20) / 2)


def test_accuracy_stands_beside_the_time(tiny_bundle: Path) -> None:
    workload = ttft_workload(
        input="scenes", lengths=[36], rounds=1, warm_up=0, accuracy={"tasks": ["color", "count"], "questions": 2}
    )
    stages: list[str] = []
    (cells,) = measure(opened(tiny_bundle), workload, lambda stage, *rest: stages.append(stage))
    for cell in cells:
        assert set(cell.facts["accuracy"]) == {"color", "count"}
        for score in cell.facts["accuracy"].values():
            assert score["questions"] == 2
            assert 0 <= score["exact"] <= score["content"] <= 1
    assert any(stage.endswith("zipvl tau .8: count") for stage in stages)


def test_random_weights_take_a_forced_ratio_and_trained_ones_do_not(tiny_bundle: Path) -> None:
    forced = ttft_workload(modes=["dense", {"forced_ratio": 0.25}], lengths=[80], rounds=1)
    with refusal(InputError, "mode zipvl forced .25: a forced ratio studies the cost", "use fixed_ratio: 0.25"):
        next(measure(opened(tiny_bundle), forced, quiet))
    (cells,) = measure(opened(tiny_bundle, random_weights=True), forced, quiet)
    quarter = {20, 21}  # the last token may be among the chosen
    assert set(cells[1].facts["kept_tokens_per_layer"]) <= quarter
    fixed = ttft_workload(modes=[{"fixed_ratio": 0.25}], lengths=[80], rounds=1)
    (cells,) = measure(opened(tiny_bundle), fixed, quiet)
    assert set(cells[0].facts["kept_tokens_per_layer"]) <= quarter


@pytest.mark.parametrize(
    ("values", "random_weights", "expected"),
    [
        ({"lengths": [40, 600]}, False, ("the prompt has 600 tokens", "this bundle takes 512 at most")),
        ({"lengths": [600], "input": "scenes"}, False, ("this bundle takes 512 at most",)),
        ({"input": "scenes", "accuracy": {}}, True, ("accuracy: tiny has random weights",)),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    values: dict[str, Any], random_weights: bool, expected: tuple[str, ...], tiny_bundle: Path
) -> None:
    session = FakeSession(Bundle.open(tiny_bundle))
    with refusal(InputError, *expected):
        next(measure(opened(tiny_bundle, session, random_weights=random_weights), ttft_workload(**values), quiet))
    assert session.prefilled == []
