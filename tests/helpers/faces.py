"""Run one op through each of its faces on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
import torch

from zipvl_plugins import ops
from zipvl_plugins.onnx_text import DOMAIN, OPSET

ONNX_TYPE = {torch.float32: 1, torch.int32: 6, torch.int64: 7, torch.bool: 9, torch.float16: 10}


def run_onnx(
    op: str, inputs: list[torch.Tensor | None], attributes: Mapping[str, float | int], executor: ops.Executor
) -> list[torch.Tensor]:
    """Execute the op's ONNX function in ONNX Runtime as one node of a graph."""
    function = ops.onnx_function(op, executor)
    names = [f"in{i}" if value is not None else "" for i, value in enumerate(inputs)]
    outputs = [f"out{i}" for i in range(len(function.output))]
    node = onnx.helper.make_node(op, names, outputs, domain=DOMAIN, **attributes)
    given = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    graph = onnx.helper.make_graph(
        [node],
        op,
        [onnx.helper.make_tensor_value_info(name, ONNX_TYPE[v.dtype], [None] * v.ndim) for name, v in given.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    imports = {(i.domain, i.version) for i in function.opset_import} | {(DOMAIN, 1), ("", OPSET)}
    model = onnx.helper.make_model(
        graph,
        functions=[function],
        ir_version=10,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in sorted(imports)],
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, {name: np.ascontiguousarray(value.numpy()) for name, value in given.items()})
    return [torch.from_numpy(result) for result in results]


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference|| in double precision."""
    out, reference = out.double(), reference.double()
    return float((out - reference).norm() / reference.norm().clamp(min=1e-30))
