"""A torch.export program of a bundle, bound to the shared weights on one device."""

from __future__ import annotations

import copy
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.node import map_aggregate

from zipvl_plugins import ops
from zipvl_plugins.trim import trim
from zipvl_serving.contract import GraphSpec
from zipvl_serving.errors import ZipvlError

NAMES_FILE = "weights.json"
"""Inside the program's file: {parameter of the program: tensor of the weights file}."""


class Program:
    """A graph as a function of its inputs alone."""

    def __init__(self, graph: fx.Graph, held: list[torch.Tensor | None]) -> None:
        """`held`: weights and constants in the order of the graph's first placeholders; None for one it never reads."""
        self.held = held
        self._graph = graph
        self._module = fx.GraphModule(torch.nn.Module(), graph)

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = self._module(*self.held, *inputs)
        return outputs

    def with_bodies(self, bodies: Mapping[str, Callable[..., Any]]) -> Program:
        """The program with ops of zipvl computed by other functions, and what nobody reads any more left out.

        A function takes those of its op's arguments that it names.
        """
        graph = copy.deepcopy(self._graph)
        for op, body in bodies.items():
            overload = getattr(torch.ops.zipvl, op).default
            names = [argument.name for argument in overload._schema.arguments]
            for node in graph.find_nodes(op="call_function", target=overload):
                given = dict(zip(names, node.args, strict=False)) | node.kwargs
                node.target, node.kwargs = body, {}
                node.args = tuple(given[name] for name in inspect.signature(body).parameters)
        graph.eliminate_dead_code()
        return Program(graph, self.held)

    def trimming(self) -> Program:
        """The prefill program with every layer's K and V cut to T as soon as they are made; see zipvl_plugins.trim."""
        graph = copy.deepcopy(self._graph)
        (output,) = graph.find_nodes(op="output")
        logits, counts, *kept = output.args[0]
        trimmed = list(kept)
        for layer, count in enumerate(counts.args[0]):
            for at in (3 * layer + 1, 3 * layer + 2):
                last = max(kept[at], count)
                with graph.inserting_after(last):
                    trimmed[at] = graph.call_function(trim, (kept[at], count))
        output.args = ((logits, counts, *trimmed),)
        return Program(graph, self.held)

    def to(self, device: torch.device) -> Program:
        """The program on a device: it was traced on a CPU, and nodes that make tensors say so."""

        def moved(argument: Any) -> Any:
            return device if isinstance(argument, torch.device) else argument

        graph = copy.deepcopy(self._graph)
        for node in graph.nodes:
            node.args, node.kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)
        return Program(graph, [None if tensor is None else tensor.to(device) for tensor in self.held])


def load_program(file: Path, spec: GraphSpec, weights: Mapping[str, torch.Tensor], device: torch.device) -> Program:
    """Bind the program in `file` to `weights`, which lie on `device` already; ZipvlError where it does not fit."""
    for op in ops.OPS:
        ops.reference(op)  # what the file calls must be registered
    extra = {NAMES_FILE: ""}
    log = logging.getLogger("torch.export")  # of a damaged file it prints a traceback beside the error
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        program = torch.export.load(file, extra_files=extra)
        names: dict[str, str] = json.loads(extra[NAMES_FILE])
        held = [_held(program, given.target, given.kind, names, weights) for given in _bound(program)]
    except Exception as error:  # torch raises whatever it met
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ZipvlError(f"{file}: torch cannot load it: {line}; rebuild the bundle") from None
    finally:
        log.setLevel(level)
    _check(file, program, spec)
    for node in program.graph.nodes:
        node.meta.clear()  # what tracing knew of shapes
    return Program(program.graph, held).to(device)


def _bound(program: ExportedProgram) -> list[Any]:
    """The program's inputs that are no inputs of a call."""
    return [given for given in program.graph_signature.input_specs if given.kind is not InputKind.USER_INPUT]


def _held(
    program: ExportedProgram,
    name: str,
    kind: InputKind,
    names: Mapping[str, str],
    weights: Mapping[str, torch.Tensor],
) -> torch.Tensor | None:
    if name in program.constants:
        constant: torch.Tensor = program.constants[name]
        return constant
    if name not in names:
        return None
    weight, traced = weights[names[name]], program.state_dict[name]
    found, wanted = ((held.dtype, tuple(held.shape)) for held in (weight, traced))
    if found != wanted:
        raise ValueError(f"{names[name]} is {found}, the program takes {wanted}")
    return weight


def _check(file: Path, program: ExportedProgram, spec: GraphSpec) -> None:
    called = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in called]
    found = [(node.name, str(node.meta["val"].dtype).removeprefix("torch."), node.meta["val"].shape) for node in nodes]
    for want, (name, dtype, shape) in zip(spec.inputs, found, strict=False):
        fixed = [have if isinstance(have, int) else size for have, size in zip(shape, want.shape, strict=False)]
        if (want.name, want.dtype, list(want.shape)) != (name, dtype, fixed) or len(shape) != len(want.shape):
            raise ZipvlError(f"{file}: breaks the contract: has {name} {dtype} {fixed}, expected {want}")
    counts = len(found), len(program.graph_signature.user_outputs)
    if counts != (len(spec.inputs), len(spec.outputs)):
        raise ZipvlError(f"{file}: breaks the contract: {counts[0]} inputs and {counts[1]} outputs")
