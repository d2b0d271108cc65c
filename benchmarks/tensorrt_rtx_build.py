"""Build TensorRT-RTX engines of a 7B-shaped decoder for a named GPU, on a machine without one.

    python benchmarks/tensorrt_rtx_build.py [--layers 4] [--gpu a100] [--tokens 131072] [--out FILE]

LLaVA-1.5-7B's decoder (hidden 4096, 32 heads, intermediate 11008, vocabulary 32064) with random float16 weights and
fewer layers: time, size and the kernels of its prefill and decode engines. Needs about 3 times the weights in memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from output import hand_over

from zipvl_compile.engines.base import Job
from zipvl_compile.engines.tensorrt_rtx import TensorRTRTXBuilder
from zipvl_compile.graphs.weights import TRANSPOSED, WEIGHTS_FILE
from zipvl_compile.models.decoder import Decode, Decoder, Prefill
from zipvl_compile.models.dtype import in_dtype
from zipvl_compile.models.spec import DecoderSpec, MethodSpec, Rope
from zipvl_compile.recipe.schema import Recipe
from zipvl_compile.weights_file import write_safetensors
from zipvl_serving.contract import GraphName, ModelShape

HEADS, HEAD_DIM = 32, 128
IMAGE_SIZE, IMAGE_TOKENS = 336, 576


def decoder_spec(layers: int, tokens: int) -> DecoderSpec:
    return DecoderSpec(
        layers=layers,
        hidden=HEADS * HEAD_DIM,
        heads=HEADS,
        kv_heads=HEADS,
        head_dim=HEAD_DIM,
        intermediate=11008,
        vocabulary=32064,
        norm_eps=1e-5,
        rope=Rope(tuple(10000.0 ** (-i / (HEAD_DIM // 2)) for i in range(HEAD_DIM // 2))),
        image_token=32000,
        max_positions=2 * tokens,
    )


def model_shape(spec: DecoderSpec) -> ModelShape:
    return ModelShape(
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocabulary=spec.vocabulary,
        image_channels=3,
        image_height=IMAGE_SIZE,
        image_width=IMAGE_SIZE,
        tokens_per_image=IMAGE_TOKENS,
    )


def recipe(gpu: str, tokens: int) -> Recipe:
    limits = {"max_input_tokens": tokens, "max_new_tokens": 512, "max_batch": 16, "kv_bytes": "8GiB"}
    return Recipe.model_validate(
        {
            "name": "llama-7b-stack",
            "model": {"source": "random", "dtype": "float16"},
            "target": {"backend": "tensorrt_rtx", "gpu": gpu, "limits": limits},
        }
    )


def random_weights(file: Path, decoder: Decoder, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Tensors of the decoder's shapes, a thirtieth in size, by the names that graphs have for them."""
    state = {f"decoder.{name}": tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}

    def entry(name: str) -> tuple[str, str, tuple[int, ...], Any]:
        shape = state[name.removesuffix(TRANSPOSED)]
        shape = shape[::-1] if name.endswith(TRANSPOSED) else shape
        return name, "F16", shape, partial(_random, shape)

    return write_safetensors(file, (entry(name) for name in sorted(set(names))))


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape).div_(30).half()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--gpu", default="a100")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    spec = decoder_spec(options.layers, options.tokens)
    builder = TensorRTRTXBuilder(Job(recipe(options.gpu, options.tokens), model_shape(spec), lambda name: name))
    modules: dict[GraphName, Callable[[], torch.nn.Module]] = {
        "prefill": lambda: Prefill(_decoder(spec), MethodSpec()),
        "decode": lambda: Decode(_decoder(spec)),
    }
    graphs: dict[GraphName, Any] = {}
    exported: dict[GraphName, float] = {}
    for name, module in modules.items():
        started = time.perf_counter()
        graphs[name] = builder.export(name, module)
        exported[name] = round(time.perf_counter() - started, 2)
    result: dict[str, Any] = {
        "model": f"{options.layers} decoder layers of 7B shape, float16, prompts to {options.tokens} tokens",
        "gpu": f"{options.gpu}, {builder.gpu(builder.job.recipe.target)}",
        "tensorrt_rtx": builder.availability().detail,
    }
    with torch.device("meta"):
        decoder = Decoder(spec)
    with tempfile.TemporaryDirectory() as folder:
        names = [name for graph in graphs.values() for name in builder.weights(graph)]
        places = random_weights(Path(folder) / WEIGHTS_FILE, decoder, names)
        result["weights_bytes"] = sum(size for _, size in places.values())
        for name, graph in graphs.items():
            file = builder.build(name, graph, places, Path(folder), lambda detail: None)
            result[name] = {"export_seconds": exported[name], **file.report}
    result["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    hand_over(result, options.out)


def _decoder(spec: DecoderSpec) -> Decoder:
    return in_dtype(torch.float16, lambda: Decoder(spec))


if __name__ == "__main__":
    main()
