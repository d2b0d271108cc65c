"""Figures as data, one JSON file per stage, written after every entry: a call goes on where the last one ended."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNNING = "running.json"
"""Names the entry that is being measured; its reader knows what a process was doing when it died."""
LEFT = "left.json"
"""Entries that did not fit into the last call."""


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
        stored = json.loads(path.read_text()) if path.exists() else empty
        if fingerprint is not None and stored["fingerprint"] != fingerprint:
            path.replace(path.with_suffix(".previous.json"))
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
        (self.path.parent / RUNNING).write_text(json.dumps(running))


def running(folder: Path) -> dict[str, Any] | None:
    """The entry that is being measured, or was when its process died."""
    try:
        found: dict[str, Any] = json.loads((folder / RUNNING).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return found
