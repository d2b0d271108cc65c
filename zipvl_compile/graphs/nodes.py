"""How torch.onnx writes the method's ops: as one node each, in domain `zipvl`, kept whole.

torch.onnx would inline a function given to it, so the nodes are written bare and their functions added afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from zipvl_plugins import ops
from zipvl_plugins.onnx_text import DOMAIN, PLUGIN_ATTRIBUTES

_ATTRIBUTE_TYPES = {float: OpSchema.AttrType.FLOAT, int: OpSchema.AttrType.INT, str: OpSchema.AttrType.STRING}
_TENSOR_TYPES = [
    "tensor(float)",
    "tensor(float16)",
    "tensor(bfloat16)",
    "tensor(int32)",
    "tensor(int64)",
    "tensor(bool)",
]


def translation_table() -> dict[Any, Callable[..., Any]]:
    """For torch.onnx.export(custom_translation_table=...): every op of the method to its node."""
    table = {}
    for op in ops.OPS:
        ops.reference(op)  # registers torch.ops.zipvl.<op>
        overload = getattr(torch.ops.zipvl, op).default
        table[overload] = _translator(op, overload._schema)
    return table


def _translator(op: str, schema: Any) -> Callable[..., Any]:
    tensors = [a.name for a in schema.arguments if "Tensor" in str(a.type)]
    scalars = [a.name for a in schema.arguments if a.name not in tensors]

    def translate(*arguments: Any, **named: Any) -> Any:
        given = dict(zip((a.name for a in schema.arguments), arguments, strict=False)) | named
        inputs = [given.get(name) for name in tensors]
        shapes = [() if value is None else value.shape for value in inputs]
        attributes = {name: given[name] for name in scalars} | ops.shape_attributes(op, *shapes) | PLUGIN_ATTRIBUTES
        node = Op(Opset(DOMAIN, 1), op, _onnx_schema(op, len(tensors), len(schema.returns), attributes))
        return node(*inputs, **attributes)

    return translate


def _onnx_schema(op: str, inputs: int, outputs: int, attributes: dict[str, Any]) -> OpSchema:
    """The least that onnxscript asks for: arity and attribute types; shapes and dtypes stay torch's."""
    optional = OpSchema.FormalParameterOption.Optional
    return OpSchema(
        op,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(f"in{i}", f"T{i}", param_option=optional) for i in range(inputs)],
        outputs=[OpSchema.FormalParameter(f"out{i}", f"U{i}") for i in range(outputs)],
        type_constraints=[
            *((f"T{i}", _TENSOR_TYPES, "") for i in range(inputs)),
            *((f"U{i}", _TENSOR_TYPES, "") for i in range(outputs)),
        ],
        attributes=[
            OpSchema.Attribute(name, _ATTRIBUTE_TYPES[type(v)], required=False) for name, v in attributes.items()
        ],
    )
