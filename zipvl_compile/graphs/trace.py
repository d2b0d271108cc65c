"""A module to a torch program that meets the contract; no weight is ever materialised here.

Modules are built under FakeTensorMode, so tracing a 13B decoder costs no memory: parameters come out as names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

from zipvl_serving.contract import GraphSpec

_EXAMPLE_SIZES = {"tokens": 23, "visual": 11, "probes": 7, "images": 3, "batch": 5, "pages": 13, "blocks": 6}
"""Sizes to trace with: all different and none 0 or 1, so that no two dimensions are taken for one."""


def trace(build: Callable[[], torch.nn.Module], spec: GraphSpec) -> ExportedProgram:
    """The module that `build` makes as a program for every size that `spec` leaves open; its weights are fakes."""
    dims: dict[str, Dim] = {}
    examples, dynamic = [], []
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = build().eval().requires_grad_(False)
        for tensor in spec.inputs:
            sizes = [_EXAMPLE_SIZES[d] if isinstance(d, str) else d for d in tensor.shape]
            examples.append(torch.zeros(sizes, dtype=getattr(torch, tensor.dtype)))
            for name in tensor.shape:
                if isinstance(name, str):
                    dims.setdefault(name, Dim(name, min=1))
            dynamic.append({axis: dims[d] for axis, d in enumerate(tensor.shape) if isinstance(d, str)})
    return torch.export.export(module, tuple(examples), dynamic_shapes=tuple(dynamic))
