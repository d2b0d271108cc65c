"""A plan's files: plan.json, plan.md, plan.png, plan.svg, all of them or none."""

from __future__ import annotations

import json
from pathlib import Path

from zipvl_compile.bundling.writer import Kind, staged_directory
from zipvl_compile.planning.figures import Plan
from zipvl_compile.planning.picture import draw
from zipvl_compile.planning.table import markdown

FILES = ("plan.json", "plan.md", "plan.png", "plan.svg")


def write_plan(plan: Plan, out: Path) -> None:
    """Write the four files into the directory `out`, which is new, empty or an earlier plan's.

    Raises InputError for any other directory, ZipvlError where it cannot be written; an earlier plan stays whole.
    """
    with staged_directory(out, Kind("plan", _listed)) as staging:
        data, page, *pictures = (staging / name for name in FILES)
        data.write_text(plan.model_dump_json(indent=2) + "\n", encoding="utf-8")
        page.write_text(markdown(plan) + "\n![the same as a picture](plan.svg)\n", encoding="utf-8")
        draw(plan, *pictures)


def _listed(folder: Path) -> set[str] | None:
    try:
        found = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return set(FILES) if isinstance(found, dict) and {"schema_version", "modes", "rows"} <= found.keys() else None
