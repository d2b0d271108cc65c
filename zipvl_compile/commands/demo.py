"""zipvl-compile demo: build the demo recipe and ask it about an image; train and score the demo model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from zipvl_compile.commands import options
from zipvl_compile.commands.build import build
from zipvl_compile.commands.generate import ratios
from zipvl_compile.commands.progress import stage_progress

app = typer.Typer(help="A small trained model to see the whole pipeline at work.", invoke_without_command=True)

RECIPE = "digits"
_QUESTION_SEED = 4


@app.callback()
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Where the bundle and the picture go.")] = Path("build"),
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse and keep finished bundles.")] = True,
) -> None:
    """Build recipes/digits.yaml, ask a question about a held-out image and draw what each layer kept."""
    if context.invoked_subcommand:
        return
    bundle = out / RECIPE
    build(RECIPE, out=bundle, cache=cache)

    from PIL import Image

    from zipvl_compile.demo.score import COLUMNS, held_out_questions
    from zipvl_compile.picture import draw
    from zipvl_serving.bundle import Bundle
    from zipvl_serving.generator import Generator
    from zipvl_serving.output.sampling import SamplingParams

    scene, question = next(held_out_questions(COLUMNS[0], 1, _QUESTION_SEED))
    image = Image.fromarray(scene.frames[0])
    (out / "demo").mkdir(parents=True, exist_ok=True)
    image_path, picture_path = out / "demo" / "scene.png", out / "demo" / "kept.png"
    image.save(image_path)
    generator = Generator(Bundle.open(bundle))
    prompt = generator.prepare(question.text, [image])
    answer = generator.answer(prompt, SamplingParams(max_new_tokens=8))
    draw(picture_path, [generator.processor.image_processor.geometry(image)], prompt, answer.prompt, question.text)
    typer.echo(f"image: {image_path}")
    typer.echo(f"question: {question.text}")
    typer.echo(f"answer: {answer.text} (expected {question.answer})")
    typer.echo(f"ratio per layer: {ratios(answer.prompt.ratios)} (TTFT {answer.ttft_s * 1000:.1f} ms)")
    typer.echo(f"picture: {picture_path}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes; stages found there are not trained again.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    scale: Annotated[float, typer.Option(help="Factor on every stage's steps; 0.01 is a smoke test.")] = 1.0,
) -> None:
    """Train the demo model from scratch: under 40 minutes on two cores."""
    from zipvl_compile.demo.train import train as run

    with stage_progress() as report:
        figures = run(out, seed, report, scale=scale)
    options.print_json(figures)


@app.command()
def score(
    recipe: Annotated[str, typer.Option(help="The recipe to score, digits or digits-long.")] = RECIPE,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint to score; default: the recipe's.")] = None,
    frames: Annotated[
        list[int] | None, typer.Option(min=1, help="Ask of videos of so many frames only; repeat for several.")
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions per column.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the bundles go.")] = Path("build"),
    json_out: Annotated[Path | None, typer.Option(help="Also write the figures here.")] = None,
    overrides: options.Set = None,
) -> None:
    """Accuracy on held-out glyphs: full attention, literal ZipVL, a fixed ratio, and the recipe's own settings.

    --set changes the recipe for the last of these, to try others.
    """
    from zipvl_compile.demo.score import COLUMNS, video_columns
    from zipvl_compile.demo.score import score as ask_all
    from zipvl_serving.bundle import Bundle
    from zipvl_serving.generator import Generator
    from zipvl_serving.method import MethodParams

    source = [f"model.source={checkpoint.absolute()}"] if checkpoint else []
    literal = ["zipvl.dense_layers=0", "zipvl.force.text=false", "zipvl.force.last=1"]
    bundles = {"literal": source + literal, "shipped": source + (overrides or [])}
    generators = {}
    for name, settings in bundles.items():
        bundle = out / f"score-{Path(recipe).stem}-{name}"
        build(recipe, out=bundle, overrides=settings)
        generators[name] = Generator(Bundle.open(bundle))
    table: dict[str, dict[str, Any]] = {}
    with stage_progress() as report:
        for column in video_columns(frames) if frames else COLUMNS:
            mean_ratio = 1.0
            for label, which in _METHODS.items():
                generator = generators[which]
                params = MethodParams.defaults(generator.bundle.manifest.method)
                if label == "full":
                    params = replace(params, dense=True)
                elif label == "fixed, ratio of literal ZipVL":
                    params = replace(params, ratio_min=mean_ratio, ratio_max=mean_ratio)
                done = 0

                def on_question(label: str = label, name: str = column.name) -> None:
                    nonlocal done
                    done += 1
                    if done % 50 == 0 or done == questions:
                        report(f"{name}: {label}", done, questions, "")

                figures = ask_all(generator, column, params, questions, seed, on_question)
                mean_ratio = figures.ratio if label == "ZipVL, literal" else mean_ratio
                table.setdefault(label, {})[column.name] = asdict(figures)
    typer.echo(_markdown(table))
    if json_out:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        json_out.write_text(_json({"recipe": recipe, "seed": seed, "questions": questions, "scores": table}))


_METHODS = {
    "full": "literal",
    "ZipVL, literal": "literal",
    "fixed, ratio of literal ZipVL": "literal",
    "ZipVL, as shipped": "shipped",
}
"""Rows of the table, and the bundle that each is asked of."""


def _markdown(table: dict[str, dict[str, Any]]) -> str:
    columns = list(next(iter(table.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label, scores in table.items():
        cells = [f"{s['exact']:.3f} / {s['content']:.3f} @ {s['ratio']:.2f}" for s in scores.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2) + "\n"
