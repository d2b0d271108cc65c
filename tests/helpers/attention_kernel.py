"""sparse_attention's kernel as it is launched elsewhere, for the interpreter's process."""

from __future__ import annotations

from typing import Any
from unittest import mock

from zipvl_plugins import ops
from zipvl_plugins.gpu.launch import operand
from zipvl_plugins.sparse_attention import kernel


def attend_in_sections(section_bytes: int, *arguments: Any) -> Any:
    """The op where K and V of only so many bytes stay in the L2 cache."""
    with mock.patch.object(kernel, "SECTION_BYTES", section_bytes):
        return ops.run_kernels("sparse_attention", *arguments)


def attend_as_on(sm: int, *arguments: Any) -> list[Any]:
    """The op's results with every tuning of compute capability sm."""
    tunings = kernel.tunings(sm, *map(operand, arguments[:4]))
    return [ops.run_kernels("sparse_attention", *arguments, choose=lambda *_, own=own: own) for own in tunings]
