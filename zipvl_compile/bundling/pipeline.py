"""recipe -> bundle: every step of a build, in order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipvl_compile.bundling import cache as build_cache
from zipvl_compile.bundling.proof import check_processor, prove
from zipvl_compile.bundling.writer import check_replaceable, staged_directory
from zipvl_compile.checkpoint.reader import Checkpoint
from zipvl_compile.engines.base import EngineBuilder, builder
from zipvl_compile.recipe.load import LoadedRecipe
from zipvl_compile.recipe.schema import Recipe, dump_yaml
from zipvl_serving.bundle import PROCESSOR_FOLDER, describe_files
from zipvl_serving.contract import GRAPHS, GraphName, graph_spec
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.kv_pool import page_bytes
from zipvl_serving.manifest import MANIFEST_FILE, SCHEMA_VERSION, BreakEven, Engine, Limits, Manifest, Method, Model
from zipvl_serving.prompts.prompt import PromptProcessor

if TYPE_CHECKING:
    import onnx_ir as ir

    from zipvl_compile.models.llava import LlavaFamily

STEPS = (
    "read checkpoint",
    "export vision",
    "export prefill",
    "export decode",
    "write weights",
    "build engines",
    "measure break-even",
    "write manifest",
)
RECIPE_LOCK = "recipe.lock.yaml"

OnStep = Callable[[str, str], None]
"""Called as on_step(step, detail) when a step starts or moves on."""


@dataclass(frozen=True)
class BuildResult:
    """What a build left, and whether it had been there already."""

    bundle: Path
    cache_hit: bool
    seconds: float
    cache_key: str
    note: str | None = None
    """What went wrong beside the build: a cache that could not be written."""


@dataclass
class _Timer:
    on_step: OnStep
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        started = time.perf_counter()
        self.on_step(name, "")
        yield lambda detail: self.on_step(name, detail)
        self.seconds[name] = round(time.perf_counter() - started, 3)


def build(
    loaded: LoadedRecipe, out: Path, *, use_cache: bool = True, on_step: OnStep = lambda step, detail: None
) -> BuildResult:
    """Build a recipe into the directory `out`, or copy it from the cache.

    Raises InputError for a recipe or checkpoint that cannot be built and ZipvlError for work that failed; either way
    `out` is as it was.
    """
    started = time.perf_counter()
    recipe = loaded.recipe
    engine_builder = builder(recipe.target.backend)
    if recipe.model.dtype not in engine_builder.dtypes:
        raise InputError(
            f"model.dtype: {recipe.model.dtype!r} cannot run on {engine_builder.name}; "
            f"valid: {', '.join(engine_builder.dtypes)}"
        )
    if recipe.target.gpu is not None:
        raise InputError(f"target.gpu: {recipe.target.gpu!r} has no use on {engine_builder.name}; leave it null")
    check_replaceable(out)
    timer = _Timer(on_step)
    with timer.step("read checkpoint"):
        checkpoint = Checkpoint.open(loaded.model_source, recipe.model.revision)
        identity = checkpoint.identity(build_cache.cache_directory() if use_cache else None)
    tools = build_cache.tool_versions()
    key = build_cache.cache_key(recipe.lock(), identity["files"], tools)
    origin = {"key": key, "tools": tools, "checkpoint": {**identity, "source": str(loaded.model_source)}}
    note = None
    with build_cache.locked(key) if use_cache else nullcontext(None) as entry:
        hit = entry is not None and build_cache.copy_from(entry, out)
        if not hit:
            _build(recipe, checkpoint, engine_builder, out, origin, timer)
            if use_cache:
                note = build_cache.keep(out, entry)
    return BuildResult(out, hit, time.perf_counter() - started, key, note)


def _build(
    recipe: Recipe,
    checkpoint: Checkpoint,
    engine_builder: EngineBuilder,
    out: Path,
    origin: dict[str, Any],
    timer: _Timer,
) -> None:
    prompts = PromptProcessor(checkpoint.directory)  # before torch is imported: its faults show at once
    from zipvl_compile.models.registry import family

    model = family(checkpoint.config, checkpoint.directory)
    checkpoint.verify(model.expected_tensors(), model.optional_tensors())
    _check_fit(recipe, model)
    check_processor(prompts, checkpoint.directory, model.shape())
    with staged_directory(out) as staging:
        processor = staging / PROCESSOR_FOLDER
        processor.mkdir()
        for file in checkpoint.processor_files():
            shutil.copyfile(file, processor / file.name)
        graphs = _export(recipe, model, engine_builder, timer)
        parameters = _place_weights(recipe, checkpoint, model, graphs, staging, timer)
        with timer.step("build engines") as detail:
            files: dict[GraphName, str] = {}
            for name, graph in graphs.items():
                detail(name)
                files[name] = engine_builder.build(name, graph, staging)
        (staging / RECIPE_LOCK).write_text(dump_yaml(recipe), encoding="utf-8")
        manifest = _describe(recipe, checkpoint, model, engine_builder, files, parameters, origin)
        with timer.step("measure break-even") as detail:
            manifest = _measure(recipe, staging, manifest, detail)
        with timer.step("write manifest"):
            entries = dict(describe_files(staging))
        manifest = manifest.model_copy(update={"timings": timer.seconds, "files": entries})
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")


def _check_fit(recipe: Recipe, model: LlavaFamily) -> None:
    limits, decoder = recipe.target.limits, model.decoder
    pages = limits.kv_bytes // page_bytes(limits.page_size, decoder.kv_heads, decoder.head_dim)
    if pages < decoder.layers:
        raise InputError(
            f"target.limits.kv_bytes: {limits.kv_bytes} holds {pages} pages of {limits.page_size} tokens; "
            f"even one token needs a page in each of {decoder.layers} layers"
        )
    for length in recipe.benchmarks.break_even_lengths or ():
        if length > limits.max_input_tokens:
            raise InputError(
                f"benchmarks.break_even_lengths: {length} is out of range; target.limits.max_input_tokens is "
                f"{limits.max_input_tokens}"
            )
    wanted = limits.max_input_tokens + limits.max_new_tokens
    if wanted > decoder.max_positions:
        raise InputError(
            f"target.limits: max_input_tokens + max_new_tokens is {wanted}, the checkpoint has "
            f"{decoder.max_positions} positions; lower either"
        )
    if recipe.zipvl.dense_layers > decoder.layers:
        raise InputError(
            f"zipvl.dense_layers: {recipe.zipvl.dense_layers} is out of range; the checkpoint has {decoder.layers} "
            "layers"
        )


def _export(
    recipe: Recipe, model: LlavaFamily, engine_builder: EngineBuilder, timer: _Timer
) -> dict[GraphName, ir.Model]:
    from zipvl_compile.graphs.export import export_graph
    from zipvl_compile.graphs.lint import lint
    from zipvl_compile.models.decoder import Decode, Decoder, Prefill
    from zipvl_compile.models.spec import MethodSpec

    method = MethodSpec(recipe.zipvl.dense_layers, keep_full_cache=recipe.zipvl.cache == "full")
    modules = {
        "vision": model.build_vision,
        "prefill": lambda: Prefill(Decoder(model.decoder), method),
        "decode": lambda: Decode(Decoder(model.decoder)),
    }
    graphs: dict[GraphName, ir.Model] = {}
    for name in GRAPHS:
        with timer.step(f"export {name}"):
            spec = graph_spec(name, model.shape(), recipe.target.limits.page_size)
            graphs[name] = export_graph(modules[name], spec, engine_builder.executor)
            graphs[name].graph.name = name
    problems = [f"{name}: {problem}" for name, graph in graphs.items() for problem in lint(graph, weights_open=True)]
    if problems:
        more = f" (+{len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ZipvlError(f"the exported graphs break a rule of the parsers: {problems[0]}{more}")
    return graphs


def _place_weights(
    recipe: Recipe,
    checkpoint: Checkpoint,
    model: LlavaFamily,
    graphs: dict[GraphName, ir.Model],
    staging: Path,
    timer: _Timer,
) -> int:
    """Write the weights that the graphs use, once, and point the graphs at them; returns how many parameters."""
    import torch

    from zipvl_compile.graphs.weights import WEIGHTS_FILE, externalise, open_weights, write_weights

    names = sorted({model.checkpoint_name(name) for graph in graphs.values() for name in open_weights(graph.graph)})
    with timer.step("write weights") as detail:
        dtype = getattr(torch, recipe.model.dtype)
        places = write_weights(checkpoint, names, staging / WEIGHTS_FILE, dtype, detail)
    for graph in graphs.values():
        externalise(graph.graph, model.checkpoint_name, places)
    return sum(length for _, length in places.values()) // dtype.itemsize


def _describe(
    recipe: Recipe,
    checkpoint: Checkpoint,
    model: LlavaFamily,
    engine_builder: EngineBuilder,
    files: dict[GraphName, str],
    parameters: int,
    origin: dict[str, Any],
) -> Manifest:
    from zipvl_compile.graphs.weights import WEIGHTS_FILE

    zipvl, limits = recipe.zipvl, recipe.target.limits
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        cache_key=origin["key"],
        model=Model(
            architecture=checkpoint.architecture,
            shape=model.shape(),
            image_token=model.decoder.image_token,
            parameters=parameters,
        ),
        method=Method(
            tau=zipvl.tau,
            ratio_min=zipvl.ratio_min,
            ratio_max=zipvl.ratio_max,
            probe_recent=zipvl.probe.recent,
            probe_random=zipvl.probe.random,
            seed=zipvl.seed,
            cache=zipvl.cache,
            dense_below=0 if zipvl.dense_below == "auto" else zipvl.dense_below,
            dense_layers=zipvl.dense_layers,
            force_last=zipvl.force.last,
            force_text=zipvl.force.text,
        ),
        limits=Limits(
            max_input_tokens=limits.max_input_tokens,
            max_batch=limits.max_batch,
            max_new_tokens=limits.max_new_tokens,
            default_new_tokens=recipe.serving.max_new_tokens_default,
            kv_bytes=limits.kv_bytes,
            page_size=limits.page_size,
        ),
        serving=recipe.serving.config,
        engine=Engine(
            backend=engine_builder.name,
            backend_version=origin["tools"][engine_builder.distribution],
            graphs=files,
            weights=WEIGHTS_FILE,
        ),
        break_even=BreakEven(ratio=recipe.benchmarks.break_even_ratio, tokens=None, ratios={}),
        recipe=recipe.lock(),
        checkpoint=origin["checkpoint"],
        tools=origin["tools"],
        timings={},
        files={},
    )


def _measure(recipe: Recipe, staging: Path, manifest: Manifest, detail: Callable[[str], None]) -> Manifest:
    """Fill in the measured break-even and, where the recipe leaves it to that, the length below which to run dense."""
    from zipvl_compile.bundling import break_even

    limit = recipe.target.limits.max_input_tokens
    lengths = recipe.benchmarks.break_even_lengths or break_even.default_lengths(limit)
    generator = prove(staging, manifest)
    measured = break_even.measure(
        generator.session, manifest.method, recipe.benchmarks.break_even_ratio, lengths, lambda n: detail(f"{n} tokens")
    )
    method = manifest.method
    if recipe.zipvl.dense_below == "auto":
        # Where it never paid, every prompt of this bundle runs dense.
        method = method.model_copy(update={"dense_below": measured.tokens or limit + 1})
    return manifest.model_copy(update={"break_even": measured, "method": method})
