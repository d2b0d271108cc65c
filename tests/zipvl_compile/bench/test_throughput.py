"""The maximum batch is what admission takes, to the page; every sequence decodes to the end of the measurement."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from helpers.bench import Clock, opened, quiet, throughput_workload
from helpers.bundles import LAYERS, MAX_NEW_TOKENS, PAGE_SIZE, refusal
from helpers.fake_session import FakeSession

from zipvl_compile.bench import throughput
from zipvl_compile.bench.memory import free_bytes
from zipvl_compile.bench.throughput import job_rates, measure
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.kv_pool import KVPool, page_bytes
from zipvl_serving.page_storage import PageStorage


def pages_of(rows: int) -> int:
    return -(-rows // PAGE_SIZE)


def test_max_batch_is_the_arithmetic_of_pages(tiny_bundle: Path) -> None:
    """A request enters while its worst case is unclaimed, and then claims what its layers kept."""
    target = opened(tiny_bundle)
    shape = target.manifest.model.shape
    workload = throughput_workload()
    (cells,) = measure(target, workload, quiet)
    pages = (128 << 10) // page_bytes(PAGE_SIZE, shape.kv_heads, shape.head_dim)
    worst = LAYERS * pages_of(40 + workload.new_tokens - 1)
    for cell in cells:
        claim = sum(pages_of(rows + workload.new_tokens - 1) for rows in cell.facts["kept_tokens_per_layer"])
        admitted = reserved = 0
        while reserved + worst <= pages and admitted < target.manifest.limits.max_batch:
            admitted, reserved = admitted + 1, reserved + claim
        assert cell.samples["max_batch"] == [admitted]
        assert cell.facts["pages"] == pages
        assert cell.facts["pages_reserved"] == reserved
        decoded = workload.steps * (workload.rounds + workload.warm_up)
        kept = cell.facts["kept_tokens_per_layer"]
        assert cell.facts["page_high_water"] == admitted * sum(pages_of(rows + decoded) for rows in kept)
        assert cell.facts["stopped_by"] == "pages"
    assert cells[1].samples["max_batch"] > cells[0].samples["max_batch"]


def test_all_of_them_decode_in_every_step_and_prefill_is_computed_once_for_the_batch(tiny_bundle: Path) -> None:
    session = FakeSession(Bundle.open(tiny_bundle))
    workload = throughput_workload(modes=["dense"], rounds=3, prefills=2, warm_up=1)
    ((cell,),) = measure(opened(tiny_bundle, session), workload, quiet)
    size = int(cell.samples["max_batch"][0])
    assert size > 2
    assert session.batches == [size] * workload.steps * (workload.rounds + workload.warm_up)
    assert len(session.prefilled) == 1 + workload.prefills + workload.warm_up
    assert {name: len(values) for name, values in cell.samples.items()} == {
        "max_batch": 1, "prefill_s": 2, "decode_step_s": 3, "decode_tokens_per_s": 3, "tokens_per_s": 2,
    }  # fmt: skip


def test_a_sample_is_the_time_of_its_steps(tiny_bundle: Path) -> None:
    """The clock ticks once between two looks: a sample of two steps is half a second a step."""
    target = opened(tiny_bundle, FakeSession(Bundle.open(tiny_bundle)))
    ((cell,),) = measure(target, throughput_workload(modes=["dense"]), quiet, clock=Clock())
    size = cell.samples["max_batch"][0]
    assert cell.samples["prefill_s"] == [1.0, 1.0]
    assert cell.samples["decode_step_s"] == [0.5] * 3
    assert cell.samples["decode_tokens_per_s"] == [2 * size] * 3


def test_the_whole_job_counts_every_prompt_and_no_sample_twice() -> None:
    assert job_rates(4, 11, [1.0, 2.0], [0.1, 0.3, 0.5]) == pytest.approx([44 / (4 + 1), 44 / (8 + 3)])
    assert job_rates(4, 11, [1.0, 2.0], [0.1]) == pytest.approx([44 / (4 + 1)])


def test_the_job_of_a_prompt_with_images_counts_vision(tiny_bundle: Path) -> None:
    """The clock ticks at every look: vision and prefill are a second each, a decode sample half a second a step."""
    target = opened(tiny_bundle, FakeSession(Bundle.open(tiny_bundle)))
    workload = throughput_workload(modes=["dense"], input="scenes", kv_budget="256KiB")
    ((cell,),) = measure(target, workload, quiet, clock=Clock())
    size = cell.samples["max_batch"][0]
    assert (cell.samples["ttft_s"], cell.samples["prefill_s"]) == ([2.0, 2.0], [1.0, 1.0])
    job = size * workload.new_tokens / (2 * size + 0.5 * (workload.new_tokens - 1))
    assert cell.samples["tokens_per_s"] == pytest.approx([job, job])


def test_pools_do_not_outlive_their_length(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a garbage collector, and each length looks anew at what is free."""
    pools: list[weakref.ref[KVPool]] = []
    alive: list[int] = []

    class Pool(KVPool):
        def __init__(self, storage: PageStorage) -> None:
            super().__init__(storage)
            pools.append(weakref.ref(self))

    def free() -> int:
        alive.append(sum(pool() is not None for pool in pools))
        return 1 << 40

    monkeypatch.setattr(throughput, "KVPool", Pool)
    monkeypatch.setattr(throughput, "free_bytes", free)
    target = opened(tiny_bundle, FakeSession(Bundle.open(tiny_bundle)))
    gc.disable()
    try:
        assert len(list(measure(target, throughput_workload(lengths=[40, 44]), quiet))) == 2
    finally:
        gc.enable()
    assert len(pools) == 4 and alive == [0, 0]


def test_max_batch_may_stop_admission_first(tiny_bundle: Path) -> None:
    target = opened(tiny_bundle, FakeSession(Bundle.open(tiny_bundle)))
    (cells,) = measure(target, throughput_workload(max_batch=2), quiet)
    assert [cell.samples["max_batch"] for cell in cells] == [[2.0], [2.0]]
    assert {cell.facts["stopped_by"] for cell in cells} == {"max_batch"}


def test_scenes_and_a_share_of_memory(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "memory_bytes", lambda: 4 << 20)
    target = opened(tiny_bundle, FakeSession(Bundle.open(tiny_bundle)))
    (cells,) = measure(target, throughput_workload(input="scenes", kv_budget=0.25), quiet)
    shape = target.manifest.model.shape
    assert cells[0].facts["pages"] == (1 << 20) // page_bytes(PAGE_SIZE, shape.kv_heads, shape.head_dim)
    assert cells[0].facts["frames"] == 2


def test_an_error_of_the_engine_is_raised(tiny_bundle: Path) -> None:
    session = FakeSession(Bundle.open(tiny_bundle))
    session.fail_decode = True
    with pytest.raises(RuntimeError, match="decode broke"):
        next(measure(opened(tiny_bundle, session), throughput_workload(), quiet))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"kv_budget": 1024},
            ("kv_budget: holds 2 pages of 4 tokens", "of 40 tokens in mode dense may need 26"),
        ),
        ({"kv_budget": "4096GiB"}, ("kv_budget: 2 modes x", "bytes are free here; lower kv_budget")),
        ({"new_tokens": MAX_NEW_TOKENS + 1}, ("new_tokens: 33 is out of range; tiny gives 32 at most",)),
        ({"lengths": [40, 600]}, ("the prompt has 600 tokens",)),
        ({"modes": [{"forced_ratio": 0.5}]}, ("use fixed_ratio: 0.5",)),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    values: dict[str, object], expected: tuple[str, ...], tiny_bundle: Path
) -> None:
    session = FakeSession(Bundle.open(tiny_bundle))
    with refusal(InputError, *expected):
        next(measure(opened(tiny_bundle, session), throughput_workload(**values), quiet))
    assert session.prefilled == []


def test_free_memory_is_what_the_machine_and_its_container_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8000 kB\nMemAvailable:  4000 kB\n")
    assert free_bytes(meminfo, tmp_path / "none") == 4000 * 1024
    for name, text in (("max", "3000000"), ("current", "2000000"), ("stat", "anon 5\ninactive_file 500000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_bytes(meminfo, tmp_path) == 1_500_000
    (tmp_path / "memory.max").write_text("max")
    assert free_bytes(meminfo, tmp_path) == 4000 * 1024
