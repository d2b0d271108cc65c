"""gather_projection as a TensorRT plugin."""

from __future__ import annotations

from zipvl_plugins.gather_projection.kernel import OUTPUTS, STAGES
from zipvl_plugins.gpu.tensorrt_plugins import Face

FACE = Face(STAGES, OUTPUTS, zeros={"bias": "weight"})
