"""projection_scatter as a TensorRT plugin."""

from __future__ import annotations

from zipvl_plugins.gpu.tensorrt_plugins import Face
from zipvl_plugins.projection_scatter.kernel import OUTPUTS, STAGES

FACE = Face(STAGES, OUTPUTS, zeros={"bias": "weight"})
