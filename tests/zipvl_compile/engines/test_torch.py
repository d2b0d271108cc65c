"""The torch builder: programs without weights, for whatever device runs them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.bundles import build_recipe, refusal

from zipvl_compile.engines.base import availabilities
from zipvl_compile.engines.torch import TorchBuilder
from zipvl_compile.graphs.program import export_program
from zipvl_compile.recipe.schema import Target
from zipvl_compile.weights_file import read_header
from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GRAPHS, GraphSpec, TensorSpec
from zipvl_serving.errors import InputError, ZipvlError


@pytest.fixture(scope="module")
def bundle(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("torch") / "bundle"
    return Bundle.open(build_recipe(tiny_recipe, out, "target.backend=torch", "model.dtype=float32").bundle)


def _records(program: Path) -> dict[str, bytes]:
    """The files inside a program's file, without its name in front."""
    with zipfile.ZipFile(program) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def test_the_manifest_names_no_gpu(bundle: Bundle) -> None:
    engine = bundle.manifest.engine
    assert engine.backend == "torch" and engine.gpu is None
    assert engine.backend_version == torch.__version__
    assert engine.graphs == {graph: f"{graph}.pt2" for graph in GRAPHS}
    assert engine.weights == "weights.safetensors"
    assert bundle.manifest.break_even.ratios  # measured: its engines run where they were built


def test_programs_hold_no_weight(bundle: Bundle) -> None:
    for graph in GRAPHS:
        records = _records(bundle.graph_path(graph))
        weights = {name: data for name, data in records.items() if re.search(r"weights/weight_\d+$", name)}
        assert weights and all(len(data) == 4 for data in weights.values())


def test_the_weights_file_has_what_programs_read_and_no_more(bundle: Bundle) -> None:
    named = [json.loads(_records(bundle.graph_path(graph))["extra/weights.json"]) for graph in GRAPHS]
    read = {stored for names in named for stored in names.values()}
    assert set(read_header(bundle.path / "weights.safetensors")) == read
    prefill, decode = named[1:]
    assert prefill == decode and "model.language_model.layers.1.mlp.up_proj.weight" in prefill.values()


def test_programs_do_not_say_where_they_were_made(bundle: Bundle) -> None:
    for graph in GRAPHS:
        for name, data in _records(bundle.graph_path(graph)).items():
            assert b"site-packages" not in data and b"zipvl_compile" not in data, name


def test_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TorchBuilder.gpu(Target(backend="torch")) is None
    with refusal(InputError, "target.gpu", "no CUDA device here", "null"):
        TorchBuilder.gpu(Target(backend="torch", gpu="cuda"))
    with refusal(InputError, "target.gpu: 'a100'", "valid: null", "cuda"):
        TorchBuilder.check_gpu("a100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert TorchBuilder.gpu(Target(backend="torch", gpu="cuda")) is None


def test_the_dtype_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, first in ((False, "float32"), (True, "float16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert TorchBuilder.default_dtype() == first
        assert sorted(TorchBuilder.dtypes) == ["bfloat16", "float16", "float32"]


def test_doctor_knows_it() -> None:
    state = availabilities()["torch"]
    assert state.usable and state.detail == torch.__version__


class _Computes(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table


def test_a_buffer_that_no_checkpoint_holds_is_refused() -> None:
    spec = GraphSpec((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))
    with refusal(ZipvlError, "buffer table", "cannot hold it"):
        export_program(_Computes, spec)
