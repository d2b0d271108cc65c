"""probe_scores as three TensorRT plugins."""

from __future__ import annotations

from zipvl_plugins.probe_scores.kernel import OUTPUTS, STAGES
from zipvl_plugins.tensorrt_plugins import Face

FACE = Face(STAGES, OUTPUTS, attributes={"scale": float})
