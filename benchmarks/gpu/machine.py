"""The machine that is measured: a CUDA GPU, or this CPU with Triton's interpreter in a rehearsal."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zipvl_compile.cost.hardware import GIB, Gpu, gpu, gpu_of_device
from zipvl_plugins import ops

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("plugins/zipvl_plugins", "zipvl_compile/models", "benchmarks/gpu")
"""Sources whose change makes earlier figures stale."""


@dataclass(frozen=True)
class Machine:
    """Where tensors are and what is known of it."""

    device: torch.device
    rehearsal: bool

    @property
    def name(self) -> str:
        return "rehearsal on a CPU" if self.rehearsal else torch.cuda.get_device_name(self.device)

    @functools.cached_property
    def gpu(self) -> Gpu:
        """Figures for predictions; an unknown GPU is taken for an A100 with its own memory."""
        if self.rehearsal:
            return gpu("a100-80gb")
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return gpu_of_device(self.name, memory) or gpu("a100-80gb" if memory > 60 * GIB else "a100-40gb")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Figures with another fingerprint are not comparable."""
        return {
            "machine": self.name, "torch": torch.__version__, "sources": sources_digest(), "rehearsal": self.rehearsal,
        }  # fmt: skip

    def synchronize(self) -> None:
        if not self.rehearsal:
            torch.cuda.synchronize(self.device)

    def use_kernels(self) -> None:
        """torch.ops.zipvl.<op> is its kernels from here on, in a rehearsal too."""
        if not self.rehearsal:
            ops.use_kernels()
            return
        for op in ops.OPS:
            ops.reference(op).register_kernel("cpu")(functools.partial(ops.run_kernels, op))

    def free_memory(self) -> int:
        """Bytes that an allocation can have, once cached blocks are given back."""
        if self.rehearsal:
            return GIB
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def peak_gib(self) -> float | None:
        """The most memory that was allocated since the last call."""
        if self.rehearsal:
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / GIB
        torch.cuda.reset_peak_memory_stats(self.device)
        return float(round(peak, 2))


def this_machine(*, rehearsal: bool) -> Machine:
    return Machine(torch.device("cpu") if rehearsal else torch.device("cuda", 0), rehearsal)


@functools.cache
def sources_digest() -> str:
    digest = hashlib.sha256()
    for folder in MEASURED:
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def answer_of(*command: str) -> str | None:
    """What a command prints; None where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty gives NaN, integers the largest: what a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
