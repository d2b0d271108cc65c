"""select_tokens as a TensorRT plugin; its kernel reads `forced` whatever its type."""

from __future__ import annotations

from zipvl_plugins.gpu.tensorrt_plugins import Face
from zipvl_plugins.select_tokens.kernel import OUTPUTS, STAGES

FACE = Face(STAGES, OUTPUTS, as_int32=("forced",))
