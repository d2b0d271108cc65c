"""The command line for a parent that may be killed: `python -m zipvl_compile.bench.serving.child ARGUMENTS`.

On Linux it gets SIGTERM when the thread that started it dies, so a bench that is killed leaves no server behind.
"""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    from zipvl_compile.cli import app

    app()
