"""The engine runtimes that bundles name: what each needs and which class opens it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backend:
    """One engine runtime."""

    module: str
    session: str
    """The class in `module`, loaded by name: a serving machine has one runtime, not all."""
    distribution: str
    """The Python distribution whose version a serving machine must match."""
    install: str
    exact: bool = False
    """Engines load in the very version that built them and in no other."""


BACKENDS = {
    "onnxruntime": Backend(
        "zipvl_serving.sessions.onnxruntime", "OnnxRuntimeSession", "onnxruntime", "pip install onnxruntime"
    ),
    "torch": Backend("zipvl_serving.sessions.torch", "TorchSession", "torch", "pip install torch"),
    "tensorrt": Backend(
        "zipvl_serving.sessions.tensorrt",
        "TensorRTSession",
        "tensorrt",
        "pip install -e '.[tensorrt]' in the checkout",
        True,
    ),
    "tensorrt_rtx": Backend(
        "zipvl_serving.sessions.tensorrt",
        "TensorRTRTXSession",
        "tensorrt-rtx-cu13",
        "pip install -e '.[tensorrt-rtx]' in the checkout",
        True,
    ),
}
"""A backend joins by a line here, a session in sessions/ and a builder in zipvl_compile/engines/."""
