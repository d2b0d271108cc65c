"""zipvl_serving works on a machine that has none of the compile-time packages."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "onnx", "zipvl_compile"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Block())

def fail(name):
    raise

import zipvl_serving
for module in pkgutil.walk_packages(zipvl_serving.__path__, "zipvl_serving.", onerror=fail):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_every_module_imports_without_compile_time_packages() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"zipvl_serving.images", "zipvl_serving.prompt", "zipvl_serving.sampling"} <= set(done.stdout.split())
