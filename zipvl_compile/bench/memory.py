"""How much memory is free on this machine."""

from __future__ import annotations

from pathlib import Path

from zipvl_serving.machine import memory_bytes

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Memory that this process can still take without swapping: the machine's, and what its container leaves.

    meminfo: Linux' list of "NAME: kB"; without one, all memory. cgroup: the folder of cgroup v2's memory.max,
    memory.current and memory.stat, whose inactive files can be dropped.
    """
    try:
        free = 1024 * int(_table(meminfo)["MemAvailable:"])
    except (OSError, ValueError, KeyError):
        free = memory_bytes()
    try:
        limit, used = (int((cgroup / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        return min(free, max(0, limit - used + int(_table(cgroup / "memory.stat")["inactive_file"])))
    except (OSError, ValueError, KeyError):  # no such limit
        return free


def _table(file: Path) -> dict[str, str]:
    """The second word of every line by its first."""
    return {words[0]: words[1] for line in file.read_text(encoding="ascii").splitlines() if (words := line.split())}
