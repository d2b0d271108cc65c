"""Every kernel compiled for A100, L40S and H100 with no GPU: it fits, does not spill, takes what its launch gives."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers.interpreter import Nth, interpret_call
from helpers.operands import ALL, Decoder, compile_op, operands, stages

from zipvl_plugins import ops
from zipvl_plugins.gpu.ahead_of_time import Compiled, compile_launch, strip_scratch
from zipvl_plugins.gpu.launch import Launch, Operand, Tuning, plan
from zipvl_plugins.gpu.occupancy import KIB, LIMITS, REGISTERS_PER_THREAD, occupancy

LLAVA_13B = Decoder(heads=40, kv_heads=40, d=128)
QWEN2_7B = Decoder(heads=28, kv_heads=4, d=128, bias=True)


@dataclass(frozen=True)
class Case:
    """A GPU, a decoder and its dtype."""

    sm: int
    decoder: Decoder
    dtype: str = "float16"

    def __str__(self) -> str:
        return f"sm{self.sm}-{self.decoder}-{self.dtype}"


CASES = (
    *(Case(80, replace(LLAVA_13B, d=d)) for d in (64, 80, 96, 128)),
    Case(80, QWEN2_7B, "bfloat16"),
    *(Case(sm, replace(LLAVA_13B, d=d)) for sm in (89, 90) for d in (64, 128)),
)


def cases() -> list[tuple[str, Case]]:
    """Every op in every case in which its operands differ."""
    found = {(op, case.sm, str(operands(op, case.decoder, case.dtype))): (op, case) for case in CASES for op in ALL}
    return list(found.values())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def gather_rows_launch(tuning: Tuning | None = None) -> tuple[Launch, list[Operand | None]]:
    (stage,) = ops.stages("gather_rows")
    inputs = list(operands("gather_rows", LLAVA_13B, "float16").values())
    return plan(stage, inputs, {}, 80, lambda _, tunings: tuning or tunings[0]), inputs


@pytest.mark.parametrize(("op", "case"), cases(), ids=str)
def test_kernels_fit_the_gpu_and_do_not_spill(op: str, case: Case) -> None:
    compiled = compile_op(op, case.decoder, case.dtype, case.sm)
    assert list(compiled) == [stage.name for stage in stages(op)]
    for name, kernel in compiled.items():
        assert_fits(name, kernel, case.sm)


@pytest.mark.parametrize("op", ALL)
def test_every_tuning_fits_an_a100_and_does_not_spill(op: str) -> None:
    """And one needs no more shared memory than a launcher gives that does not ask: TensorRT may be such a one."""
    shared: dict[str, list[int]] = {}
    number, most = 0, 1
    while number < most:
        choose = Nth(number)
        for name, kernel in compile_op(op, LLAVA_13B, "float16", 80, choose).items():
            assert_fits(f"{name}, tuning {number}", kernel, 80)
            shared.setdefault(name, []).append(kernel.shared)
        number, most = number + 1, choose.most
    assert all(min(sizes) <= 48 * KIB for sizes in shared.values()), shared


def assert_fits(name: str, kernel: Compiled, sm: int) -> None:
    assert (kernel.spill_stores, kernel.spill_loads, kernel.stack) == (0, 0, 0), name
    assert kernel.registers <= REGISTERS_PER_THREAD, name
    assert kernel.shared <= LIMITS[sm].shared_per_block, name
    assert occupancy(kernel, sm).blocks >= 1, name


def test_ptx_is_the_launch_and_nothing_else() -> None:
    launch, inputs = gather_rows_launch()
    kernel = compile_launch(launch, inputs, 80)
    ptx = kernel.ptx.decode()
    assert f".visible .entry {kernel.name}(" in ptx and ".target sm_80" in ptx
    assert len(re.findall(r"\.param \.u64", ptx)) == 4 and len(re.findall(r"\.param \.u32", ptx)) == 1
    assert kernel.parameters == 5
    assert kernel.threads == 128 and f".reqntid {kernel.threads}" in ptx
    assert "kernel.py" not in ptx  # an engine does not say where it was built
    assert kernel.cubin.startswith(b"\x7fELF")


def test_a_kernel_that_spills_is_seen() -> None:
    greedy = Tuning({"BLOCK_ROWS": 128, "BLOCK_WIDTH": 128}, warps=1, stages=1)
    kernel = compile_launch(*gather_rows_launch(greedy), 80)
    assert kernel.spill_stores > 0 and kernel.spill_loads > 0


def test_a_launch_that_is_not_its_kernels_is_refused() -> None:
    launch, inputs = gather_rows_launch()
    with pytest.raises(ValueError, match="gather_rows_kernel takes x, index, count, n, out; its launch gives 4"):
        compile_launch(replace(launch, scalars=()), inputs, 80)


def test_a_kernel_that_uses_scratch_is_refused() -> None:
    ptx = """.visible .entry f(
	.param .u64 .ptr .global .align 1 f_param_0,
	.param .u32 f_param_1,
	.param .u64 .ptr .global .align 1 f_param_2,
	.param .u64 .ptr .global .align 1 f_param_3
)
{
	ld.param.b64 	%rd1, [f_param_0];
}
"""
    stripped, parameters = strip_scratch(ptx)
    assert parameters == 2 and "f_param_1\n)" in stripped and "f_param_2" not in stripped
    with pytest.raises(ValueError, match="scratch"):
        strip_scratch(ptx.replace("[f_param_0]", "[f_param_2]"))


def compile_gather_rows() -> Compiled:
    return compile_launch(*gather_rows_launch(), 80)


def test_the_interpreters_process_cannot_compile() -> None:
    with pytest.raises(RuntimeError, match="without TRITON_INTERPRET"):
        interpret_call(compile_gather_rows)


@pytest.mark.parametrize(
    ("sm", "threads", "registers", "shared", "blocks"),
    [
        (80, 128, 32, 0, 16),  # warps
        (80, 32, 16, 0, 32),  # blocks
        (80, 256, 196, 48 * 1024, 1),  # registers: two blocks of 8 warps would need 100,352
        (80, 128, 64, 40 * 1024, 4),  # shared memory: 164 KiB hold four times 40 + 1
        (89, 128, 64, 40 * 1024, 2),
        (90, 128, 64, 40 * 1024, 5),
        (90, 128, 168, 0, 3),  # a quarter of the registers holds three warps of 5,376
        (80, 32, 80, 0, 24),  # a quarter holds six of 2,560; all of them would hold 25
        (80, 128, 64, 32563, 4),  # rounded up to 128 bytes: five would fit otherwise
        (80, 128, 64, 163 * 1024, 1),
        (80, 128, 64, 163 * 1024 + 1, 0),
    ],
)
def test_occupancy_follows_the_scarcest_resource(
    sm: int, threads: int, registers: int, shared: int, blocks: int
) -> None:
    kernel = Compiled("f", b"", b"", 0, threads, registers, 0, 0, 0, static_shared=0, dynamic_shared=shared)
    found = occupancy(kernel, sm)
    assert found.blocks == blocks
    assert found.share == blocks * threads / 32 / LIMITS[sm].warps
