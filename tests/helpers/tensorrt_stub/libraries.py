"""`import tensorrt` on a machine that has only its bindings."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.tensorrt_stub.fakes import DimsExprs, Expression, Registry, SymExpr

SYMBOLS = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvonnxparser.so.11": (
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
}
"""What the bindings ask of TensorRT's libraries when they are loaded."""


def install() -> None:
    """Make `import tensorrt` give the bindings, with fakes where they would call into TensorRT."""
    with tempfile.TemporaryDirectory() as folder:
        for library, symbols in SYMBOLS.items():
            source, binary = Path(folder) / f"{library}.c", Path(folder) / library
            source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
            options = ("-shared", "-fPIC", f"-Wl,-soname,{library}")
            subprocess.run(["cc", *options, "-o", str(binary), str(source)], check=True)
            ctypes.CDLL(str(binary), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_bindings

    registry = Registry()
    tensorrt_bindings.get_plugin_registry = lambda: registry
    tensorrt_bindings.IDimensionExpr = Expression
    tensorrt_bindings.DimsExprs = DimsExprs
    tensorrt_bindings.ISymExpr = SymExpr
    sys.modules["tensorrt"] = tensorrt_bindings
