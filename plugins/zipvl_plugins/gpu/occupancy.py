"""How many blocks of a kernel an SM holds at once, by the published limits (CUDA C++ Programming Guide, "Compute
Capabilities"; the allocation rules are those of cuda_occupancy.h)."""

from __future__ import annotations

from dataclasses import dataclass

from zipvl_plugins.gpu.ahead_of_time import Compiled

KIB = 1024
WARP = 32
REGISTERS = 65536
"""Of an SM, in four partitions that each hold a quarter of its warps."""
PARTITIONS = 4
REGISTER_UNIT = 256
"""A warp's registers are allocated in multiples of this."""
REGISTERS_PER_THREAD = 255
SHARED_UNIT = 128
SHARED_RESERVED = KIB
"""Bytes that the system takes of every block's shared memory."""


@dataclass(frozen=True)
class Limits:
    """What an SM of a compute capability holds; shared memory in bytes."""

    warps: int
    blocks: int
    shared: int

    @property
    def shared_per_block(self) -> int:
        """What one block may ask for."""
        return self.shared - SHARED_RESERVED


LIMITS = {
    80: Limits(warps=64, blocks=32, shared=164 * KIB),
    89: Limits(warps=48, blocks=24, shared=100 * KIB),
    90: Limits(warps=64, blocks=32, shared=228 * KIB),
}
"""By compute capability: A100; L40S and RTX 40; H100 and H200."""


@dataclass(frozen=True)
class Occupancy:
    """Blocks of one kernel that an SM holds at once, and the share of its warps that they are."""

    blocks: int
    share: float
    """0 to 1."""


def occupancy(compiled: Compiled, sm: int) -> Occupancy:
    """The most blocks that registers, shared memory, warps and blocks of an SM allow."""
    limits = LIMITS[sm]
    warps = -(-compiled.threads // WARP)
    registers = _round_up(compiled.registers * WARP, REGISTER_UNIT)
    shared = _round_up(compiled.shared + SHARED_RESERVED, SHARED_UNIT)
    blocks = min(
        limits.blocks,
        limits.warps // warps,
        REGISTERS // PARTITIONS // registers * PARTITIONS // warps,
        limits.shared // shared,
    )
    return Occupancy(blocks, blocks * warps / limits.warps)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
