"""Where Triton Inference Server is on this machine, and what it needs to run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zipvl_serving.errors import ZipvlError

_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A server that can be started.

    backends: the directory for --backend-directory; None where the server finds its own.
    environment: variables on top of this process's.
    """

    binary: Path
    backends: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def find_installation(scratch: Path) -> Installation:
    """The `tritonserver` on PATH, as in NVIDIA's images, else the one of the nvidia-pytriton wheel.

    `scratch`: an empty directory in which the wheel's backends are put together; it must outlive the server. Raises
    ZipvlError, one line, where there is no server or it cannot serve from this Python.
    """
    if on_path := shutil.which("tritonserver"):
        return Installation(Path(on_path))
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ZipvlError(
            "no Triton Inference Server here: `tritonserver` is not on PATH and nvidia-pytriton is not installed; "
            "install it: pip install nvidia-pytriton"
        )
    return compose_wheel(Path(spec.origin).parent, scratch)


def compose_wheel(package: Path, scratch: Path) -> Installation:
    """A server from the wheel's files: its Python backend with the stub of the running Python.

    `package` is the folder of the pytriton module. Raises as `find_installation`.
    """
    numpy = importlib.metadata.version("numpy")
    if int(numpy.partition(".")[0]) >= 2:
        raise ZipvlError(
            f"nvidia-pytriton's Python backend reads the tensors of numpy {numpy} as zeros without saying so; "
            "install numpy below 2: pip install 'numpy<2'"
        )
    server = package / "tritonserver"
    binary = server / "bin" / "tritonserver"
    stubs = server / "python_backend_stubs"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not binary.is_file():
        raise ZipvlError(f"{package}: this nvidia-pytriton has no server in it; reinstall it")
    if not (stubs / version / _STUB).is_file():
        offered = ", ".join(sorted((entry.name for entry in stubs.glob("*")), key=_numbers)) or "none"
        raise ZipvlError(f"nvidia-pytriton has no Python backend for Python {version}; it has: {offered}")
    interpreter = Path(sys.executable)
    if not (interpreter.parent / "python3").exists():
        raise ZipvlError(f"{interpreter.parent} has no python3: Triton's Python finds its packages through that name")
    backend = scratch / "backends" / "python"
    backend.mkdir(parents=True)
    # Links, not copies: the libraries find their own dependencies relative to where they really are.
    for file in (*(server / "backends" / "python").iterdir(), stubs / version / _STUB):
        (backend / file.name).symlink_to(file)
    libraries = (package.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    return Installation(
        binary,
        backend.parent,
        {
            "LD_LIBRARY_PATH": _prepend("LD_LIBRARY_PATH", *map(str, libraries)),
            # The stub takes its site-packages from the first python3 on PATH.
            "PATH": _prepend("PATH", str(interpreter.parent)),
        },
    )


def _prepend(variable: str, *entries: str) -> str:
    return os.pathsep.join([*entries, *filter(None, [os.environ.get(variable)])])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
