"""zipvl_serving works on a machine that has none of the compile-time packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.bundles import QUESTION, random_image

from zipvl_serving.bundle import Bundle
from zipvl_serving.generator import Generator
from zipvl_serving.output.sampling import SamplingParams

BLOCK = """
import importlib, pkgutil, sys

BLOCKED = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "zipvl_compile"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Block())
"""

IMPORT = """
def fail(name):
    raise

import zipvl_serving
TORCHLESS_SESSIONS = {"zipvl_serving.sessions.base", "zipvl_serving.sessions.onnxruntime"}
on_torch = set()
for module in pkgutil.walk_packages(zipvl_serving.__path__, "zipvl_serving.", onerror=fail):
    if module.name.startswith("zipvl_serving.sessions.") and module.name not in TORCHLESS_SESSIONS:
        on_torch.add(module.name)
    elif not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
assert not on_torch & set(sys.modules), on_torch & set(sys.modules)  # they are loaded by name, by nobody else
"""

GENERATE = """
from zipvl_serving.bundle import Bundle
from zipvl_serving.generator import Generator
from zipvl_serving.vision.images import load_image
from zipvl_serving.output.sampling import SamplingParams

bundle, image, question = sys.argv[1:]
generator = Generator(Bundle.open(bundle))
prompt = generator.prepare(question, [load_image(image)])
answer = generator.answer(prompt, SamplingParams(max_new_tokens=8))
print(*answer.token_ids)
print(*answer.prompt.counts)
assert not BLOCKED & set(sys.modules), BLOCKED & set(sys.modules)
"""


def run(program: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-c", BLOCK + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_without_compile_time_packages() -> None:
    modules = run(IMPORT).split()
    assert {"zipvl_serving.generator", "zipvl_serving.sessions.onnxruntime", "zipvl_serving.prompts.prompt"} <= set(
        modules
    )


def test_a_bundle_answers_without_compile_time_packages(tiny_bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    random_image(0).save(image)
    generator = Generator(Bundle.open(tiny_bundle))
    expected = generator.answer(generator.prepare(QUESTION, [random_image(0)]), SamplingParams(max_new_tokens=8))
    token_ids, counts = run(GENERATE, tiny_bundle, image, QUESTION).splitlines()
    assert token_ids.split() == [str(token) for token in expected.token_ids]
    assert counts.split() == [str(count) for count in expected.prompt.counts]
