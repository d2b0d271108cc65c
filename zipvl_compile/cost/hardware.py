"""GPUs and CPUs as the cost model sees them: peaks, and how much of them well-made kernels reach."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from zipvl_compile.engines.gpus import common_name
from zipvl_serving.errors import InputError, nearest
from zipvl_serving.machine import memory_bytes, usable_cores

GIB = 1 << 30
CPU = "cpu"


@dataclass(frozen=True)
class Utilisation:
    """Shares of the peaks, 0 to 1, and what a kernel costs beside its work."""

    gemm: float = 0.80
    """Matrix products of the vendor's library: 788 of 989 TFLOP/s reported of an H200 (bf16, 8192 cubed)."""
    lazy_gemm: float = 0.72
    """Products that read or write rows of T: a Triton GEMM at nine tenths of the library's."""
    dense_attention: float = 0.70
    """FlashAttention-2 reaches 50 to 73 % of an A100, the upper end at head dim 128 and thousands of tokens."""
    sparse_attention: float = 0.65
    """This project's goal from 8K tokens of T up."""
    scores: float = 0.45
    """Probe scores: one product per exponential where attention has two."""
    memory: float = 0.85
    """Streaming kernels; 4.3 of 4.8 TB/s reported of a device-to-device copy on an H200."""
    elementwise: float = 1.0
    """Traffic of norms, RoPE, activations and residuals over that of fused kernels."""
    search: float = 1.0
    """Selection, of the integer rate of the one multiprocessor that it runs on."""
    kernel_s: float = 3e-6
    """Start and end of one kernel in a CUDA graph or a full stream."""
    round_s: float = 1e-6
    """A reduction over a block, on which the block waits."""


FLOOR = Utilisation(
    gemm=1,
    lazy_gemm=1,
    dense_attention=1,
    sparse_attention=1,
    scores=1,
    memory=1,
    search=math.inf,
    kernel_s=0,
    round_s=0,
)  # fmt: skip
"""No kernel does better; selection is charged for reading the scores once."""
EAGER_ELEMENTWISE = 2.6
"""`elementwise` of PyTorch without a compiler: a norm goes through float32 in three kernels (20 bytes a number instead
of 4), RoPE takes seven (18 instead of 4), the gated activation two (10 instead of 6); the mean of a 13B layer."""
HOPPER = Utilisation(sparse_attention=0.50, scores=0.35)
"""FlashAttention-3 reaches 75 % of an H100 (the baseline here: .70); Triton-language attention about 77 % of that, less
where its programs end early."""


@dataclass(frozen=True)
class Device(ABC):
    """Peaks of what runs a model."""

    name: str
    flops: float
    """Of matrix products, FLOP/s: a GPU's in fp16 and bf16 on tensor cores with float32 accumulation, dense; a CPU's in
    float32."""
    bandwidth: float
    """Of its memory, bytes/s."""
    memory: float
    """Bytes, as the driver or the operating system reports them."""
    utilisation: Utilisation = field(default=Utilisation(), kw_only=True)

    @property
    @abstractmethod
    def scalar_rate(self) -> float:
        """Integer operations a second of what selection runs on."""


@dataclass(frozen=True)
class Gpu(Device):
    """Peaks by the vendor's data sheet."""

    clock: float
    """Of the multiprocessors, boosted, Hz."""

    @property
    def scalar_rate(self) -> float:
        """Of one multiprocessor."""
        return 64 * self.clock


@dataclass(frozen=True)
class Core:
    """One core of a CPU in float32, and how much of it ONNX Runtime's graphs reach."""

    flops: float
    bandwidth: float
    """Its share of the machine's, bytes/s."""
    scalar_rate: float
    utilisation: Utilisation


CORE = Core(
    flops=112e9,
    bandwidth=12e9,
    scalar_rate=56e9,
    utilisation=Utilisation(
        gemm=0.86, lazy_gemm=0.86, dense_attention=0.54, sparse_attention=0.45, scores=0.35, memory=0.56,
        elementwise=1.0, search=0.05, kernel_s=5e-6, round_s=0,
    ),
)  # fmt: skip
"""Peaks are nominal: 32 float32 and 16 integer operations a cycle at 3.5 GHz; a server's memory shared by its cores.
The shares are fitted to the quickest runs of a 0.5B decoder's shape on two cores of an AMD EPYC (benchmarks/results,
ttft-shapes and throughput-shapes; docs/planning.md, "Measured on a CPU"): products and attention to TTFT from 1K to 16K
tokens, scores and search to its breakdown, memory to the decode steps."""


@dataclass(frozen=True)
class Cpu(Device):
    """As many cores as a process may use."""

    core: Core

    @property
    def scalar_rate(self) -> float:
        """Of one core: selection does not run on several."""
        return self.core.scalar_rate


def cpu(cores: int, memory: float, core: Core = CORE) -> Cpu:
    """A CPU of `cores` cores with `memory` bytes."""
    name = f"CPU, {cores} core{'s' if cores > 1 else ''}"
    return Cpu(name, cores * core.flops, cores * core.bandwidth, memory, core, utilisation=core.utilisation)


GPUS = {
    "a100-40gb": Gpu("A100 40 GB SXM", 312e12, 1.555e12, 40 * GIB, 1.41e9),
    "a100-80gb": Gpu("A100 80 GB SXM", 312e12, 2.039e12, 80 * GIB, 1.41e9),
    "a10": Gpu("A10", 125e12, 0.6e12, 22.5 * GIB, 1.695e9),
    "l4": Gpu("L4", 121e12, 0.3e12, 22.5 * GIB, 2.04e9),
    "l40s": Gpu("L40S", 362e12, 0.864e12, 45 * GIB, 2.52e9),
    "h100": Gpu("H100 SXM", 989e12, 3.35e12, 79.6 * GIB, 1.98e9, utilisation=HOPPER),
    "h200": Gpu("H200 SXM", 989e12, 4.8e12, 140.4 * GIB, 1.98e9, utilisation=HOPPER),
}


def gpu(name: str) -> Gpu:
    """A GPU by its name; InputError names the known ones."""
    spoken = common_name(name)
    found = GPUS.get({"a100": "a100-80gb"}.get(spoken, spoken))
    if found is None:
        raise InputError(f"no figures of GPU {name!r}; {nearest(spoken, GPUS)}")
    return found


def device(name: str) -> Device:
    """A GPU by its name, or `cpu`, which is this machine's; InputError names the known ones."""
    if common_name(name) == CPU:
        return cpu(usable_cores(), memory_bytes())
    try:
        return gpu(name)
    except InputError as error:
        raise InputError(f"{error}, or {CPU}") from None


def gpu_of_device(device: str, memory: int) -> Gpu | None:
    """The GPU that a driver calls `device`, such as "NVIDIA A100-SXM4-80GB"; None where its figures are not known."""
    words = device.lower().replace("-", " ").split()
    known = [found for name, found in GPUS.items() if name.split("-")[0] in words]
    return min(known, key=lambda found: abs(found.memory - memory), default=None)
