"""What a figure depends on beside the code: the machine, the versions, the settings of threads."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import zipvl_compile
from zipvl_compile.bundling.cache import processor_name, tool_versions
from zipvl_serving.machine import memory_bytes, usable_cores

_VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY"),
    *("KMP_AFFINITY", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LD_PRELOAD", "MALLOC_ARENA_MAX"),
)
"""Environment variables that change speed."""


def fingerprint() -> dict[str, Any]:
    """JSON values. `load_average` (1, 5, 15 minutes) is of now; `finished` adds that at the end."""
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "versions": tool_versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "revision": _revision(),
        "load_average": {"start": _load()},
    }


def finished(environment: dict[str, Any]) -> dict[str, Any]:
    """The same at the end of a run."""
    return {**environment, "load_average": {**environment["load_average"], "end": _load()}}


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def _revision() -> dict[str, Any] | None:
    """The commit of these sources and whether files differ from it; None for an installed package."""
    root = Path(str(zipvl_compile.__file__)).resolve().parents[1]
    top, commit, status = (
        _git(root, *arguments)
        for arguments in (("rev-parse", "--show-toplevel"), ("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    # A wheel in somebody's own repository is not that repository's.
    if top is None or commit is None or Path(top) != root:
        return None
    return {"commit": commit, "changed": bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
