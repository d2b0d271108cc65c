"""A bundle's programs moved to a GPU that is not there: fake CUDA tensors refuse to meet a CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zipvl_plugins import dense
from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GRAPHS, GraphName, GraphSpec, graph_spec
from zipvl_serving.sessions.exported_program import Program, load_program
from zipvl_serving.sessions.mapped_weights import load_weights

SIZES = {"tokens": 9, "visual": 4, "probes": 3, "images": 2, "batch": 3, "pages": 11, "blocks": 2}


@pytest.fixture(scope="module", params=[*GRAPHS, "dense prefill"])
def program(request: pytest.FixtureRequest, torch_bundle: Path) -> tuple[Program, list[torch.Tensor]]:
    """A program and inputs of its shapes, on the CPU."""
    bundle, graph = Bundle.open(torch_bundle), request.param.removeprefix("dense ")
    spec = _spec(bundle, graph)
    weights = load_weights(bundle.path / "weights.safetensors", torch.device("cpu"))
    found = load_program(bundle.graph_path(graph), spec, weights, torch.device("cpu"))
    inputs = [
        torch.ones([SIZES[size] if isinstance(size, str) else size for size in given.shape]).to(
            getattr(torch, given.dtype)
        )
        for given in spec.inputs
    ]
    return found if graph == request.param else found.with_bodies(dense.BODIES), inputs


def _spec(bundle: Bundle, graph: GraphName) -> GraphSpec:
    manifest = bundle.manifest
    return graph_spec(graph, manifest.model.shape, manifest.limits.page_size, manifest.model.dtype)


def test_a_program_on_a_gpu_makes_no_tensor_on_the_cpu(program: tuple[Program, list[torch.Tensor]]) -> None:
    """And waits for none: a fake tensor has no value to bring to the host."""
    there, gpu = program[0], torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [tensor.to(gpu) for tensor in program[1]]
        outputs = there.to(gpu)(*inputs)
        assert {output.device for output in outputs} == {gpu}


def test_a_program_left_on_the_cpu_does_meet_it(program: tuple[Program, list[torch.Tensor]]) -> None:
    """The test above can fail."""
    there, gpu = program[0], torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(Exception, match=r"device"):
        there(*(tensor.to(gpu) for tensor in program[1]))
