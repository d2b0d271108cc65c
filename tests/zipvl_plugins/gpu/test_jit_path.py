"""The way of a launch on a CUDA device, with no device: Triton binds, specialises and compiles; a recorder launches.

What Triton makes of a launch at run time must be what the ahead-of-time compiler and TensorRT make of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.operands import ALL, Decoder, operands, stages
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from zipvl_plugins.gpu import launch as launches
from zipvl_plugins.gpu.ahead_of_time import TRITON_TYPE, strip_scratch
from zipvl_plugins.gpu.launch import Launch, Operand, operand, run_stage
from zipvl_plugins.gpu.occupancy import LIMITS

DEVICE = 1000
"""Kernels compiled for it are kept apart from those of real devices."""
GROUPED = Decoder(heads=8, kv_heads=2, d=64, bias=True)
SINGLE = Decoder(heads=2, kv_heads=2, d=80)
RTX_BLACKWELL = 120
"""Later than Hopper, with an L40S's shared memory."""
SHARED = {80: LIMITS[80].shared_per_block, RTX_BLACKWELL: LIMITS[89].shared_per_block}


@dataclass(frozen=True)
class Launched:
    """What reached the driver: the kernel as compiled, the grid, and every argument of the kernel's signature."""

    source: Any
    metadata: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]


@dataclass
class Recorder:
    """A CUDA driver as Triton sees one, whose launches are written down."""

    sm: int = 80
    launched: list[Launched] = field(default_factory=list)

    @property
    def utils(self) -> Recorder:
        return self

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED[self.sm]}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        assert binary.startswith(b"\x7fELF")
        module = function = 1
        registers = spills = 0
        return module, function, registers, spills, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            arguments = rest[-len(source.fn.arg_names) :]
            self.launched.append(Launched(source, metadata, (x, y, z), arguments))

        return launch


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    recorder = Recorder()
    monkeypatch.setattr(driver, "_active", recorder)
    yield recorder
    for launched in recorder.launched:
        launched.source.fn.device_caches.pop(DEVICE, None)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Launch, Sequence[Any], Sequence[Any]]]:
    """Launches with their inputs and outputs, as they are handed to Triton."""
    found = []

    def spy(launch: Launch, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        found.append((launch, inputs, outputs))
        launch_on(launch, inputs, outputs)

    launch_on = launches.launch_on
    monkeypatch.setattr(launches, "launch_on", spy)
    return found


def run(op: str, values: dict[str, Any]) -> None:
    """An op's stages on tensors whose data nobody reads."""
    for stage in stages(op):
        made = run_stage(stage, [values[name] for name in stage.inputs], values)
        values |= dict(zip(stage.outputs, made, strict=True))


def unread(given: Operand | None) -> torch.Tensor | None:
    return None if given is None else torch.empty(given.shape, dtype=getattr(torch, given.dtype))


def tensors(op: str, decoder: Decoder, dtype: str, rows: int = 77) -> dict[str, Any]:
    """Arguments of an op; `rows` is store_rows' count, which the host knows."""
    values = {name: unread(given) for name, given in operands(op, decoder, dtype).items()}
    return {"scale": decoder.d**-0.5, "count": rows} | values


@pytest.mark.parametrize(
    ("decoder", "dtype"), [(GROUPED, "float16"), (SINGLE, "bfloat16")], ids=["grouped-float16", "single-bfloat16"]
)
@pytest.mark.parametrize("op", ALL)
def test_a_launch_binds_as_it_was_planned(
    op: str, decoder: Decoder, dtype: str, recorder: Recorder, planned: list[Any]
) -> None:
    run(op, tensors(op, decoder, dtype))
    assert len(recorder.launched) == len(planned) == len(stages(op))
    for (launch, inputs, outputs), launched in zip(planned, recorder.launched, strict=True):
        kernel, source, metadata = launch.kernel, launched.source, launched.metadata
        bound = dict(zip(kernel.arg_names, launched.arguments, strict=True))
        assert {name: bound.pop(name) for name in launch.constants} == launch.constants
        present = [next(given for given in inputs if given is not None) if given is None else given for given in inputs]
        for have, want in zip(bound.values(), (*present, *launch.scalars, *outputs), strict=True):
            assert have is want
        pointers = [f"*{TRITON_TYPE[operand(tensor).dtype]}" for tensor in (*present, *outputs)]
        types = [*pointers[: len(inputs)], *["i32"] * len(launch.scalars), *pointers[len(inputs) :]]
        assert [source.signature[name] for name in bound] == types
        assert {kernel.arg_names[at]: value for (at,), value in source.constants.items()} == launch.constants
        assert launched.grid == (*launch.grid, 1, 1)[:3]
        assert (metadata.num_warps, metadata.num_stages) == (launch.warps, launch.stages)
        ptx = next(iter(kernel.device_caches[DEVICE][0].values())).asm["ptx"]
        assert strip_scratch(ptx)[1] == len(bound)


@pytest.mark.parametrize("op", ALL)
def test_no_size_compiles_a_kernel_anew(op: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving meets every length: 1 and multiples of 16 are what Triton would specialise."""
    for tokens, others in ((16, 1), (32, 16), (33, 17)):
        for name, size in (("TOKENS", tokens), ("PROBES", others), ("BATCH", others)):
            monkeypatch.setattr(f"helpers.operands.{name}", size)
        run(op, tensors(op, GROUPED, "float16", others))
    for launched in recorder.launched:
        assert len(launched.source.fn.device_caches[DEVICE][0]) == 1


@pytest.mark.parametrize("op", ["gather_projection", "projection_scatter", "sparse_attention"])
def test_an_rtx_blackwell_takes_no_tiles_of_a_hopper(
    op: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.sm = RTX_BLACKWELL
    monkeypatch.setattr(launches, "compute_capability", lambda device: RTX_BLACKWELL)
    run(op, tensors(op, GROUPED, "float16"))  # Triton raises OutOfResources where a block does not fit
    assert len(recorder.launched) == 1
