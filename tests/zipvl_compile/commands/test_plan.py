"""zipvl-compile plan: what it prints, the files it writes, and what it says of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import error_line, invoke, succeed

from zipvl_compile.planning.figures import SCHEMA_VERSION, Plan
from zipvl_compile.planning.write import FILES

SMALL = ("--tokens", "128", "--ratio", "0.37")


def test_the_table_names_every_mode(tiny_recipe: Path) -> None:
    shown = succeed("plan", tiny_recipe, *SMALL, "--gpu", "h100")
    assert "tiny on H100 SXM" in shown and "predicted on paper" in shown
    for mode in ("dense", "evict", "quantise", "evict+quantise"):
        assert sum(mode in line.split() and "%" not in line and "-" not in line[:2] for line in shown.splitlines()) == 2
    assert "…" not in shown


def test_json_and_files(tiny_recipe: Path, tmp_path: Path) -> None:
    """One schema on stdout and in the file; a plan replaces a plan, and nothing else."""
    out = tmp_path / "plan"
    printed = json.loads(succeed("plan", tiny_recipe, *SMALL, "--json", "--out", out))
    assert printed["schema_version"] == SCHEMA_VERSION
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert json.loads((out / "plan.json").read_text()) == printed
    assert Plan.model_validate(printed).rows[0].tokens == 128
    page = (out / "plan.md").read_text()
    assert page.startswith("# Plan: tiny on CPU") and page.count("\n| 128 | ") == 4
    assert (out / "plan.png").read_bytes().startswith(b"\x89PNG") and (out / "plan.png").stat().st_size > 5000
    assert "<svg" in (out / "plan.svg").read_text()

    (out / "mine.txt").write_text("kept")
    refused = invoke("plan", tiny_recipe, *SMALL, "--out", out)
    assert refused.exit_code == 2 and "mine.txt" in error_line(refused.stderr)
    assert (out / "mine.txt").read_text() == "kept"


def test_what_does_not_fit_is_said_and_no_error(tiny_recipe: Path) -> None:
    shown = succeed("plan", tiny_recipe, *SMALL, "--gpu", "l4", "--set", "target.limits.kv_bytes=64GiB")
    assert "does not fit: limits.kv_bytes 64 GiB: 20.2 GiB are left" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--gpu", "h2000"), "no figures of GPU 'h2000'; did you mean 'h200'? valid: a10, a100-40gb, a100-80gb"),
     (("--gpu", "nope"), "l4, l40s, or cpu"),
     (("--ratio", "1.5"), "--ratio 1.5: must be above 0 and at most 1"),
     (("--ratio", "0"), "--ratio 0: must be above 0"),
     (("--ratio", "nan"), "--ratio nan: must be above 0"),
     (("--tokens", "0"), "--tokens 0: must be at least 1"),
     (("--batch", "-1"), "--batch -1: must be at least 1"),
     (("--kv-bytes", "2GB"), "--kv-bytes: '2GB' is not a size"),
     (("--set", "model.source=nowhere"), "expected a directory with config.json, or a hub id owner/name"),
     (("--set", "model.layers=99"), "model.layers: 99 is out of range")],
)  # fmt: skip
def test_bad_input_is_one_line(tiny_recipe: Path, arguments: tuple[str, str], message: str) -> None:
    refused = invoke("plan", tiny_recipe, *arguments)
    assert refused.exit_code == 2 and message in error_line(refused.stderr)


def test_a_missing_recipe() -> None:
    refused = invoke("plan", "nowhere.yaml")
    assert refused.exit_code == 2 and "no such recipe file" in error_line(refused.stderr)


def test_help_and_refusals_load_nothing_heavy() -> None:
    code = (
        "import sys; from zipvl_compile.cli import app\n"
        "for arguments in (['plan', '--help'], ['plan', 'digits', '--gpu', 'x'], ['plan', 'digits', '--ratio', '2']):\n"
        "    try: app(arguments)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
