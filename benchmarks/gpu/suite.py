"""The GPU suite: stages of entries, each written to JSON as it ends.

A parent that never touches the GPU watches one worker that does. Where a kernel hangs or loses the device, the worker
ends, the entry is recorded as an error and a new worker goes on with the next one.
Exit code: 0; 1 where a check failed or an entry could not be measured; 2 where there is no GPU or a stage is unknown.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.ledger import LEFT, RUNNING, Ledger, running
from benchmarks.gpu.report import write_report

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("environment", "correctness", "micro", "prefill", "decode", "tune")
NO_GPU = "gpu_suite: needs a CUDA GPU that torch can use; --rehearse runs tiny shapes on this CPU"
SLOW_S, PATIENCE = 120.0, 4.0
"""An entry that takes longer than this, and than so many times what was expected, hangs."""
OVERTIME_S = 15.0
"""How much longer than the call's limit an entry that has begun may take."""
DEVICE_LOST = 70
"""A worker's exit code where the device answers no more: an illegal access ends every kernel of its process."""


def main() -> int:
    options = _options()
    if options.compile_share or options.worker:
        return _in_worker(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        for stage in options.stages:
            (options.out / f"{stage}.json").unlink(missing_ok=True)
    (options.out / LEFT).unlink(missing_ok=True)
    call, deadline = str(time.time_ns()), time.monotonic() + options.limit
    while (code := watch(_worker_command(options, call, deadline), options.out, call, deadline)) is None:
        print("gpu_suite: a new worker goes on", flush=True)
    if code:
        return code
    passed = write_report(options.out, STAGES)
    print(f"gpu_suite: {'passed' if passed else 'FAILED'}; {options.out / 'report.md'}")
    return 0 if passed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_suite.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all where none is named")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder of the figures")
    parser.add_argument("--limit", type=float, default=570, help="seconds that this call may take")
    parser.add_argument("--fresh", action="store_true", help="measure again what is already there")
    parser.add_argument("--seed", type=int, help="of every entry's inputs, to see a failure again; else fresh ones")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU, in Triton's interpreter")
    parser.add_argument("--worker", metavar="CALL", help=argparse.SUPPRESS)
    parser.add_argument("--compile-share", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [stage for stage in options.stages if stage not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; valid: {', '.join(STAGES)}")
    options.stages = [stage for stage in STAGES if stage in options.stages or not options.stages]
    options.out = options.out.absolute()
    return options


def _in_worker(options: argparse.Namespace) -> int:
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    from benchmarks.gpu.worker import compile_share, work

    if options.compile_share:
        return compile_share(*options.compile_share)
    return work(options.stages, options.out, options.worker, options.limit, options.seed, rehearsal=options.rehearse)


def _worker_command(options: argparse.Namespace, call: str, deadline: float) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.suite", *options.stages, "--worker", call]
    command += ["--out", str(options.out), "--limit", str(deadline - time.monotonic())]
    command += [] if options.seed is None else ["--seed", str(options.seed)]
    return [*command, *["--rehearse"] * options.rehearse]


def watch(command: Sequence[str], out: Path, call: str, deadline: float) -> int | None:
    """Run a worker to its end: its exit code where that is final, None where a new worker should go on."""
    (out / RUNNING).unlink(missing_ok=True)
    hung = False
    with subprocess.Popen(command, cwd=ROOT) as worker:
        while worker.poll() is None:
            time.sleep(0.2)
            entry = running(out)
            late = entry is not None and time.time() - entry["began"] > max(SLOW_S, PATIENCE * entry["expected_s"])
            if late or time.monotonic() > deadline + OVERTIME_S:
                hung = True
                worker.kill()
    if worker.returncode in (0, 2):
        return int(worker.returncode)
    entry = running(out)  # a worker that could still record its entry has ended it
    if entry is not None:
        why = "hangs, or is much slower than expected" if hung else f"the process ended with {worker.returncode}"
        Ledger.open(out, entry["stage"], call).record_error(entry["key"], why)
    elif worker.returncode != DEVICE_LOST:  # between entries: the suite itself is broken, and would be again
        return 1
    return None if time.monotonic() < deadline else 0


if __name__ == "__main__":
    sys.exit(main())
