"""GPUs by the names that people use, and the compute capability that engines are compiled for."""

from __future__ import annotations

import re

from zipvl_serving.errors import InputError, nearest

GPUS = {
    "t4": "SM75",
    "a100": "SM80",
    "a100-40gb": "SM80",
    "a100-80gb": "SM80",
    "a30": "SM80",
    "a10": "SM86",
    "a10g": "SM86",
    "a40": "SM86",
    "rtx-a6000": "SM86",
    "rtx3090": "SM86",
    "l4": "SM89",
    "l40": "SM89",
    "l40s": "SM89",
    "rtx-6000-ada": "SM89",
    "rtx4090": "SM89",
    "gh200": "SM90",
    "h100": "SM90",
    "h200": "SM90",
    "b200": "SM100",
    "rtx-pro-6000": "SM120",
    "rtx5090": "SM120",
    "gb10": "SM121",
}


def common_name(name: str) -> str:
    """`a100-80gb` for `NVIDIA A100 80GB` and other ways to write it."""
    return re.sub(r"[ _-]+", "-", name.strip().lower()).removeprefix("nvidia-")


def compute_capability(name: str) -> str:
    """SM80 for `a100`, `NVIDIA A100`, `sm80` or `sm_80`; InputError for a GPU that is not in the table."""
    spoken = common_name(name)
    if capability := re.fullmatch(r"sm-?([1-9][0-9]{1,2})", spoken):
        return f"SM{capability[1]}"
    if spoken not in GPUS:
        raise InputError(f"target.gpu: unknown GPU {name!r}; {nearest(spoken, GPUS)}, or a compute capability as sm80")
    return GPUS[spoken]


def require_supported(name: str, supported: tuple[str, ...], backend: str) -> str:
    """The compute capability of the GPU called `name`; InputError where the backend does not build for it."""
    sm = compute_capability(name)
    if sm not in supported:
        valid = ", ".join([*sorted(gpu for gpu, its in GPUS.items() if its in supported), *supported])
        raise InputError(f"target.gpu: {backend} does not build for {name!r} ({sm}); valid: {valid}")
    return sm


def gpu_here() -> str | None:
    """The compute capability of this machine's CUDA GPU; None without one, or without torch to ask."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"SM{major}{minor}"
