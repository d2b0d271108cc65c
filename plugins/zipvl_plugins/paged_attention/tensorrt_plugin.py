"""paged_attention as two TensorRT plugins."""

from __future__ import annotations

from zipvl_plugins.paged_attention.kernel import OUTPUTS, STAGES
from zipvl_plugins.tensorrt_plugins import Face

FACE = Face(STAGES, OUTPUTS, attributes={"scale": float})
