"""sparse_attention as a TensorRT plugin."""

from __future__ import annotations

from zipvl_plugins.sparse_attention.kernel import OUTPUTS, STAGES
from zipvl_plugins.tensorrt_plugins import Face

FACE = Face(STAGES, OUTPUTS, attributes={"scale": float})
