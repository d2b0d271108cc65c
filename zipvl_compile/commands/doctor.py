"""zipvl-compile doctor"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import Any

from zipvl_compile.commands import options

_EXTRAS = {
    "serve": ("fastapi", "uvicorn", "prometheus-client"),
    "serve-triton": ("tritonclient", "nvidia-pytriton"),
    "bench": ("httpx",),
    "tensorrt": ("tensorrt", "triton"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13",),
    "gpu": ("triton", "flash-attn"),
    "eval": ("lmms-eval",),
}


def doctor(as_json: options.Json = False) -> None:
    """Say which backends are usable here, what is installed and what to install."""
    report = examine()
    if as_json:
        options.print_json(report)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    machine = report["machine"]
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; GPU: {machine['gpu']}; "
        f"cache: {report['cache']}",
        highlight=False,
    )
    for title, rows in (("backend", report["backends"]), ("extra", report["extras"])):
        table = Table(Column(title, no_wrap=True), Column("usable", no_wrap=True), Column("detail", overflow="fold"))
        for name, state in rows.items():
            table.add_row(name, "yes" if state["usable"] else "no", escape(state["detail"]))
        console.print(table)
    console.print(", ".join(f"{tool} {version}" for tool, version in report["tools"].items()), highlight=False)


def examine() -> dict[str, Any]:
    """Everything `doctor` prints, as JSON."""
    from zipvl_compile.bundling import cache as build_cache
    from zipvl_compile.engines.base import availabilities

    return {
        "machine": {
            "processor": build_cache.processor_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": platform.platform(),
            "gpu": "nvidia-smi found" if shutil.which("nvidia-smi") else "none found",
        },
        "cache": str(build_cache.cache_directory()),
        "backends": {
            name: {"usable": state.usable, "detail": state.detail} for name, state in availabilities().items()
        },
        "extras": {extra: _extra(extra, needs) for extra, needs in _EXTRAS.items()},
        "tools": build_cache.tool_versions(),
    }


def _extra(extra: str, needs: tuple[str, ...]) -> dict[str, Any]:
    versions, missing = [], []
    for name in needs:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return {"usable": False, "detail": f"missing {', '.join(missing)}: pip install -e '.[{extra}]' in the checkout"}
    return {"usable": True, "detail": ", ".join(versions)}
