"""paged_attention as two TensorRT plugins."""

from __future__ import annotations

from zipvl_plugins.gpu.tensorrt_plugins import Face
from zipvl_plugins.paged_attention.kernel import OUTPUTS, STAGES

FACE = Face(STAGES, OUTPUTS, attributes={"scale": float})
