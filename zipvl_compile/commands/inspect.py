"""zipvl-compile inspect BUNDLE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zipvl_compile.commands import options


def inspect(
    bundle: options.BundlePath,
    image: options.Images = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt to prefill, to see what each layer keeps.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to draw the kept visual tokens (.png, .svg, .pdf).")] = None,
    tau: options.Tau = None,
    ratio_min: options.RatioMin = None,
    ratio_max: options.RatioMax = None,
    dense: options.Dense = False,
    probe_seed: options.ProbeSeed = None,
    raw: options.Raw = False,
    as_json: options.Json = False,
) -> None:
    """Show what a bundle is; with a prompt, what each layer keeps of it; with --plot, draw that over the image."""
    from zipvl_serving.bundle import Bundle
    from zipvl_serving.errors import InputError

    opened = Bundle.open(bundle)
    if prompt is None:
        if plot or image or raw or dense or any(v is not None for v in (tau, ratio_min, ratio_max, probe_seed)):
            raise InputError("inspect: --image, --plot, --raw and the method's options need --prompt")
        _show(opened.manifest.model_dump(mode="json"), as_json)
        return

    from zipvl_compile.commands.request import method_params
    from zipvl_compile.picture import draw
    from zipvl_serving.generator import Generator
    from zipvl_serving.vision.images import load_image

    generator = Generator(opened)
    params = method_params(generator, tau, ratio_min, ratio_max, probe_seed, dense=dense)
    pictures = [load_image(path) for path in image or ()]
    encoded = generator.prepare(prompt, pictures, raw=raw)
    result, _ = generator.prefill(encoded, params)
    if plot:
        seen = [generator.processor.image_processor.geometry(picture) for picture in pictures]
        draw(plot, seen, encoded, result, f"{opened.manifest.name}, tau {params.tau:g}")
    if as_json:
        options.print_json(
            {
                "prompt_tokens": result.tokens,
                "dense": result.dense,
                "ratio_per_layer": result.ratios,
                "kept_tokens_per_layer": [index.tolist() for index in result.index],
                "plot": str(plot) if plot else None,
            }
        )
        return
    visual = int((~encoded.is_text).sum())
    typer.echo(f"{result.tokens} prompt tokens, {visual} of them visual{', dense' if result.dense else ''}")
    for layer, (count, ratio) in enumerate(zip(result.counts, result.ratios, strict=True)):
        typer.echo(f"layer {layer}: {count} tokens kept, ratio {ratio:.3f}")
    if plot:
        typer.echo(f"picture: {plot}")


def _reports(reports: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A line of what the backend said of each engine it compiled."""
    parts = []
    for graph, report in reports.items():
        if "bytes" in report:
            fused = f", {report['fused_attention']} fused attentions" if "fused_attention" in report else ""
            parts.append(f"{graph} {report['bytes'] / 2**20:.1f} MiB in {report['seconds']:.1f} s{fused}")
    return {"engines": "; ".join(parts)} if parts else {}


def _checkpoint(manifest: dict[str, Any]) -> str:
    """Where the weights came from, and how much of the model was taken."""
    checkpoint, model = manifest["checkpoint"], manifest["recipe"]["model"]
    parts = [checkpoint["source"] + (f" at {checkpoint['revision']}" if checkpoint["revision"] else "")]
    if model.get("weights") == "random":
        parts.append("random weights")
    if model.get("layers"):
        parts.append(f"only the first {model['layers']} layers")
    if model.get("rope_theta"):
        parts.append(f"rope theta {model['rope_theta']:g}")
    return ", ".join(parts)


def _show(manifest: dict[str, Any], as_json: bool) -> None:
    if as_json:
        options.print_json(manifest)
        return
    from rich.console import Console
    from rich.table import Table

    model, method, limits, even = (manifest[part] for part in ("model", "method", "limits", "break_even"))
    shape, engine = model["shape"], manifest["engine"]
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    measured = ", ".join(f"{tokens}: {ratio:.2f}" for tokens, ratio in even["ratios"].items())
    rows = {
        "name": f"{manifest['name']}, built {manifest['created']} in {sum(manifest['timings'].values()):.1f} s",
        "model": f"{model['architecture']}, {model['parameters']:,} parameters, {shape['layers']} layers, "
        f"hidden {shape['hidden']}, {shape['heads']}:{shape['kv_heads']} heads of {shape['head_dim']}",
        "engine": f"{engine['backend']} {engine['backend_version']}; {', '.join(engine['graphs'].values())}; "
        + (f"for {engine['gpu']}; " if engine["gpu"] else "")
        + (f"weights once in {engine['weights']}" if engine["weights"] else "weights inside"),
        **_reports(engine["reports"]),
        "method": f"tau {method['tau']}, ratio {method['ratio_min']} to {method['ratio_max']}, probes "
        f"{method['probe_recent']} recent + {method['probe_random']} random, cache {method['cache']}, "
        f"{method['dense_layers']} dense layers, forced: last {method['force_last']}"
        f"{' + text' if method['force_text'] else ''}",
        "dense below": f"{method['dense_below']} tokens; "
        + (
            f"measured break-even at ratio {even['ratio']}: {even['tokens'] or 'none'} (tokens: zipvl/dense time "
            f"{measured})"
            if measured
            else "break-even not measured: the engines could not run where they were built"
        ),
        "limits": f"{limits['max_input_tokens']} input tokens, {limits['max_new_tokens']} new, batch "
        f"{limits['max_batch']}, KV {limits['kv_bytes'] / 2**20:.0f} MiB in pages of {limits['page_size']} tokens",
        "checkpoint": _checkpoint(manifest),
        "files": f"{len(manifest['files'])}, {size / 2**20:.1f} MiB, all verified",
        "tools": ", ".join(f"{tool} {version}" for tool, version in manifest["tools"].items()),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", value)
    Console().print(table, highlight=False)
