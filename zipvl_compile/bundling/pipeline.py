"""recipe -> bundle: every step of a build, in order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipvl_compile.bundling import cache as build_cache
from zipvl_compile.bundling.proof import check_processor, prove
from zipvl_compile.bundling.writer import check_replaceable, staged_directory
from zipvl_compile.checkpoint.base import Source, Weights
from zipvl_compile.checkpoint.sources import open_source
from zipvl_compile.engines.base import EngineBuilder, EngineFile, Job, builder, with_dtype
from zipvl_compile.recipe.load import LoadedRecipe
from zipvl_compile.recipe.schema import Recipe, dump_yaml
from zipvl_compile.weights_file import WEIGHTS_FILE
from zipvl_serving.backends import BACKENDS
from zipvl_serving.bundle import PROCESSOR_FOLDER, describe_files
from zipvl_serving.contract import ITEM_BYTES, GraphName
from zipvl_serving.errors import InputError
from zipvl_serving.kv_pool import page_bytes
from zipvl_serving.manifest import MANIFEST_FILE, SCHEMA_VERSION, BreakEven, Engine, Limits, Manifest, Method, Model
from zipvl_serving.prompts.prompt import PromptProcessor

if TYPE_CHECKING:
    import torch

    from zipvl_compile.models.llava import LlavaFamily

STEPS = (
    "read checkpoint",
    "export vision",
    "export prefill",
    "export decode",
    "export dense_prefill",
    "write weights",
    "build engines",
    "measure break-even",
    "write manifest",
)
RECIPE_LOCK = "recipe.lock.yaml"
UNMEASURED_BREAK_EVEN = 1024
"""Tokens below which a bundle runs dense whose break-even could not be measured, or not within the time for it. From
there on selection is predicted to pay on every GPU of docs/gpu.md ("Short prompts"); on CPUs it paid sooner."""

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
    backend = builder(recipe.target.backend)
    recipe = with_dtype(recipe, backend)
    backend.check_gpu(recipe.target.gpu)
    gpu = backend.gpu(recipe.target)
    check_replaceable(out)
    timer = _Timer(on_step)
    with timer.step("read checkpoint"):
        source = open_source(loaded.model_source, recipe.model.revision, recipe.model.weights)
        identity = source.identity(build_cache.cache_directory() if use_cache else None)
    tools = build_cache.tool_versions()
    key = build_cache.cache_key(recipe.lock(), identity["files"], tools, gpu or backend.device())
    origin = {"key": key, "tools": tools, "gpu": gpu, "checkpoint": {**identity, "source": str(loaded.model_source)}}
    note = None
    with build_cache.locked(key) if use_cache else nullcontext(None) as entry:
        hit = entry is not None and build_cache.copy_from(entry, out)
        if not hit:
            _build(recipe, source, backend, out, origin, timer)
            if use_cache:
                note = build_cache.keep(out, entry)
    return BuildResult(out, hit, time.perf_counter() - started, key, note)


def _build(
    recipe: Recipe,
    source: Source,
    backend: type[EngineBuilder],
    out: Path,
    origin: dict[str, Any],
    timer: _Timer,
) -> None:
    prompts = PromptProcessor(source.directory)  # before torch is imported: its faults show at once
    from zipvl_compile.models.registry import family

    whole = family(source.config, source.directory)
    weights = source.weights(whole.expected_tensors(), whole.optional_tensors())
    model = whole.first_layers(recipe.model.layers).with_rope_theta(recipe.model.rope_theta)
    _check_fit(recipe, model)
    check_processor(prompts, source.directory, model.shape())
    with staged_directory(out) as staging:
        processor = staging / PROCESSOR_FOLDER
        processor.mkdir()
        for file in source.processor_files():
            shutil.copyfile(file, processor / file.name)
        engines = backend(Job(recipe, model.shape(), model.checkpoint_name))
        exported = _export(recipe, model, engines, timer)
        places = _place_weights(weights, engines, exported, staging, timer)
        with timer.step("build engines") as detail:
            files: dict[GraphName, EngineFile] = {}
            for name, program in exported.items():
                detail(name)
                files[name] = engines.build(name, program, places, staging, partial(_of_graph, detail, name))
        if engines.holds_weights:
            (staging / WEIGHTS_FILE).unlink()
        (staging / RECIPE_LOCK).write_text(dump_yaml(recipe), encoding="utf-8")
        manifest = _describe(recipe, source.architecture, model, engines, files, places, origin)
        with timer.step("measure break-even") as detail:
            manifest = _measure(recipe, staging, manifest, engines.runs_here(), detail)
        with timer.step("write manifest"):
            entries = dict(describe_files(staging))
        manifest = manifest.model_copy(update={"timings": timer.seconds, "files": entries})
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")


def _of_graph(detail: Callable[[str], None], graph: GraphName, progress: str) -> None:
    detail(f"{graph}: {progress}")


def _check_fit(recipe: Recipe, model: LlavaFamily) -> None:
    limits, decoder = recipe.target.limits, model.decoder
    pages = limits.kv_bytes // page_bytes(limits.page_size, decoder.kv_heads, decoder.head_dim, recipe.model.dtype)
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


def _export(recipe: Recipe, model: LlavaFamily, engines: EngineBuilder, timer: _Timer) -> dict[GraphName, Any]:
    import torch

    from zipvl_compile.models.decoder import Decode, Decoder, DensePrefill, Prefill
    from zipvl_compile.models.dtype import in_dtype
    from zipvl_compile.models.spec import MethodSpec

    method = MethodSpec(recipe.zipvl.dense_layers, keep_full_cache=recipe.zipvl.cache == "full")
    dtype = getattr(torch, engines.job.dtype)
    modules: dict[GraphName, Callable[[], torch.nn.Module]] = {
        "vision": lambda: in_dtype(dtype, model.build_vision),
        "prefill": lambda: Prefill(in_dtype(dtype, lambda: Decoder(model.decoder)), method),
        "decode": lambda: Decode(in_dtype(dtype, lambda: Decoder(model.decoder))),
        "dense_prefill": lambda: DensePrefill(in_dtype(dtype, lambda: Decoder(model.decoder))),
    }
    exported = {}
    for name in engines.graphs:
        with timer.step(f"export {name}"):
            exported[name] = engines.export(name, modules[name])
    return exported


def _place_weights(
    weights: Weights, engines: EngineBuilder, exported: dict[GraphName, Any], staging: Path, timer: _Timer
) -> dict[str, tuple[int, int]]:
    """Write the weights that the programs read, once; returns (offset, bytes) of each in the weights file."""
    import torch

    from zipvl_compile.graphs.weights import write_weights

    job = engines.job
    names = sorted({job.stored_name(name) for program in exported.values() for name in engines.weights(program)})
    with timer.step("write weights") as detail:
        return write_weights(weights, names, staging / WEIGHTS_FILE, getattr(torch, job.dtype), detail)


def _describe(
    recipe: Recipe,
    architecture: str,
    model: LlavaFamily,
    engines: EngineBuilder,
    files: dict[GraphName, EngineFile],
    places: dict[str, tuple[int, int]],
    origin: dict[str, Any],
) -> Manifest:
    zipvl, limits = recipe.zipvl, recipe.target.limits
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        cache_key=origin["key"],
        model=Model(
            architecture=architecture,
            shape=model.shape(),
            dtype=engines.job.dtype,
            image_token=model.decoder.image_token,
            parameters=sum(length for _, length in places.values()) // ITEM_BYTES[engines.job.dtype],
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
            backend=engines.name,
            backend_version=origin["tools"][BACKENDS[engines.name].distribution],
            gpu=origin["gpu"],
            graphs={name: file.name for name, file in files.items()},
            weights=None if engines.holds_weights else WEIGHTS_FILE,
            reports={name: file.report for name, file in files.items()},
        ),
        break_even=BreakEven(ratio=recipe.benchmarks.break_even_ratio, tokens=None, ratios={}),
        recipe=recipe.lock(),
        checkpoint=origin["checkpoint"],
        tools=origin["tools"],
        timings={},
        files={},
    )


def _measure(
    recipe: Recipe, staging: Path, manifest: Manifest, elsewhere: str | None, detail: Callable[[str], None]
) -> Manifest:
    """Fill in the measured break-even and, where the recipe leaves it to that, the length below which to run dense.

    `elsewhere` says why the engines cannot run here: then nothing is proven nor measured.
    """
    from zipvl_compile.bundling import break_even

    method, limit = manifest.method, recipe.target.limits.max_input_tokens
    if elsewhere:
        detail(f"not run here: {elsewhere}")
        if recipe.zipvl.dense_below == "auto":
            method = method.model_copy(update={"dense_below": UNMEASURED_BREAK_EVEN})
        return manifest.model_copy(update={"method": method})
    lengths = recipe.benchmarks.break_even_lengths or break_even.default_lengths(limit)
    generator = prove(staging, manifest)
    measured = break_even.measure(
        generator.session, method, recipe.benchmarks.break_even_ratio, lengths, lambda n: detail(f"{n} tokens")
    )
    if recipe.zipvl.dense_below == "auto":
        method = method.model_copy(update={"dense_below": _dense_below(measured, lengths, limit)})
    return manifest.model_copy(update={"break_even": measured, "method": method})


def _dense_below(measured: BreakEven, lengths: Sequence[int], limit: int) -> int:
    """Where it paid at no measured length: every prompt runs dense if all were measured, else short ones."""
    if measured.tokens is not None:
        return measured.tokens
    return limit + 1 if lengths[-1] in measured.ratios else UNMEASURED_BREAK_EVEN
