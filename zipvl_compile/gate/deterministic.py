"""The figures of a bundle that repeat exactly, whatever else the machine does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zipvl_compile.bench.inputs import make_prompt
from zipvl_compile.gate.figures import Figure
from zipvl_compile.gate.graph_nodes import count_nodes
from zipvl_compile.gate.trace import methods, run_trace
from zipvl_serving.bundle import Bundle
from zipvl_serving.generator import Generator
from zipvl_serving.kv_pool import KVPool
from zipvl_serving.method import MethodParams
from zipvl_serving.sessions.base import open_session

RATIO_TOLERANCE = 0.005
"""Of kept ratios: processors sum products in different orders, so a score may change sides of the threshold."""
SIZE_TOLERANCE = 0.01
"""Of engine files: names and comments inside change with the exporter's patch releases."""
_KEPT_TAU = 0.975
_SCENES = 4
_SCENE_FRAMES = (4, 12)
_KV_TOKENS = 480


def measure(path: Path) -> dict[str, Figure]:
    """Every figure of the bundle at `path`, by name. Takes seconds; raises what opening and running one raises.

    Selection is on at every length: where a bundle's break-even was measured at build, it differs from build to build.
    """
    opened = Bundle.open(path)
    method = opened.manifest.method.model_copy(update={"dense_below": 0})
    bundle = Bundle(opened.path, opened.manifest.model_copy(update={"method": method}))
    generator = Generator(bundle, open_session(bundle, spinning=False))
    return {**_files(bundle), **_trace(generator), **_kv(generator), **_kept(generator)}


def _files(bundle: Bundle) -> dict[str, Figure]:
    engine, files = bundle.manifest.engine, bundle.manifest.files
    figures = {}
    for graph, name in engine.graphs.items():
        figures[f"engine_bytes.{graph}"] = Figure(files[name].bytes, relative=SIZE_TOLERANCE)
        if name.endswith(".onnx"):
            counts = count_nodes(bundle.path / name)
            figures |= {f"nodes.{graph}.{operator}": Figure(count) for operator, count in counts.items()}
            figures[f"nodes.{graph}"] = Figure(counts.total())
    if engine.weights:
        figures["weights_bytes"] = Figure(files[engine.weights].bytes)
    return figures


def _trace(generator: Generator) -> dict[str, Figure]:
    return {f"trace.{name}": Figure(value) for name, value in vars(run_trace(generator)).items()}


def _kv(generator: Generator) -> dict[str, Figure]:
    """Bytes of KV pages that one prompt holds after prefill, over its tokens."""
    tokens = min(_KV_TOKENS, generator.bundle.manifest.limits.max_input_tokens)
    prompt = make_prompt(generator, "random", tokens, seed=0)
    pool = KVPool.of(generator.bundle.manifest, generator.session)
    figures = {}
    for name, params in methods(generator).items():
        cached = pool.store(generator.prefill(prompt, params)[1].cache)
        figures[f"kv_bytes_per_token.{name}"] = Figure(round(cached.pages * pool.page_bytes / tokens, 3))
        pool.release(cached)
    return figures


def _kept(generator: Generator) -> dict[str, Figure]:
    """Share of tokens that each layer keeps of the demo's scenes, mean over scenes."""
    limits, shape = generator.bundle.manifest.limits, generator.bundle.manifest.model.shape
    params = MethodParams.defaults(generator.bundle.manifest.method).override(tau=_KEPT_TAU)
    figures = {}
    for frames in _SCENE_FRAMES:
        if (frames + 1) * shape.tokens_per_image > limits.max_input_tokens:
            continue
        prompts = (make_prompt(generator, "scenes", frames * shape.tokens_per_image, seed) for seed in range(_SCENES))
        ratios = np.mean([generator.prefill(prompt, params)[0].ratios for prompt in prompts], axis=0)
        for layer, ratio in enumerate(ratios.tolist()):
            name = f"kept_ratio.tau_{_KEPT_TAU:g}.frames_{frames}.layer_{layer}"
            figures[name] = Figure(round(ratio, 6), absolute=RATIO_TOLERANCE)
    return figures
