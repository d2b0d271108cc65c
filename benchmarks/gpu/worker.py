"""The process of the suite that works on the device: entry after entry, until time or the device is at its end."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.entry import Entry
from benchmarks.gpu.ledger import DEVICE_LOST, LEFT, Ledger
from benchmarks.gpu.machine import Machine, this_machine
from benchmarks.gpu.prefill import release


def work(stages: Sequence[str], out: Path, call: str, limit_s: float, seed: int | None, *, rehearsal: bool) -> int:
    """Exit code: 0; DEVICE_LOST with the entry's error recorded; 1 where nobody watches any more. Every entry draws a
    seed of its own, or takes `seed`."""
    parent = os.getppid()
    machine = this_machine(rehearsal=rehearsal)
    deadline = time.monotonic() + limit_s
    left: list[str] = []
    for stage in stages:
        ledger = Ledger.open(out, stage, call, machine.fingerprint)
        release(machine)
        for entry in importlib.import_module(f"benchmarks.gpu.{stage}").entries(machine):
            if ledger.settled(entry.key):
                continue
            if os.getppid() != parent:
                return 1
            if time.monotonic() + entry.expected_s > deadline:
                left.append(f"{stage}: {entry.key} ({entry.expected_s:.0f} s)")
            elif not _take(machine, ledger, entry, seed):
                return DEVICE_LOST
    (out / LEFT).write_text(json.dumps(left, indent=1) + "\n")
    return 0


def compile_share(share: int, shares: int) -> int:
    """Fill Triton's cache with a share of what the correctness stage launches."""
    from benchmarks.gpu.correctness import warm

    warm(this_machine(rehearsal=False), share, shares)
    return 0


def _take(machine: Machine, ledger: Ledger, entry: Entry, seed: int | None) -> bool:
    """Measure and record one entry; whether the device still answers."""
    ledger.begin(entry.key, entry.expected_s)
    begun = time.monotonic()
    notes = {"seed": secrets.randbits(32) if seed is None else seed}
    torch.manual_seed(notes["seed"])
    try:
        figures = entry.run()
        machine.synchronize()
        ledger.record(entry.key, figures | notes | {"took_s": round(time.monotonic() - begun, 1)})
    except torch.cuda.OutOfMemoryError:
        ledger.record(entry.key, {"oom": True} | notes)
    except Exception as error:
        traceback.print_exc()
        ledger.record_error(entry.key, f"seed {notes['seed']}: {type(error).__name__}: {error}")
        if not _answers(machine):
            return False
    print(f"{ledger.stage}: {entry.key}: {time.monotonic() - begun:.1f} s", flush=True)
    return True


def _answers(machine: Machine) -> bool:
    try:
        machine.synchronize()
    except RuntimeError:
        return False
    return True
