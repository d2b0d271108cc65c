"""A recipe's plan: device, dtype, backend, every mode, limits, figures that follow from each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.gpu.shapes import DECODERS
from zipvl_compile.cost.decode import ATTENTION_KERNELS, LINEAR_KERNELS, parameters, weights_read
from zipvl_compile.cost.hardware import CORE, GPUS, cpu
from zipvl_compile.cost.prediction import ttft
from zipvl_compile.planning.cache import MODES
from zipvl_compile.planning.figures import Plan, Row
from zipvl_compile.planning.planner import Choices, chosen_device, plan
from zipvl_compile.planning.stack import KERNELS
from zipvl_compile.planning.subject import Subject, read_subject
from zipvl_compile.recipe.load import load_recipe
from zipvl_compile.recipe.schema import Recipe
from zipvl_serving.errors import InputError

LARGE = DECODERS["13B"]
SUBJECT = Subject(dataclasses.replace(LARGE, max_positions=1 << 17), parameters(LARGE), 335_000_000, 576)
GIB = 1 << 30


def recipe(**parts: object) -> Recipe:
    target = {"backend": "torch", "limits": {"max_input_tokens": 16384, "max_batch": 64, "kv_bytes": "40GiB"}}
    return Recipe.model_validate({"name": "r", "model": {"source": "s"}, "target": target, **parts})


def row(made: Plan, mode: str, tokens: int = 16384, ratio: float = 0.37) -> Row:
    ratio = 1.0 if mode == "dense" else ratio
    (found,) = [row for row in made.rows if (row.mode, row.tokens, row.ratio) == (mode, tokens, ratio)]
    return found


def test_every_mode_at_every_length_and_ratio() -> None:
    made = plan(recipe(), SUBJECT)
    assert {r.tokens for r in made.rows} == {2048, 4096, 8192, 16384}
    assert [(m.mode, m.ratio) for m in made.modes] == [
        ("dense", 1.0), *((mode, ratio) for mode in MODES[1:] for ratio in (0.37, 0.5))
    ]  # fmt: skip
    assert len(made.rows) == 4 * 7
    assert "assumed" in made.ratio_source and made.device.name == GPUS["a100-80gb"].name


def test_a_row_by_hand() -> None:
    made = plan(recipe(), SUBJECT)
    found = row(made, "evict")
    kept, new, per_token = 6062, 256, 2 * 2 * 40 * 40 * 128
    pages = -(-(kept + new - 1) // 16) * 16 * per_token  # the last token is never fed
    worst = -(-(16384 + new - 1) // 16) * 16 * per_token  # ratio_max is 1
    activations = 4 * 16384 * 128 + 2 * 16384 * (2 * 5120 + 3 * 13824)
    prompt_kv = 16384 * per_token  # torch does not trim below 32K tokens
    assert (found.kept_tokens, found.kv_bytes, found.activation_bytes) == (kept, pages, activations)
    assert found.prompt_kv_bytes == prompt_kv
    weights = 2 * (parameters(LARGE) + 335_000_000)
    assert made.weights.total_bytes == weights and made.weights.copies == 1
    assert found.left_bytes == pytest.approx(0.9 * 80 * GIB - weights - activations - prompt_kv)
    assert found.worst_kv_bytes == worst
    assert found.max_batch == found.batch == found.device_batch == 1 + int((found.left_bytes - worst) // pages)
    read = 2 * weights_read(LARGE) + found.batch * (kept + new // 2) * per_token
    step = read / (2.039e12 * 0.85) + (LINEAR_KERNELS + ATTENTION_KERNELS) * 40 * 3e-6 + KERNELS.step_s
    assert found.decode_tokens_per_s == pytest.approx(found.batch / step)
    assert found.ttft_s == pytest.approx(ttft(LARGE, GPUS["a100-80gb"], 16384, "zipvl", ratio=0.37).total, rel=1e-4)
    assert found.request_tokens_per_s == pytest.approx(
        found.batch * new / (found.batch * found.ttft_s + (new - 1) * step)
    )  # fmt: skip


def test_modes_by_what_they_keep_and_how_long_they_take() -> None:
    made = plan(recipe(), SUBJECT)
    dense, evict, quantise, both = (row(made, mode) for mode in MODES)
    assert dense.kv_bytes > evict.kv_bytes > quantise.kv_bytes > both.kv_bytes
    assert dense.max_batch < evict.max_batch < both.max_batch
    assert dense.ttft_s and evict.ttft_s and quantise.ttft_s
    assert evict.ttft_s < quantise.ttft_s < dense.ttft_s and both.ttft_s == evict.ttft_s
    compression = {m.mode: m.compression for m in made.modes if m.ratio in (1.0, 0.37)}
    assert compression["dense"] == 1 and compression["evict"] == pytest.approx(1 / 0.37, rel=1e-3)
    assert 2 * 5 < compression["evict+quantise"] < 16 / 4 / 0.37


@pytest.mark.parametrize(
    ("name", "backend", "expected"),
    [(None, "onnxruntime", "CPU"), (None, "torch", "A100 80 GB SXM"), (None, "tensorrt", "A100 80 GB SXM"),
     ("h200", "onnxruntime", "H200 SXM"), ("A100 40GB", "torch", "A100 40 GB SXM"), ("cpu", "torch", "CPU")],
)  # fmt: skip
def test_device(name: str | None, backend: str, expected: str) -> None:
    assert chosen_device(recipe(target={"backend": backend}), name).name.startswith(expected)


def test_the_recipes_own_gpu() -> None:
    made = plan(recipe(target={"backend": "tensorrt", "gpu": "l40s"}), SUBJECT)
    assert made.device.name == "L40S"
    assert made.weights.copies == 2 and not made.weights.fits
    assert all(r.max_batch == 0 and r.ttft_s is None for r in made.rows)
    assert [m.max_context for m in made.modes] == [0] * 7
    assert made.limits == ["nothing fits L40S: weights and one token take more than there is"]


def test_the_backend_is_one_that_runs_on_the_device() -> None:
    on_gpu = plan(recipe(target={"backend": "onnxruntime"}), SUBJECT, Choices(gpu="h200"))
    assert on_gpu.assumptions.backend == "torch" and on_gpu.weights.dtype == "float16"
    on_cpu = plan(recipe(target={"backend": "tensorrt"}), SUBJECT, Choices(gpu="cpu"))
    assert on_cpu.assumptions.backend == "onnxruntime" and on_cpu.weights.dtype == "float32"
    assert on_cpu.weights.decoder_bytes == 2 * on_gpu.weights.decoder_bytes


def test_ratios() -> None:
    forced = plan(recipe(zipvl={"ratio_min": 0.4, "ratio_max": 0.4}), SUBJECT)
    assert {m.ratio for m in forced.modes} == {1.0, 0.4} and "forced" in forced.ratio_source
    asked = plan(recipe(zipvl={"ratio_min": 0.4, "ratio_max": 0.4}), SUBJECT, Choices(ratios=[0.2]))
    assert {m.ratio for m in asked.modes} == {1.0, 0.2}


def test_short_prompts_run_dense() -> None:
    made = plan(recipe(zipvl={"dense_below": 8192}), SUBJECT)
    assert row(made, "evict", 4096).ttft_s == row(made, "dense", 4096).ttft_s
    assert row(made, "evict", 4096).kv_bytes == row(made, "dense", 4096).kv_bytes
    assert row(made, "evict", 8192).kept_tokens == 3031


def test_exempt_layers_take_dense_time() -> None:
    times = [
        row(plan(recipe(zipvl={"dense_layers": layers}), SUBJECT), "evict").ttft_s for layers in (0, 20, 40, 99)
    ]  # fmt: skip
    dense = row(plan(recipe(), SUBJECT), "dense").ttft_s
    assert times[0] and dense and times[1] == pytest.approx((times[0] + dense) / 2)
    assert times[2] == times[3] == pytest.approx(dense)


def test_batch_and_pool_bound_what_is_shown() -> None:
    whole = row(plan(recipe(), SUBJECT), "evict")
    two = row(plan(recipe(), SUBJECT, Choices(batch=2)), "evict")
    assert (two.max_batch, two.batch) == (whole.max_batch, 2)
    assert two.decode_tokens_per_s and whole.decode_tokens_per_s and two.decode_tokens_per_s < whole.decode_tokens_per_s
    asked = row(plan(recipe(), SUBJECT, Choices(pool_bytes=23 * GIB)), "evict")
    assert (asked.max_batch, asked.bounded_by) == (1 + int((23 * GIB - asked.worst_kv_bytes) // asked.kv_bytes), "pool")
    assert asked.max_batch == 3 and asked.device_batch == whole.device_batch == 5


def test_a_bundle_admits_what_its_own_limits_allow() -> None:
    """The pool and the batch of the recipe, beside what the device could hold."""
    limits = {"max_input_tokens": 16384, "max_batch": 2, "kv_bytes": "40GiB"}
    few = plan(recipe(target={"backend": "torch", "limits": limits}), SUBJECT)
    found = row(few, "evict")
    assert (found.max_batch, found.bounded_by, found.device_batch) == (2, "max_batch", 5)
    small = plan(recipe(target={"backend": "torch", "limits": {**limits, "kv_bytes": "8GiB"}}), SUBJECT)
    at_most = 8 * GIB // (2 * 2 * 40 * 40 * 128) // 16 * 16 - 255
    assert row(small, "evict").max_batch == 0 and row(small, "evict").bounded_by == "pool"
    assert {(m.max_context, m.bounded_by) for m in small.modes if m.mode in ("dense", "evict")} == {(at_most, "pool")}
    assert small.limits == [f"limits.max_input_tokens 16384: at most {at_most}, the page pool holds no more at worst"]


def test_a_forced_ratio_is_the_worst_case() -> None:
    """Admission counts a token for rounding and the forced last one on top of the ratio."""
    forced = row(plan(recipe(zipvl={"ratio_min": 0.37, "ratio_max": 0.37}), SUBJECT), "evict")
    free = row(plan(recipe(), SUBJECT), "evict")
    assert forced.worst_kv_bytes == forced.kv_bytes == free.kv_bytes < free.worst_kv_bytes
    assert forced.max_batch > free.max_batch


def test_onnxruntime_packs_weights_and_gathers_pages() -> None:
    """Its decode weights lie in memory twice; a step copies K and V of one layer of the whole batch, and moves the
    cache three times."""
    on = cpu(2, 114.5 * GIB)
    target = {"backend": "onnxruntime", "limits": {"max_input_tokens": 8192, "max_batch": 64, "kv_bytes": "90GiB"}}
    packed, shared = (
        plan(recipe(target=target, serving={"prepack": prepack}), SUBJECT, on=on) for prepack in (True, False)
    )
    assert (packed.weights.copies, shared.weights.copies) == (2, 1)
    assert packed.weights.total_bytes - shared.weights.total_bytes == packed.weights.decoder_bytes
    found = row(shared, "dense", 8192)
    layer = (8192 + 256) * 2 * 4 * 40 * 128
    assert int(found.left_bytes // found.kv_bytes) == 3
    assert found.device_batch == int(found.left_bytes // (found.kv_bytes + layer)) == 2
    of_torch = plan(recipe(target={**target, "backend": "torch"}), SUBJECT, on=on)
    assert of_torch.assumptions.stack == shared.assumptions.stack  # references gather as well
    used, step = CORE.utilisation, found.batch / (found.decode_tokens_per_s or 0)
    moved = 3 * found.batch * (8192 + 128) * 40 * 2 * 4 * 40 * 128 + 4 * weights_read(LARGE)
    assert step == pytest.approx(moved / (2 * CORE.bandwidth * used.memory), rel=0.01)


def test_the_longest_input_is_the_longest_that_fits() -> None:
    made = plan(recipe(), SUBJECT, Choices(gpu="a100-40gb", ratios=[0.37]))
    for mode in made.modes:
        assert mode.bounded_by == "memory" and mode.max_context > 0
        at_most = plan(recipe(), SUBJECT, Choices(gpu="a100-40gb", ratios=[0.37], tokens=[mode.max_context]))
        beyond = plan(recipe(), SUBJECT, Choices(gpu="a100-40gb", ratios=[0.37], tokens=[mode.max_context + 64]))
        assert row(at_most, mode.mode, mode.max_context).max_batch >= 1
        assert row(beyond, mode.mode, mode.max_context + 64).max_batch == 0


def test_an_answer_has_positions_too() -> None:
    """As the build refuses it: what is longer is marked, and a line of the limits says so."""
    short = dataclasses.replace(SUBJECT, decoder=dataclasses.replace(LARGE, max_positions=4096))
    made = plan(recipe(), short, Choices(tokens=[3840, 3841]))
    assert {(m.max_context, m.device_context, m.bounded_by) for m in made.modes} == {(3840, 3840, "positions")}
    assert all((r.max_batch > 0) == (r.tokens == 3840) for r in made.rows)
    beyond = [r for r in made.rows if r.tokens == 3841]
    assert {(r.max_batch, r.device_batch, r.bounded_by, r.ttft_s) for r in beyond} == {(0, 0, "positions", None)}
    assert made.limits == [
        "limits.max_input_tokens 16384: at most 3840, the model has no more positions beside 256 new tokens"
    ]


@pytest.mark.parametrize(
    ("limits", "line"),
    [({"kv_bytes": "64GiB", "max_input_tokens": 4096, "max_batch": 4},
      "limits.kv_bytes 64 GiB: 43.6 GiB are left beside weights and a prefill of 4096 tokens"),
     ({"kv_bytes": "32GiB", "max_input_tokens": 16384, "max_batch": 999},
      "limits.max_batch 999: 5 sequences of 16384 tokens fit (evict at ratio 0.37)"),
     ({"kv_bytes": "1GiB", "max_input_tokens": 200000, "max_batch": 1},
      "limits.max_input_tokens 200000: at most 1041, the page pool holds no more at worst"),
     ({"kv_bytes": "32GiB", "max_input_tokens": 16384, "max_batch": 5}, None)],
)  # fmt: skip
def test_limits_that_do_not_fit(limits: dict[str, object], line: str | None) -> None:
    made = plan(recipe(target={"backend": "torch", "limits": limits}), SUBJECT)
    assert [found.startswith(line or "-") for found in made.limits] == [True] * (line is not None), made.limits


def test_figures_that_a_plan_does_not_have() -> None:
    with pytest.raises(InputError, match=r"model.dtype: a plan has no figures of 'float32' on H200"):
        plan(recipe(model={"source": "s", "dtype": "float32"}), SUBJECT, Choices(gpu="h200"))
    with pytest.raises(InputError, match=r"model.dtype: .*'float16' on CPU"):
        plan(recipe(model={"source": "s", "dtype": "float16"}), SUBJECT, Choices(gpu="cpu"))


def test_a_cpu_is_its_cores() -> None:
    two, four = cpu(2, 8 * GIB), cpu(4, 8 * GIB)
    assert (two.flops, four.bandwidth) == (2 * CORE.flops, 4 * CORE.bandwidth)
    assert two.scalar_rate == four.scalar_rate == CORE.scalar_rate
    assert ttft(LARGE, four, 1024, "dense", item=4).total < ttft(LARGE, two, 1024, "dense", item=4).total
    assert ttft(LARGE, two, 1024, "dense", item=4).total > ttft(LARGE, two, 1024, "dense", item=2).total


def test_a_configuration_is_enough(tiny_recipe: Path, tmp_path: Path) -> None:
    """The same model from a directory without weights, and cut to its first layer."""
    whole = read_subject(load_recipe(tiny_recipe))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny_recipe.parent / "checkpoint" / "config.json").read_bytes())
    source = f"model.source={bare}"
    assert read_subject(load_recipe(tiny_recipe, [source])) == whole
    spec = whole.decoder
    norms = (2 * spec.layers + 1) * spec.hidden
    assert whole.decoder_numbers == parameters(spec) + norms and whole.vision_numbers > 0
    cut = read_subject(load_recipe(tiny_recipe, [source, "model.layers=1"]))
    assert cut.decoder.layers == 1 and cut.vision_numbers == whole.vision_numbers


def test_a_hubs_configuration_is_all_that_is_fetched(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(hub_id: str, **options: object) -> str:
        assert (hub_id, options) == ("owner/name", {"revision": "v1", "allow_patterns": ["config.json"]})
        return str(tiny_recipe.parent / "checkpoint")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = load_recipe(tiny_recipe, ["model.source=owner/name", "model.revision=v1"])
    assert read_subject(loaded) == read_subject(load_recipe(tiny_recipe))
