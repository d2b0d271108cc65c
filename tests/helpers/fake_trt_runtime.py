"""TensorRT's Python API as far as sessions use it: its engines are ONNX graphs, which ONNX Runtime computes on a CPU.

An engine reads inputs and writes outputs at the addresses that it was given, like the real one. TensorRT's have rows
for every token where T is meant, whatever lies there; TensorRT-RTX's ask an allocator for the rows of T.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

SCRATCH_BYTES = {"vision": 100, "prefill": 5000, "decode": 300}
_DTYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(bool)": ("BOOL", np.bool_),
}
_UNWRITTEN = 0xC1
"""Every byte of a row that no kernel wrote."""

Bounds = tuple[list[int], list[int]]


def write_engine(file: Path, onnx: Path, profiles: list[dict[str, Bounds]], host: tuple[str, ...] = ()) -> None:
    """An engine for the runtime below: profiles are (least, most) shapes by input; `host`: inputs read on the host."""
    file.write_text(json.dumps({"onnx": str(onnx), "profiles": profiles, "host": host}))


@dataclass(frozen=True)
class Call:
    """One execution, as the GPU would see it."""

    graph: str
    context: int
    profile: int
    shapes: dict[str, tuple[int, ...]]
    scratch: tuple[int, int]


class _Logger:
    ERROR, INTERNAL_ERROR = "error", "internal error"


class _OutputAllocator:
    pass


@dataclass
class FakeTrt:
    """A module `tensorrt`, or with `rows_of_t` a module `tensorrt_rtx`."""

    rows_of_t: bool = False
    calls: list[Call] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    full: bool = False
    """The GPU has no room for another context."""
    recording: list[Callable[[], None]] | None = None
    """What contexts execute while a CUDA graph would be captured."""

    ILogger, IOutputAllocator = _Logger, _OutputAllocator
    TensorLocation = SimpleNamespace(HOST="host", DEVICE="device")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="mine")

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        return SimpleNamespace(deserialize_cuda_engine=lambda serialised: self._load(bytes(serialised), logger))

    def _load(self, serialised: bytes, logger: Any) -> Engine | None:
        if not serialised.startswith(b"{"):
            logger.log(_Logger.ERROR, "no engine\nof mine")
            logger.log(_Logger.ERROR, "really")
            return None
        return Engine(self, logger, **json.loads(serialised))

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """As cuda_capture: what is repeated is what engines did, at the addresses that they had."""
        run()
        self.recording = []
        outputs = run()
        recorded, self.recording = self.recording, None

        def repeat() -> Any:
            for execute in recorded:
                execute()
            return outputs

        return repeat


class Engine:
    def __init__(
        self, trt: FakeTrt, logger: Any, onnx: str, profiles: list[dict[str, Bounds]], host: list[str]
    ) -> None:
        self.logger = logger
        self.trt, self.graph, self.profiles, self.host = trt, Path(onnx).stem, profiles, host
        options = ort.SessionOptions()  # those of OnnxRuntimeSession: the same bits
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.values = self.inputs | self.outputs
        self.device_memory_size_v2 = SCRATCH_BYTES[self.graph]
        self.num_optimization_profiles, self.num_io_tensors = len(profiles), len(self.values)

    def get_tensor_name(self, number: int) -> str:
        return list(self.values)[number]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_DTYPES[self.values[name].type][0])

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1 if isinstance(size, str) else size for size in self.values[name].shape]

    def get_tensor_location(self, name: str) -> str:
        return self.trt.TensorLocation.HOST if name in self.host else self.trt.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        least, most = self.profiles[profile][name]
        return [least, most, most]

    def create_execution_context(self, strategy: Any) -> Context | None:
        if self.trt.full:
            self.logger.log(_Logger.ERROR, "out of memory")
            return None
        assert strategy == "mine"
        self.trt.contexts.append(Context(self, len(self.trt.contexts)))
        return self.trt.contexts[-1]


class Context:
    def __init__(self, engine: Engine, number: int) -> None:
        self.engine, self.number = engine, number
        self.profile = -1
        self.scratch = (0, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.placed: set[tuple[int, ...]] = set()
        """Every set of addresses that it executed with."""

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory and size >= self.engine.device_memory_size_v2
        self.scratch = memory, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, most = self.engine.profiles[self.profile][name]
        assert all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)), (name, shape)
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        sizes = {}
        for known, shape in self.shapes.items():
            sizes |= {d: size for d, size in zip(self.engine.inputs[known].shape, shape, strict=True) if str(d) == d}
        rows_of_t = -1 if self.engine.trt.rows_of_t else sizes.get("tokens", -1)
        return [
            size if isinstance(size, int) else sizes.get(size, rows_of_t) for size in self.engine.values[name].shape
        ]

    def execute_async_v3(self, stream: int) -> bool:
        trt, engine = self.engine.trt, self.engine
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.placed.add(tuple(addresses.values()))
        assert set(shapes) == set(engine.inputs) and set(addresses) | set(self.allocators) == set(engine.values)

        def execute() -> None:
            trt.calls.append(Call(engine.graph, self.number, self.profile, shapes, self.scratch))
            given = {name: _at(addresses[name], shape, self._dtype(name)).copy() for name, shape in shapes.items()}
            for name, value in zip(engine.outputs, engine.session.run(None, given), strict=True):
                shape = self.get_tensor_shape(name)
                if -1 in shape:
                    memory = self.allocators[name].reallocate_output_async(name, 0, value.nbytes, 256, stream)
                    _at(memory, value.shape, value.dtype)[...] = value
                    self.allocators[name].notify_shape(name, value.shape)
                    continue
                place = _at(addresses[name], shape, value.dtype)
                _at(addresses[name], [place.nbytes], np.uint8)[...] = _UNWRITTEN
                place[tuple(slice(size) for size in value.shape)] = value

        if trt.recording is not None:
            trt.recording.append(execute)
        execute()
        return True

    def _dtype(self, name: str) -> Any:
        return _DTYPES[self.engine.values[name].type][1]


def _at(address: int, shape: Any, dtype: Any) -> Any:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memory, dtype=dtype).reshape(tuple(shape))
