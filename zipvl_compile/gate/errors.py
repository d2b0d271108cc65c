"""What keeps a gate from giving a verdict, and its exit code: never 1, which says that something regressed."""

from __future__ import annotations

from typing import Final

from zipvl_serving.errors import ZipvlError, one_line

PASS: Final = 0
REGRESSION: Final = 1
ENVIRONMENT: Final = 2
INCONCLUSIVE: Final = 3
BASELINE_MISSING: Final = 4


class GateError(ZipvlError):
    """The gate could not be run here: no git checkout, a build that failed, a worker that died. Exit code 2."""

    exit_code = ENVIRONMENT


class BaselineMissingError(ZipvlError):
    """There is nothing to compare with; the message names the command that makes it. Exit code 4."""

    exit_code = BASELINE_MISSING


def as_gate_error(error: Exception) -> GateError:
    """Whatever went wrong in a gate, in one line."""
    if isinstance(error, GateError):
        return error
    return GateError(f"the gate could not be run: {one_line(error)[:300] or type(error).__name__}")
