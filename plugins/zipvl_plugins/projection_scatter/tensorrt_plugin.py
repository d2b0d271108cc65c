"""projection_scatter as a TensorRT plugin."""

from __future__ import annotations

from zipvl_plugins.projection_scatter.kernel import OUTPUTS, STAGES
from zipvl_plugins.tensorrt_plugins import Face

FACE = Face(STAGES, OUTPUTS, zeros={"bias": "weight"})
