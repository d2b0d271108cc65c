"""An ONNX file to an engine, by either of NVIDIA's builders: TensorRT and TensorRT-RTX have one Python API.

`Library.module` is tensorrt or tensorrt_rtx, imported by who calls: an installation has one of them, or both, or none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zipvl_compile.engines.held_signals import held_signals
from zipvl_compile.engines.profiles import Ranges, sizes
from zipvl_serving.contract import GraphSpec
from zipvl_serving.errors import ZipvlError, one_line

OnProgress = Callable[[str], None]
_LAYERS = "Layers:\nName: "
"""How the message begins in which the builder lists an engine's layers, if asked for detail."""


@dataclass(frozen=True)
class Library:
    """One of the two builders."""

    module: Any
    name: str
    """As messages call it."""
    flags: tuple[str, ...] = ("STRONGLY_TYPED",)
    """Of the network: types are the graph's own."""


@dataclass(frozen=True)
class Built:
    """What the builder said of an engine that it made."""

    seconds: float
    bytes: int
    network_layers: int
    listing: str
    """Its layers, a line each; empty where the library prints none."""


def build_engine(
    library: Library,
    file: Path,
    spec: GraphSpec,
    profiles: Sequence[Ranges],
    engine: Path,
    on_progress: OnProgress,
    *,
    configure: Callable[[Any], None],
    check: Callable[[Any], None] = lambda network: None,
) -> Built:
    """Compile the graph in `file` and write it to `engine`, weights inside.

    One optimisation profile for each of `profiles`; `configure` sets what only one library has on the builder's
    configuration; `check` sees the parsed network and raises where it is not what was meant. Raises ZipvlError, one
    line, with the first thing that the parser or the builder objects to.
    """
    trt = library.module
    started = time.perf_counter()
    log = _log(trt)
    builder = trt.Builder(log)
    flags = (getattr(trt.NetworkDefinitionCreationFlag, flag) for flag in library.flags)
    network = builder.create_network(sum(1 << int(flag) for flag in flags))
    with held_signals() as interrupted:
        parser = _parse(library, network, file, log)
        check(network)
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = monitor = _progress(trt, on_progress, interrupted)
        for ranges in profiles:
            profile = builder.create_optimization_profile()
            for tensor in spec.inputs:
                profile.set_shape(tensor.name, *sizes(tensor.shape, ranges))
            config.add_optimization_profile(profile)
        configure(config)
        serialised = builder.build_serialized_network(network, config)
        del monitor, parser  # which own what the build reads
    if serialised is None:
        raise ZipvlError(f"{library.name} cannot build {file.stem}: {log.first_error}")
    engine.write_bytes(memoryview(serialised))
    seconds = round(time.perf_counter() - started, 2)
    return Built(seconds, engine.stat().st_size, network.num_layers, log.layers)


def _parse(library: Library, network: Any, file: Path, log: Any) -> Any:
    parser = library.module.OnnxParser(network, log)
    if parser.parse_from_file(str(file)):
        return parser
    if parser.num_errors == 0:
        raise ZipvlError(f"{library.name} cannot read {file.name}: {log.first_error}")
    error = parser.get_error(0)
    where = f"node {error.node_name()} ({error.node_operator()})"
    raise ZipvlError(f"{library.name} cannot parse {file.stem}: {where}: {_shorten(error.desc())}")


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps the first error and the list of layers; prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.first_error = "no reason given"
            self.layers = ""
            self._failed = False

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and not self._failed:
                self.first_error, self._failed = _shorten(message), True
            elif message.startswith(_LAYERS):
                self.layers += message

    return Log()


def _progress(trt: Any, on_progress: OnProgress, interrupted: Callable[[], bool]) -> Any:
    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells of the build's own phases; what happens inside them is too quick to be read."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None or parent in self._steps:
                if parent is None:
                    self._steps[phase] = steps
                on_progress(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._steps:
                on_progress(f"{phase}, {step + 1} of {self._steps[phase]}")
            return not interrupted()

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Progress()


def _shorten(message: str) -> str:
    return one_line(ValueError(message))[:300]
