"""select_tokens as a TensorRT plugin; its kernel reads `forced` whatever its type."""

from __future__ import annotations

from zipvl_plugins.select_tokens.kernel import OUTPUTS, STAGES
from zipvl_plugins.tensorrt_plugins import Face

FACE = Face(STAGES, OUTPUTS, as_int32=("forced",))
