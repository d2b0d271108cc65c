"""What TensorRT-RTX says of an engine's layers while it builds one: without its GPU, no engine can be inspected."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+)(?P<rest>.*)$")
_RESULT = re.compile(r"Outputs: \[ \{.*?Datatype: (?P<dtype>\w+)")
_KERNELS = ("gemm", "kgen", "convolution", "correlation", "copy", "memset")
_FUSED_ATTENTION = "_gemm_mha"


def layer_report(text: str) -> dict[str, Any]:
    """Counts from the builder's own listing, a layer a line (`Name: ..., LayerType: ..., Outputs: [...]`).

    - kernels: launches on the device by kind; `gemm` is a library product, `kgen` a generated (fused) kernel;
    - fused_attention: how many of those are whole attentions, scores never written;
    - precision: data types that gemm and kgen kernels write;
    - host_copies: times that the device is waited for, because a shape or a branch depends on its data.
    """
    layers = [found for line in text.splitlines() if (found := _LAYER.match(line))]
    kinds = Counter(layer["kind"] for layer in layers)
    results = (_RESULT.search(layer["rest"]) for layer in layers if layer["kind"] in ("gemm", "kgen"))
    return {
        "layers": len(layers),
        "kernels": {kind: kinds[kind] for kind in _KERNELS if kinds[kind]},
        "fused_attention": sum(layer["name"].startswith(_FUSED_ATTENTION) for layer in layers),
        "precision": dict(Counter(result["dtype"] for result in results if result).most_common()),
        "host_copies": kinds["DeviceToShapeHost"] + sum("copy_d2h" in layer["name"] for layer in layers),
    }
