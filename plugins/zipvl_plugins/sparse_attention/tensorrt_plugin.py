"""sparse_attention as a TensorRT plugin."""

from __future__ import annotations

from zipvl_plugins.gpu.tensorrt_plugins import Face
from zipvl_plugins.sparse_attention.kernel import OUTPUTS, STAGES

FACE = Face(STAGES, OUTPUTS, attributes={"scale": float})
