"""Where a server is found, and what is said where there is none that can serve."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from helpers.bundles import refusal

from zipvl_serving.errors import ZipvlError
from zipvl_serving.triton.installation import compose_wheel, find_installation

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The files of an installed nvidia-pytriton, as far as they matter."""
    server = tmp_path / "site-packages" / "pytriton" / "tritonserver"
    for name in (
        "bin/tritonserver", "backends/python/libtriton_python.so", "backends/python/triton_python_backend_utils.py",
        f"python_backend_stubs/{VERSION}/triton_python_backend_stub",
        "python_backend_stubs/2.7/triton_python_backend_stub",
    ):  # fmt: skip
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (server / name).write_text(name)
    return server.parent


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def nothing_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_the_wheels_backend_gets_the_stub_of_this_python(
    wheel: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    found = compose_wheel(wheel, scratch)
    assert found.binary == wheel / "tritonserver" / "bin" / "tritonserver"
    assert found.backends == scratch / "backends"
    backend = scratch / "backends" / "python"
    assert {file.name: file.read_text() for file in backend.iterdir()} == {
        "libtriton_python.so": "backends/python/libtriton_python.so",
        "triton_python_backend_utils.py": "backends/python/triton_python_backend_utils.py",
        "triton_python_backend_stub": f"python_backend_stubs/{VERSION}/triton_python_backend_stub",
    }
    assert all(file.is_symlink() for file in backend.iterdir())
    assert found.environment["LD_LIBRARY_PATH"].split(os.pathsep) == [
        str(wheel.parent / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR"), "/before",
    ]  # fmt: skip
    first = Path(found.environment["PATH"].split(os.pathsep)[0])
    assert first == Path(sys.executable).parent


def test_a_server_on_path_is_taken_as_it_is(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "tritonserver"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_installation(scratch)
    assert (found.binary, found.backends, found.environment) == (binary, None, {})


@pytest.mark.usefixtures("nothing_on_path")
def test_the_wheel_is_found(wheel: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("pytriton", None, origin=str(wheel / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: {"pytriton": spec}[name])
    assert find_installation(scratch).binary == wheel / "tritonserver" / "bin" / "tritonserver"


@pytest.mark.usefixtures("nothing_on_path")
def test_no_server_names_what_to_install(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refusal(ZipvlError, "not on PATH", "pip install nvidia-pytriton"):
        find_installation(scratch)


@pytest.mark.parametrize("version", ["2.0.0", "2.4.6", "10.0"])
def test_numpy_2_is_refused(version: str, wheel: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"numpy": version}[name])
    with refusal(ZipvlError, f"numpy {version}", "zeros", "pip install 'numpy<2'"):
        compose_wheel(wheel, scratch)


def test_another_python_is_refused(wheel: Path, scratch: Path) -> None:
    stubs = wheel / "tritonserver" / "python_backend_stubs"
    (stubs / VERSION).rename(stubs / "3.100")
    with refusal(ZipvlError, f"no Python backend for Python {VERSION}; it has: 2.7, 3.100"):
        compose_wheel(wheel, scratch)


def test_a_wheel_without_a_server_is_refused(wheel: Path, scratch: Path) -> None:
    (wheel / "tritonserver" / "bin" / "tritonserver").unlink()
    with refusal(ZipvlError, "has no server in it"):
        compose_wheel(wheel, scratch)


def test_an_interpreter_without_python3_is_refused(
    wheel: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.11"))
    with refusal(ZipvlError, f"{tmp_path} has no python3"):
        compose_wheel(wheel, scratch)
