"""Kernels compiled for a named GPU on a machine that needs none: the PTX that TensorRT embeds, and what it costs.

PTX is made by Triton; registers and spills are what ptxas says of that very PTX. A driver that compiles the PTX with
another ptxas may allocate otherwise.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zipvl_plugins.gpu.launch import Choose, Launch, Operand, Stage, best, plan

TRITON_TYPE = {
    "bool": "u1",
    "int32": "i32",
    "int64": "i64",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
}
SCRATCH_POINTERS = 2
"""Triton ends every kernel's parameters with a pointer to global scratch and one to profiling scratch."""
POINTER_ALIGNMENT = 16
"""Bytes; torch and TensorRT align every tensor to more."""


@dataclass(frozen=True)
class Compiled:
    """One kernel for one compute capability; sizes in bytes."""

    name: str
    """The entry point."""
    ptx: bytes
    """Text whose parameters are inputs, scalars and outputs, and nothing after them."""
    cubin: bytes
    """The same, assembled."""
    parameters: int
    threads: int
    """Per block."""
    registers: int
    """Per thread."""
    spill_stores: int
    spill_loads: int
    """Per thread, as the stack."""
    stack: int
    static_shared: int
    dynamic_shared: int
    """Per block; what the launch must ask for."""

    @property
    def shared(self) -> int:
        """Shared memory of a block."""
        return self.static_shared + self.dynamic_shared


def compile_stages(
    stages: Sequence[Stage],
    operands: Mapping[str, Operand | None],
    attributes: Mapping[str, Any],
    sm: int,
    choose: Choose = best,
) -> dict[str, Compiled]:
    """An op's stages for compute capability sm, by name; operands by the op's input names."""
    known = dict(operands)
    compiled = {}
    for stage in stages:
        inputs = [known[name] for name in stage.inputs]
        launch = plan(stage, inputs, attributes, sm, choose)
        known |= dict(zip(stage.outputs, launch.outputs, strict=True))
        compiled[stage.name] = compile_launch(launch, inputs, sm)
    return compiled


def compile_launch(launch: Launch, inputs: Sequence[Operand | None], sm: int) -> Compiled:
    """One kernel for compute capability sm (80, 89, 90); its grid may depend on sizes that are not known yet.

    Raises RuntimeError where the kernel was imported for Triton's interpreter, and ValueError for a kernel whose
    parameters are not the launch's inputs, scalars and outputs, that needs scratch of Triton's, or that ptxas refuses.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("kernels compile only in a process that imported triton without TRITON_INTERPRET")
    types = _parameter_types(launch, inputs)
    parameters = [name for name in kernel.arg_names if name not in launch.constants]
    if len(parameters) != len(types):
        raise ValueError(f"{kernel.__name__} takes {', '.join(parameters)}; its launch gives {len(types)} of them")
    types_of = dict(zip(parameters, types, strict=True))
    signature = {name: types_of.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", POINTER_ALIGNMENT]] for i, kind in enumerate(signature.values()) if kind[0] == "*"
    }
    source = ASTSource(kernel, signature, dict(launch.constants), aligned)
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # no path of this machine in an engine
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    ptx, declared = strip_scratch(made.asm["ptx"])
    if declared != len(types):
        raise ValueError(f"{kernel.__name__} has {declared} parameters in PTX and {len(types)} in its launch")
    cubin, report = _assemble(ptx, triton.knobs.nvidia.ptxas.path)
    return Compiled(
        name=made.metadata.name,
        ptx=ptx.encode(),
        cubin=cubin,
        parameters=declared,
        threads=made.metadata.num_warps * made.metadata.warp_size,
        registers=_figure(r"Used (\d+) registers", report),
        spill_stores=_figure(r"(\d+) bytes spill stores", report),
        spill_loads=_figure(r"(\d+) bytes spill loads", report),
        stack=_figure(r"(\d+) bytes stack frame", report),
        static_shared=_figure(r"(\d+) bytes smem", report, absent=0),
        dynamic_shared=made.metadata.shared,
    )


def strip_scratch(ptx: str) -> tuple[str, int]:
    """PTX without Triton's scratch pointers, and how many parameters are left; ValueError if the kernel uses them."""
    entry = re.search(r"\.visible \.entry \w+\(([^)]*)\)", ptx)
    if entry is None:
        raise ValueError("PTX without a .visible .entry")
    parameters = [parameter.strip() for parameter in entry[1].split(",")]
    kept, scratch = parameters[:-SCRATCH_POINTERS], parameters[-SCRATCH_POINTERS:]
    body = ptx[entry.end() :]
    for parameter in scratch:
        name = parameter.split()[-1]
        if ".u64" not in parameter or re.search(rf"\b{name}\b", body):
            raise ValueError(f"the kernel uses Triton's scratch memory ({name}), which no launch here provides")
    declared = ",\n".join(f"\t{parameter}" for parameter in kept)
    return f"{ptx[: entry.start(1)]}\n{declared}\n{ptx[entry.end(1) :]}", len(kept)


def _parameter_types(launch: Launch, inputs: Sequence[Operand | None]) -> list[str]:
    """An absent input is a pointer like the first that is there, as in launch_on."""
    present = next(operand for operand in inputs if operand is not None)
    pointers = [f"*{TRITON_TYPE[(operand or present).dtype]}" for operand in (*inputs, *launch.outputs)]
    return [*pointers[: len(inputs)], *("i32" for _ in launch.scalars), *pointers[len(inputs) :]]


def _assemble(ptx: str, ptxas: str) -> tuple[bytes, str]:
    """ptxas with the options that Triton gives it: the cubin, and what it reports."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [ptxas, "-v", "--regAllocOptLevel=2", f"--gpu-name={target[1]}", str(source), "-o", str(binary)]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
        if run.returncode:
            raise ValueError(f"ptxas refuses the PTX: {' '.join(run.stderr.split())}")
        return binary.read_bytes(), run.stderr


def _figure(pattern: str, report: str, absent: int | None = None) -> int:
    found = re.search(pattern, report)
    if found is None and absent is None:
        raise ValueError(f"ptxas reports nothing like {pattern!r}: {' '.join(report.split())}")
    return int(found[1]) if found else int(absent or 0)
