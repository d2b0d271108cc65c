"""Traced programs as files of torch.export that hold no weights; zipvl_serving.sessions.exported_program reads them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from zipvl_compile.graphs.trace import trace
from zipvl_serving.contract import GraphSpec
from zipvl_serving.errors import ZipvlError
from zipvl_serving.sessions.exported_program import NAMES_FILE


def export_program(build: Callable[[], torch.nn.Module], spec: GraphSpec) -> ExportedProgram:
    """Trace the module that `build` makes; its weights are fakes, its outputs as many as `spec` names."""
    program = trace(build, spec)
    assert len(program.graph_signature.user_outputs) == len(spec.outputs), program.graph_signature.user_outputs
    _fill_computed(program)
    _forget_the_trace(program)
    return program


def used_weights(program: ExportedProgram) -> list[str]:
    """Parameters and buffers that the program reads and a checkpoint holds, by their names in the module."""
    users = {node.name: len(node.users) for node in program.graph.nodes if node.op == "placeholder"}
    return [str(held.target) for held in _stored(program) if users[held.arg.name]]


def save_program(program: ExportedProgram, stored_name: Callable[[str], str], file: Path) -> None:
    """Write the program without its weights, and beside it which tensor of the weights file is which."""
    for name, weight in program.state_dict.items():
        # One element, stretched: the file keeps shapes and dtypes, which torch.export.load checks, and no data.
        stretched = torch.zeros(1, dtype=weight.dtype).expand(weight.shape)
        program.state_dict[name] = torch.nn.Parameter(stretched, requires_grad=False)
    program.example_inputs = None
    names = {name: stored_name(name) for name in used_weights(program)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # said of the stretched ones
        torch.export.save(program, file, extra_files={NAMES_FILE: json.dumps(names)})


def _stored(program: ExportedProgram) -> list[InputSpec]:
    return [
        held
        for held in program.graph_signature.input_specs
        if held.kind is InputKind.PARAMETER or (held.kind is InputKind.BUFFER and held.persistent)
    ]


def _fill_computed(program: ExportedProgram) -> None:
    """Give position-id buffers their data; they are counted, not learnt, and no checkpoint needs to hold them."""
    for name, value in program.constants.items():
        if not isinstance(value, FakeTensor):
            continue
        if not name.endswith(".position_ids"):
            raise ZipvlError(f"the buffer {name} is computed when the model is made; a traced program cannot hold it")
        program.constants[name] = torch.arange(value.shape[-1]).expand(value.shape).contiguous()


def _forget_the_trace(program: ExportedProgram) -> None:
    """Drop where a program was traced: checks that every tensor is on that device, and paths of source files."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
        else:
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    program.graph_module.recompile()
