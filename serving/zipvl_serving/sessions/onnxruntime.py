"""ONNX Runtime on CPU: the graphs as exported, weights mapped from the bundle and shared by all of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

# Read when the library is loaded; without it a database of events appears in the user's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GraphName, graph_spec
from zipvl_serving.errors import ZipvlError
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs, Session

_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "bool": "tensor(bool)",
}


def _open_graph(file: Path, threads: int | None, *, spinning: bool) -> ort.InferenceSession:
    """Open one graph on CPU with its weights mapped; ZipvlError, one line, where ONNX Runtime refuses it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    # Prepacking copies every weight per session; without it prefill and decode read one mapped file.
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own bare types
        raise ZipvlError(f"{file}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None


class OnnxRuntimeSession(Session):
    """Three inference sessions of one bundle."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, spinning: bool = True) -> None:
        super().__init__(bundle)
        self._graphs = {graph: self._load(graph, threads, spinning=spinning) for graph in bundle.manifest.engine.graphs}
        self._no_image = np.zeros((1, bundle.manifest.model.shape.hidden), dtype=bundle.manifest.model.dtype)

    def _load(self, graph: GraphName, threads: int | None, *, spinning: bool) -> ort.InferenceSession:
        session = _open_graph(self.bundle.graph_path(graph), threads, spinning=spinning)
        self._check(graph, session)
        return session

    def _check(self, graph: GraphName, session: ort.InferenceSession) -> None:
        manifest = self.bundle.manifest
        spec = graph_spec(graph, manifest.model.shape, manifest.limits.page_size, manifest.model.dtype)
        wanted = [(t.name, _TYPES[t.dtype], list(t.shape)) for t in (*spec.inputs, *spec.outputs)]
        found = [(t.name, t.type, list(t.shape)) for t in (*session.get_inputs(), *session.get_outputs())]
        for want, have in zip(wanted, found, strict=False):
            if want != have:
                raise ZipvlError(f"{self.bundle.graph_path(graph)}: breaks the contract: has {have}, expected {want}")
        if len(wanted) != len(found):
            raise ZipvlError(f"{self.bundle.graph_path(graph)}: breaks the contract: {len(found)} tensors")

    def vision(self, pixel_values: Array) -> Array:
        (features,) = self._graphs["vision"].run(None, {"pixel_values": pixel_values})
        flat: Array = features.reshape(-1, features.shape[-1])
        return flat

    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        scalars = {
            name: np.array([getattr(inputs, name)], dtype=np.float32) for name in ("tau", "ratio_min", "ratio_max")
        }
        arrays = {name: getattr(inputs, name) for name in ("input_ids", "position_ids", "probe_positions", "forced")}
        features = self._no_image if image_features is None else image_features
        logits, counts, *kept = self._graphs["prefill"].run(None, {**arrays, **scalars, "image_features": features})
        index = [tokens[:count] for tokens, count in zip(kept[0::3], counts, strict=True)]
        return PrefillOutputs(logits, counts, index, list(zip(kept[1::3], kept[2::3], strict=True)))

    def decode(self, inputs: DecodeInputs) -> tuple[Array, Array, Array]:
        logits, new_keys, new_values = self._graphs["decode"].run(None, vars(inputs))
        return logits, new_keys, new_values
