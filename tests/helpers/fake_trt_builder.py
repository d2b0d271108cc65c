"""TensorRT's Python API as far as builds use it: reads ONNX files, remembers what was asked, compiles nothing."""

from __future__ import annotations

import enum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx


class Logger:
    ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"


class ProgressMonitor:
    pass


class Flag(enum.IntEnum):
    STRONGLY_TYPED = 0
    PREFER_JIT_PYTHON_PLUGINS = 1
    PREFER_AOT_PYTHON_PLUGINS = 2


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[list[int], list[int], list[int]]] = {}

    def set_shape(self, name: str, least: list[int], usual: list[int], most: list[int]) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True)), name
        self.shapes[name] = least, usual, most


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.layers: list[SimpleNamespace] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, number: int) -> SimpleNamespace:
        return self.layers[number]


class TimingCache:
    def __init__(self, held: bytes) -> None:
        self.held = held

    def serialize(self) -> bytes:
        return self.held + b"timed "


class Config:
    def __init__(self, trt: FakeTrt) -> None:
        self.trt = trt
        self.profiles: list[Profile] = []
        self.cache: TimingCache | None = None
        self.progress_monitor: Any = None

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, held: bytes) -> TimingCache:
        return TimingCache(held)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.held and not self.trt.takes_timings:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        assert self.cache is not None
        return self.cache


class FakeTrt:
    """A module `tensorrt`. What it is to do wrong is set on it."""

    __version__ = "11.0.fake"
    __spec__ = ModuleSpec("tensorrt", None)
    ILogger, IProgressMonitor = Logger, ProgressMonitor
    NetworkDefinitionCreationFlag = Flag
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    LayerType = SimpleNamespace(PLUGIN_V3="plugin", OTHER="other")

    def __init__(self) -> None:
        self.networks: list[Network] = []
        self.configs: list[Config] = []
        self.refused_node: str | None = None
        self.no_plugin: str | None = None
        """A plugin that the parser does not find."""
        self.build_error: str | None = None
        self.takes_timings = True
        self.registered: list[int] = []
        """Compute capabilities that plugins were registered for."""

    def Builder(self, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        return _Builder(self, log)

    def OnnxParser(self, network: Network, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        return _Parser(self, network)


class _Builder:
    def __init__(self, trt: FakeTrt, log: Any) -> None:
        self.trt, self.log = trt, log

    def create_network(self, flags: int) -> Network:
        self.trt.networks.append(Network(flags))
        return self.trt.networks[-1]

    def create_builder_config(self) -> Config:
        self.trt.configs.append(Config(self.trt))
        return self.trt.configs[-1]

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactics", "Building Engine", 9)
        monitor.step_complete("Tactics", 0)
        monitor.phase_finish("Tactics")
        monitor.step_complete("Building Engine", 0)
        monitor.phase_finish("Building Engine")
        if self.trt.build_error:
            self.log.log(Logger.WARNING, "no matter")
            self.log.log(Logger.ERROR, self.trt.build_error)
            self.log.log(Logger.ERROR, "and so nothing works")
            return None
        return b"engine"


class _Parser:
    def __init__(self, trt: FakeTrt, network: Network) -> None:
        self.trt, self.network = trt, network
        self.errors: list[_Error] = []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, number: int) -> _Error:
        return self.errors[number]

    def parse_from_file(self, file: str) -> bool:
        model = onnx.load(Path(file), load_external_data=False)
        for node in model.graph.node:
            if node.op_type == self.trt.refused_node:
                self.errors.append(_Error(node))
                return False
            is_plugin = node.domain == "zipvl" and node.op_type != self.trt.no_plugin
            kind = self.trt.LayerType.PLUGIN_V3 if is_plugin else self.trt.LayerType.OTHER
            self.network.layers.append(SimpleNamespace(name=node.name, type=kind))
        return True


class _Error:
    def __init__(self, node: onnx.NodeProto) -> None:
        self.node = node

    def node_name(self) -> str:
        return str(self.node.name)

    def node_operator(self) -> str:
        return str(self.node.op_type)

    def desc(self) -> str:
        return "not\nlike this"
