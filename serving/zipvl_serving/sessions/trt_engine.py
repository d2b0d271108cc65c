"""An engine of TensorRT or of TensorRT-RTX, which have one Python API, as a function of torch tensors."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zipvl_serving.contract import GraphSpec, TensorSpec
from zipvl_serving.errors import ZipvlError, one_line

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
"""trt.DataType by its name -> as the contract and torch call it."""
UNKNOWN = -1
"""A size that only running tells."""

Shapes = tuple[tuple[int, ...], ...]
NewContext = Callable[[Any], Any]
"""From an engine to an execution context that has no device memory of its own."""


class Log:
    """What the runtime complained of; nothing is printed."""

    def __init__(self) -> None:
        self.first_error = "no reason given"
        self._failed = False

    def error(self, message: str) -> None:
        if not self._failed:
            self.first_error, self._failed = one_line(ValueError(message))[:300], True


class TrtEngine:
    """One engine. Calls must come from one thread at a time, and so must those of engines that share scratch memory."""

    def __init__(
        self, trt: Any, file: Path, spec: GraphSpec, device: torch.device, new_context: NewContext, *, per_shape: bool
    ) -> None:
        """`per_shape`: a context and output buffers for every set of input shapes, which captured CUDA graphs need and
        the next call writes over; else a context per profile and fresh outputs.

        Raises ZipvlError, one line, where the file cannot be loaded here or breaks the contract.
        """
        self._trt, self._spec, self._device, self._name = trt, spec, device, file.stem
        self._log = Log()
        self._engine = _load(trt, file, self._log)
        _check(file, self._engine, spec)
        self._profiles = [self._ranges(profile) for profile in range(self._engine.num_optimization_profiles)]
        self._new_context, self._per_shape = new_context, per_shape
        self._contexts: dict[Any, Any] = {}
        self._kept_outputs: dict[Any, list[Callable[[], torch.Tensor]]] = {}
        self._scratch: torch.Tensor | None = None
        self._lacking: dict[str, bool] = {}

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a call needs beside its inputs and outputs."""
        return int(self._engine.device_memory_size_v2)

    def use_scratch(self, scratch: torch.Tensor) -> None:
        """Memory of at least `scratch_bytes`, which engines may share that never run at the same time."""
        self._scratch = scratch

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Inputs and outputs in the contract's order. Nothing waits for the device, but for what the engine itself
        must know of data."""
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        profile = self._profile(shapes)
        key = shapes if self._per_shape else profile
        if key not in self._contexts:
            self._contexts[key] = self._context(profile, stream)
        context = self._contexts[key]
        given = [self._placed(spec.name, tensor) for spec, tensor in zip(self._spec.inputs, inputs, strict=True)]
        for spec, tensor in zip(self._spec.inputs, given, strict=True):
            context.set_input_shape(spec.name, tuple(tensor.shape))
            context.set_tensor_address(spec.name, tensor.data_ptr())
        outputs = self._kept_outputs.get(key) or [self._output(context, spec) for spec in self._spec.outputs]
        if self._per_shape:
            self._kept_outputs[key] = outputs
        if not context.execute_async_v3(stream):
            if self._lacking.pop("memory", False):  # no exception of an allocator's passes through the library
                raise torch.OutOfMemoryError
            raise ZipvlError(f"the {self._name} engine failed: {self._log.first_error}")
        return tuple(output() for output in outputs)

    def _context(self, profile: int, stream: int) -> Any:
        context = self._new_context(self._engine)
        if context is None:
            raise ZipvlError(f"the {self._name} engine cannot be started: {self._log.first_error}")
        assert self._scratch is not None
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        context.set_optimization_profile_async(profile, stream)
        return context

    def _profile(self, shapes: Shapes) -> int:
        """The first profile that holds all shapes: the builder put small ones first."""
        for number, ranges in enumerate(self._profiles):
            if all(_inside(shape, *bounds) for shape, bounds in zip(shapes, ranges, strict=True)):
                return number
        given = ", ".join(f"{spec.name} {list(shape)}" for spec, shape in zip(self._spec.inputs, shapes, strict=True))
        raise ZipvlError(f"the {self._name} engine was built for other sizes: got {given}")

    def _ranges(self, profile: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Least and most shape of every input."""
        found = []
        for spec in self._spec.inputs:
            least, _, most = self._engine.get_tensor_profile_shape(spec.name, profile)
            found.append((tuple(least), tuple(most)))
        return found

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Where the engine reads it; a few it may want on the host, to compute shapes."""
        return tensor.to(self._place(name))

    def _place(self, name: str) -> torch.device:
        on_host = self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST
        return torch.device("cpu") if on_host else self._device

    def _output(self, context: Any, spec: TensorSpec) -> Callable[[], torch.Tensor]:
        """Have memory for an output; the call gives it once the engine has run."""
        dtype, place = getattr(torch, spec.dtype), self._place(spec.name)
        shape = tuple(context.get_tensor_shape(spec.name))
        if UNKNOWN in shape:
            allocator = _allocator(self._trt, dtype, place, self._lacking)
            context.set_output_allocator(spec.name, allocator)
            return allocator.tensor  # type: ignore[no-any-return]
        made = torch.empty(shape, dtype=dtype, device=place)
        context.set_tensor_address(spec.name, made.data_ptr())
        return lambda: made


def _load(trt: Any, file: Path, log: Log) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                log.error(message)

    runtime = trt.Runtime(Logger())
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as serialised:
        engine = runtime.deserialize_cuda_engine(serialised)
    if engine is None:
        raise ZipvlError(f"{file}: cannot be loaded on this machine: {log.first_error}")
    return engine


def _check(file: Path, engine: Any, spec: GraphSpec) -> None:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    wanted = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    if set(names) != set(wanted):
        other = sorted(set(names) ^ set(wanted))
        raise ZipvlError(f"{file}: breaks the contract: has or lacks {', '.join(other)}")
    for name, tensor in wanted.items():
        dtype = DTYPES.get(engine.get_tensor_dtype(name).name)
        shape = tuple(engine.get_tensor_shape(name))
        agrees = len(shape) == len(tensor.shape) and all(
            isinstance(want, str) or have == want for have, want in zip(shape, tensor.shape, strict=True)
        )
        if dtype != tensor.dtype or not agrees:
            raise ZipvlError(f"{file}: breaks the contract: {name} is {dtype} {list(shape)}, expected {tensor}")


def _inside(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))


def _allocator(trt: Any, dtype: torch.dtype, device: torch.device, lacking: dict[str, bool]) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        """Memory for an output whose size depends on data: TensorRT asks for as much as it may take."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._memory = torch.empty(0, dtype=torch.uint8, device=device)
            self._shape: tuple[int, ...] = ()

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            try:
                if size > self._memory.numel():
                    self._memory = torch.empty(size, dtype=torch.uint8, device=device)
            except torch.OutOfMemoryError:
                lacking["memory"] = True
                return 0
            return self._memory.data_ptr()

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self._shape = tuple(shape)

        def tensor(self) -> torch.Tensor:
            items = torch.Size(self._shape).numel()
            return self._memory[: items * dtype.itemsize].view(dtype).view(self._shape)

    return Allocator()
