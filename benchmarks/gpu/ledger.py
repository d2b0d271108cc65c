"""Figures as data, one JSON file per stage, written after every entry: a call goes on where the last one ended.

Beside them is what the suite and its worker tell each other."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNNING = "running.json"
"""Names the entry that is being measured; its reader knows what a process was doing when it died."""
PREVIOUS = ".previous.json"
"""Ends the name of a stage's figures that were set aside."""
LEFT = "left.json"
"""Entries that did not fit into the last call."""
DEVICE_LOST = 70
"""A worker's exit code where the device answers no more: an illegal access ends every kernel of its process."""


@dataclass
class Ledger:
    """The entries of one stage: figures, or an `error` and the call of the suite that had it."""

    path: Path
    call: str
    """Names this call of the suite."""
    fingerprint: dict[str, Any]
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, stage: str, call: str, fingerprint: dict[str, Any] | None = None) -> Ledger:
        """What is stored. Figures of another machine or other sources than `fingerprint` says are set aside as
        <stage>.previous.json."""
        path = folder / f"{stage}.json"
        empty: dict[str, Any] = {"fingerprint": fingerprint, "entries": {}}
        stored = read_stage(folder, stage) or empty
        if fingerprint is not None and stored["fingerprint"] != fingerprint:
            path.replace(path.with_suffix(PREVIOUS))
            stored = empty
        return cls(path, call, stored["fingerprint"], stored["entries"])

    @property
    def stage(self) -> str:
        return self.path.stem

    def settled(self, key: str) -> bool:
        """Whether the entry is measured, or failed in this call already; an earlier call's error is tried again."""
        entry = self.entries.get(key)
        return entry is not None and ("error" not in entry or entry["call"] == self.call)

    def record(self, key: str, figures: dict[str, Any]) -> None:
        self.entries[key] = figures
        text = json.dumps({"stage": self.stage, "fingerprint": self.fingerprint, "entries": self.entries}, indent=1)
        draft = self.path.with_suffix(".draft")
        draft.write_text(text + "\n")
        draft.replace(self.path)
        (self.path.parent / RUNNING).unlink(missing_ok=True)

    def record_error(self, key: str, error: str) -> None:
        self.record(key, {"error": " ".join(error.split())[:600], "call": self.call})

    def begin(self, key: str, expected_s: float) -> None:
        running = {"stage": self.stage, "key": key, "expected_s": expected_s, "began": time.time()}
        running |= {"call": self.call, "fingerprint": self.fingerprint}
        (self.path.parent / RUNNING).write_text(json.dumps(running))


def prepare(folder: Path, fresh: Sequence[str]) -> None:
    """Make the folder of the figures and set aside those of the stages `fresh`; OSError where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LEFT).write_text("[]\n")
    for stage in fresh:
        if (path := folder / f"{stage}.json").exists():
            path.replace(path.with_suffix(PREVIOUS))


def read_stage(folder: Path, stage: str) -> dict[str, Any] | None:
    """The fingerprint and the entries of a stage; None where there are none. A file that is not whole is set aside as
    <stage>.unreadable.json."""
    path = folder / f"{stage}.json"
    if not path.exists():
        return None
    stored = _parsed(path)
    if isinstance(stored, dict) and all(isinstance(stored.get(part), dict) for part in ("fingerprint", "entries")):
        return stored
    aside = path.replace(path.with_suffix(".unreadable.json"))
    print(f"gpu_suite: {path} is not whole; set aside as {aside.name}", file=sys.stderr)
    return None


def read_left(folder: Path) -> list[str]:
    """Entries that did not fit into the last call."""
    left = _parsed(folder / LEFT)
    return left if isinstance(left, list) else []


def running(folder: Path, call: str) -> dict[str, Any] | None:
    """The entry that this call of the suite is measuring, or was when its process died."""
    found = _parsed(folder / RUNNING)
    return found if isinstance(found, dict) and found.get("call") == call else None


def _parsed(path: Path) -> Any:
    """None where the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
