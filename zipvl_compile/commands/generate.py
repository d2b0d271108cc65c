"""zipvl-compile generate BUNDLE --prompt TEXT"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from zipvl_compile.commands import options


def generate(
    bundle: options.BundlePath,
    prompt: Annotated[str, typer.Option(help="What to ask; images go before it, or where it says <image>.")],
    image: options.Images = None,
    tau: options.Tau = None,
    ratio_min: options.RatioMin = None,
    ratio_max: options.RatioMax = None,
    dense: options.Dense = False,
    probe_seed: options.ProbeSeed = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Stop after this many; default: the bundle's.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus: sample from the likeliest tokens of this mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    raw: options.Raw = False,
    as_json: options.Json = False,
) -> None:
    """Answer a prompt, streaming the text; then TTFT, tokens/s and the share of tokens each layer kept."""
    from zipvl_compile.commands.request import encode, method_params
    from zipvl_serving.bundle import Bundle
    from zipvl_serving.generator import Generator
    from zipvl_serving.output.sampling import SamplingParams

    opened = Bundle.open(bundle)
    sampling = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    generator = Generator(opened)
    params = method_params(generator, tau, ratio_min, ratio_max, probe_seed, dense=dense)
    encoded = encode(generator, prompt, image, raw=raw)
    for delta, so_far in generator.stream(encoded, sampling, params):
        answer = so_far
        if not as_json:
            typer.echo(delta, nl=False)
    if as_json:
        options.print_json(report(answer) | {"method": asdict(params), "sampling": asdict(sampling)})
        return
    typer.echo()
    rate = f"{answer.tokens_per_s:.1f} tokens/s, " if answer.tokens_per_s else ""
    typer.echo(
        f"[{answer.prompt.tokens} prompt tokens, TTFT {answer.ttft_s * 1000:.1f} ms, {rate}"
        f"KV {answer.kv_bytes / 1024:.0f} KiB, {'dense, ' if answer.prompt.dense else ''}"
        f"ratio per layer {ratios(answer.prompt.ratios)}]",
        err=True,
    )


def ratios(values: list[float]) -> str:
    """Shares of tokens kept, layer by layer, as a line."""
    return " ".join(f"{value:.2f}" for value in values)


def report(answer: Any) -> dict[str, Any]:
    """An answer as JSON."""
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt.tokens,
        "ttft_s": answer.ttft_s,
        "tokens_per_s": answer.tokens_per_s,
        "dense": answer.prompt.dense,
        "ratio_per_layer": answer.prompt.ratios,
        "kept_tokens_per_layer": answer.prompt.counts,
        "kv_bytes": answer.kv_bytes,
    }
