"""The place of a bundle: what killed processes left there, and several at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.bundles import contents, names

from zipvl_compile.bundling.writer import staged_directory


def test_leftovers_are_swept_up(work: Path) -> None:
    (work / ".bundle.partial-dead.old").mkdir()
    for name in (".bundle.partial-dead", ".other.partial-dead"):
        (work / name).mkdir()
        (work / name / "weights.safetensors").touch()
    with staged_directory(work / "bundle") as alive, staged_directory(work / "bundle") as staging:
        assert list(alive.iterdir()) == list(staging.iterdir()) == []
        assert set(names(work)) - {"bundle"} == {alive.name, staging.name, ".other.partial-dead"}
        (alive / "manifest.json").write_text(MANIFEST)
        (staging / "manifest.json").write_text(MANIFEST)
    assert names(work / "bundle") == ["manifest.json"]
    # Nothing stays but what belongs to another bundle.
    assert names(work) == [".other.partial-dead", "bundle"]


def test_a_bundle_put_aside_by_a_killed_process_comes_back(work: Path) -> None:
    aside = work / ".bundle.partial-dead.old"
    aside.mkdir()
    (aside / "manifest.json").write_text(MANIFEST)
    with pytest.raises(RuntimeError), staged_directory(work / "bundle"):
        raise RuntimeError
    assert contents(work) == {"bundle/manifest.json": MANIFEST.encode()}


RACE = """
import sys
from pathlib import Path
from zipvl_compile.bundling.writer import staged_directory
for turn in range(25):
    with staged_directory(Path(sys.argv[1])) as staging:
        (staging / "manifest.json").write_text(sys.argv[2])
"""
MANIFEST = json.dumps({"schema_version": 1, "engine": {}, "cache_key": "", "files": {}})
"""The least that is taken for a bundle of ours."""


def test_processes_that_replace_each_others_bundles(work: Path) -> None:
    race = [subprocess.Popen([sys.executable, "-c", RACE, work / "bundle", MANIFEST]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in race] == [0, 0, 0]
    assert names(work) == ["bundle"] and names(work / "bundle") == ["manifest.json"]
