"""What this process may use of the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")


def usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """Cores that this process may keep busy: those it is pinned to, and no more than its container's CPU limit.

    cpu_max: cgroup v2's file, "QUOTA PERIOD" in microseconds or "max PERIOD".
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit
        return cores


def memory_bytes(memory_max: Path = _MEMORY_MAX) -> int:
    """Memory that this process may use: the machine's, and no more than its container's limit.

    memory_max: cgroup v2's file, bytes or "max".
    """
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(installed, int(memory_max.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such limit
        return installed
