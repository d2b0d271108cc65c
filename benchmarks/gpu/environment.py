"""What machine this is, and its own ceilings: a copy of device memory and a large matrix product."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import time
from typing import Any

import torch
import triton

from benchmarks.gpu.entry import Entry
from benchmarks.gpu.machine import ROOT, Machine, answer_of
from benchmarks.gpu.timing import kernel_seconds
from zipvl_compile.cost.hardware import GIB


def entries(machine: Machine) -> list[Entry]:
    return [
        Entry("machine", 10.0, lambda: _machine(machine)),
        Entry("ceilings", 10.0, lambda: _ceilings(machine)),
        Entry("compile", 120.0, lambda: _compile(machine)),
    ]


def _machine(machine: Machine) -> dict[str, Any]:
    clocks = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,driver_version"
    figures: dict[str, Any] = {
        "gpu": machine.name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "flash_attn": importlib.util.find_spec("flash_attn") is not None,
        "revision": answer_of("git", "rev-parse", "HEAD"),
        "uncommitted": None if (status := answer_of("git", "status", "--porcelain")) is None else bool(status),
        "figures_of_the_cost_model": machine.gpu.name,
    }
    if not machine.rehearsal:
        properties = torch.cuda.get_device_properties(machine.device)
        figures |= {
            "memory_gib": round(properties.total_memory / GIB, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "as_found": answer_of("nvidia-smi", f"--query-gpu={clocks}", "--format=csv,noheader"),
        }
    return figures


def _ceilings(machine: Machine) -> dict[str, Any]:
    """Bytes are counted read and written; the product's operands are random, for zeros run faster."""
    side, numbers = (64, 4096) if machine.rehearsal else (8192, 1 << 30)
    dtype = torch.float32 if machine.rehearsal else torch.bfloat16
    source = torch.randn(numbers, device=machine.device, dtype=dtype)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=machine.device, dtype=dtype) for _ in range(2))
    seconds = kernel_seconds(
        machine, {"copy": (target.copy_, [(source,)]), "product": (torch.matmul, [(left, right)])}, target_s=0.05
    )
    rate = 2 * side**3 / seconds["product"]
    bandwidth = 2 * source.nbytes / seconds["copy"]
    return {
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "product_tflops": round(rate / 1e12, 1),
        "copy_of_peak": round(bandwidth / machine.gpu.bandwidth, 3),
        "product_of_peak": round(rate / machine.gpu.flops, 3),
    }


def _compile(machine: Machine) -> dict[str, Any]:
    """Compile the kernels of the correctness stage in as many processes as there are cores, into Triton's cache. They
    belong to the worker's process group, with which the suite ends them."""
    begun = time.perf_counter()
    if machine.rehearsal:
        from benchmarks.gpu.correctness import warm

        warm(machine, 0, 1)
        return {"processes": 0, "seconds": round(time.perf_counter() - begun, 1)}
    shares = max(1, min(16, os.cpu_count() or 1))
    command = [sys.executable, "-m", "benchmarks.gpu.suite", "--compile-share"]
    processes = [
        subprocess.Popen(
            [*command, str(share), str(shares)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for share in range(shares)
    ]
    failed = 0
    for process in processes:
        try:
            failed += process.wait(timeout=max(1.0, 110 - (time.perf_counter() - begun))) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            failed += 1
    return {"processes": shares, "unfinished": failed, "seconds": round(time.perf_counter() - begun, 1)}
