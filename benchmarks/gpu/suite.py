"""The GPU suite: stages of entries, each written to JSON as it ends.

A parent that never touches the GPU watches one worker that does. Where a kernel hangs or loses the device, the worker
ends, the entry is recorded as an error and a new worker goes on with the next one.
Exit code: 0, also where time ended first; 1 where a check failed or an entry could not be measured; 2, and no figure
is touched, without a GPU, for an option that is not valid or a folder that cannot be written; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.gpu.ledger import DEVICE_LOST, Ledger, prepare, running
from benchmarks.gpu.report import write_report

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("environment", "correctness", "micro", "prefill", "decode", "tune")
NO_GPU = "gpu_suite: needs a CUDA GPU that torch can use; --rehearse runs tiny shapes on this CPU"
SLOW_S, PATIENCE = 120.0, 4.0
"""An entry that takes longer than this, and than so many times what was expected, hangs."""
OVERTIME_S = 15.0
"""How much longer than the call's limit an entry that has begun may take."""


def main() -> int:
    options = _options()
    if options.compile_share or options.worker:
        return _in_worker(options)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        return _measure(options)
    except KeyboardInterrupt as interrupt:
        number = signal.Signals(interrupt.args[0])
        print(f"gpu_suite: ended by {number.name}; the next call goes on", file=sys.stderr)
        return 128 + number


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _measure(options: argparse.Namespace) -> int:
    call, deadline = str(time.time_ns()), time.monotonic() + options.limit
    while (code := watch(_worker_command(options, call, deadline), options.out, call, deadline)) is None:
        options.fresh = False
        print("gpu_suite: a new worker goes on", flush=True)
    if code:
        return code
    tally = write_report(options.out, STAGES)
    verdict = "FAILED" if tally.failed else "passed" if tally.stored else "nothing was measured yet"
    left = f"; left for the next call: {tally.left}" if tally.left else ""
    print(f"gpu_suite: {verdict}{left}; {options.out / 'report.md'}")
    return 1 if tally.failed else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpu_suite: {message}\n")


def _options() -> argparse.Namespace:
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(prog="gpu_suite.sh", description=__doc__, **style)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all where none is named")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder of the figures")
    parser.add_argument("--limit", type=float, default=570, help="seconds that this call may take")
    parser.add_argument("--fresh", action="store_true", help="set aside what is there, measure it again")
    parser.add_argument("--seed", type=int, help="of every entry's inputs, to see a failure again; else fresh ones")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU, in Triton's interpreter")
    parser.add_argument("--worker", metavar="CALL", help=argparse.SUPPRESS)
    parser.add_argument("--compile-share", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [stage for stage in options.stages if stage not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; valid: {', '.join(STAGES)}")
    if not options.worker and not 0 < options.limit < math.inf:
        parser.error(f"--limit {options.limit:g} is no number of seconds above 0")
    options.stages = [stage for stage in STAGES if stage in options.stages or not options.stages]
    options.out = options.out.absolute()
    return options


def _in_worker(options: argparse.Namespace) -> int:
    if not options.rehearse:
        import torch

        if not torch.cuda.is_available():
            print(NO_GPU, file=sys.stderr)
            return 2
    if options.compile_share:
        from benchmarks.gpu.worker import compile_share

        return compile_share(*options.compile_share)
    try:
        prepare(options.out, options.stages if options.fresh else ())
    except OSError as error:
        print(f"gpu_suite: --out {options.out} is no folder that can be written: {error.strerror}", file=sys.stderr)
        return 2
    from benchmarks.gpu.worker import work

    return work(options.stages, options.out, options.worker, options.limit, options.seed, rehearsal=options.rehearse)


def _worker_command(options: argparse.Namespace, call: str, deadline: float) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.suite", *options.stages, "--worker", call]
    command += [f"--out={options.out}", f"--limit={max(0.0, deadline - time.monotonic()):.3f}"]
    command += [] if options.seed is None else [f"--seed={options.seed}"]
    return [*command, *["--rehearse"] * options.rehearse, *["--fresh"] * options.fresh]


def watch(command: Sequence[str], out: Path, call: str, deadline: float) -> int | None:
    """Run a worker to its end: its exit code where that is final, None where a new worker should go on. No process that
    it started outlives it."""
    hung = False
    worker = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        while not hung and not _ended(worker.pid):
            time.sleep(0.2)
            entry = running(out, call)
            late = entry is not None and time.time() - entry["began"] > max(SLOW_S, PATIENCE * entry["expected_s"])
            hung = late or time.monotonic() > deadline + OVERTIME_S
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    if worker.returncode in (0, 2):
        return int(worker.returncode)
    entry = running(out, call)  # a worker that could still record its entry has ended it
    if entry is not None:
        why = "hangs, or is much slower than expected" if hung else f"the process ended with {worker.returncode}"
        Ledger.open(out, entry["stage"], call, entry["fingerprint"]).record_error(entry["key"], why)
    elif worker.returncode != DEVICE_LOST:  # between entries: the suite itself is broken, and would be again
        return 1
    return None if time.monotonic() < deadline else 0


def _ended(process: int) -> bool:
    """Leaves the process unreaped: until then no other can have its number, which is that of its group."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


if __name__ == "__main__":
    sys.exit(main())
