"""Train the demo model from scratch on two CPU cores.

First the vision tower alone learns to name what is in every cell; then, with the tower frozen, projector and
decoder learn to answer: one frame, a few frames, up to 32. Every stage is seeded and leaves a state to resume from.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

from zipvl_compile.demo.model import build_model, save_checkpoint
from zipvl_compile.demo.packing import PackedBatch, pack, pixels_of
from zipvl_compile.demo.questions import VIDEO_TASKS
from zipvl_compile.demo.scenes import EMPTY, GRID, sample_scenes

Report = Callable[[str, int, int, str], None]
"""Called as report(stage, step, steps, figures) while training goes on."""


@dataclass(frozen=True)
class Stage:
    """One stage of decoder training."""

    name: str
    steps: int
    peak_lr: float
    frames: tuple[int, ...]
    tasks: dict[str, float]
    per_scene: int
    tokens: int
    """Tokens in a batch: scenes = tokens / (visual tokens + question tokens)."""

    def scenes(self, frames: int) -> int:
        return max(2, self.tokens // (GRID * GRID * frames + 14 * self.per_scene))


VISION_STEPS, VISION_BATCH, VISION_LR = 1500, 48, 2e-3
_TASKS = {"color": 3.0, "count": 3.0, "cell": 3.0, "row": 1.5, "cell_color": 1.0, "row_colors": 1.5}
_LATER = {"color": 3.0, "count": 4.0, "cell": 2.0, "row": 2.0, "row_colors": 0.5}
STAGES = (
    Stage("one frame", 1000, 2e-3, (1,), _TASKS, 12, 4600),
    Stage("a few frames", 1300, 1.5e-3, (1, 1, 2, 4), _LATER, 12, 5000),
    Stage("many frames", 2000, 1.2e-3, (1, 1, 1, 2, 4, 8, 16, 32), _LATER, 12, 5600),
)


def schedule(step: int, steps: int, peak: float) -> float:
    """Learning rate: linear warm-up over 5 % of the steps, then a cosine down to 1 % of the peak."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def _precision() -> AbstractContextManager[object]:
    """bf16 matrix products where the processor has them; fp32 elsewhere."""
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512") or torch.cpu._is_amx_tile_supported():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def _optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


def _step(optimizer: torch.optim.AdamW, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


class PatchHeads(torch.nn.Module):
    """Linear read-outs of one patch feature: digit (11), kind (9), row, column. Used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, size) for size in (11, EMPTY + 1, GRID, GRID))

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        return [head(features) for head in self.heads]


def train_vision(model: LlavaForConditionalGeneration, seed: int, steps: int, report: Report) -> float:
    """Train the vision tower to name every cell; returns the share of held-out digits it reads rightly."""
    rng = np.random.default_rng(seed)
    tower = model.model.vision_tower
    heads = PatchHeads(model.config.vision_config.hidden_size)
    optimizer = _optimizer([*tower.parameters(), *heads.parameters()])
    rows, cols = (torch.from_numpy(g.reshape(-1).copy()) for g in np.mgrid[:GRID, :GRID])
    for step in range(steps):
        scenes = sample_scenes(rng, VISION_BATCH, 1, held_out=False)
        kind = torch.from_numpy(np.stack([s.kind.reshape(-1) for s in scenes]))
        digit = torch.from_numpy(np.stack([s.digit.reshape(-1) for s in scenes])) % 11
        with _precision():
            features = tower(pixels_of(scenes)).last_hidden_state[:, 1:]
            outputs = heads(features)
        targets = (digit, kind, rows.expand_as(kind), cols.expand_as(kind))
        loss = sum(F.cross_entropy(o.float().flatten(0, 1), t.flatten()) for o, t in zip(outputs, targets, strict=True))
        _step(optimizer, loss, schedule(step, steps, VISION_LR))
        if step % 25 == 0 or step == steps - 1:
            report("vision tower", step + 1, steps, f"loss {loss.item():.3f}")
    with torch.no_grad():
        scenes = sample_scenes(np.random.default_rng(seed + 1), 256, 1, held_out=True)
        digit = torch.from_numpy(np.stack([s.digit.reshape(-1) for s in scenes]))
        read = heads(tower(pixels_of(scenes)).last_hidden_state[:, 1:])[0].argmax(-1)
        return float((read == digit)[digit >= 0].float().mean())


def answer_logits(model: LlavaForConditionalGeneration, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [answer tokens, vocabulary] and the tokens they should name; the tower carries no gradient."""
    core = model.model
    with torch.no_grad():
        patches = core.vision_tower(batch.pixels).last_hidden_state[:, 1:]
    visual = core.multi_modal_projector(patches)
    embeds = core.language_model.embed_tokens(batch.input_ids)
    is_image = batch.input_ids == model.config.image_token_id
    embeds = embeds.masked_scatter(is_image[..., None], visual.to(embeds.dtype))
    hidden = core.language_model(
        inputs_embeds=embeds, attention_mask=batch.attention_mask(), position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    asked = batch.labels >= 0
    return model.lm_head(hidden[asked]).float(), batch.labels[asked]


def train_stage(model: LlavaForConditionalGeneration, stage: Stage, seed: int, report: Report) -> None:
    """One stage of decoder training with the vision tower frozen."""
    rng = np.random.default_rng(seed)
    core = model.model
    optimizer = _optimizer([*core.multi_modal_projector.parameters(), *core.language_model.parameters()])
    for step in range(stage.steps):
        frames = int(rng.choice(stage.frames))
        tasks = {task: weight for task, weight in stage.tasks.items() if frames == 1 or task in VIDEO_TASKS}
        batch = pack(rng, stage.scenes(frames), frames, tasks, stage.per_scene, held_out=False)
        with _precision():
            logits, labels = answer_logits(model, batch)
        loss = F.cross_entropy(logits, labels)
        _step(optimizer, loss, schedule(step, stage.steps, stage.peak_lr))
        if step % 25 == 0 or step == stage.steps - 1:
            report(stage.name, step + 1, stage.steps, f"loss {loss.item():.3f}")


@torch.no_grad()
def held_out_accuracy(
    model: LlavaForConditionalGeneration, frames: int, tasks: tuple[str, ...], questions: int, seed: int
) -> dict[str, float]:
    """Exact-match accuracy per task on held-out glyphs, with full attention.

    Greedy decoding is right exactly where every teacher-forced token is, so one pass over the packed batch decides.
    """
    rng = np.random.default_rng(seed)
    right: dict[str, list[bool]] = defaultdict(list)
    while any(len(right[task]) < questions for task in tasks):
        batch = pack(rng, 8, frames, dict.fromkeys(tasks, 1.0), 8, held_out=True)
        logits, labels = answer_logits(model, batch)
        hits: Iterator[bool] = iter((logits.argmax(-1) == labels).tolist())
        for row in batch.questions:
            for question in row:
                tokens = [next(hits) for _ in range(len(question.answer.split()) + 1)]
                right[question.task].append(all(tokens))
    return {task: sum(right[task][:questions]) / questions for task in tasks}


def train(directory: Path, seed: int, report: Report, *, scale: float = 1.0) -> dict[str, object]:
    """Train every stage, resuming after the last finished one, and write the checkpoint into `directory`.

    `scale` multiplies the steps of every stage (a smoke test uses 0.01). Returns the training's figures, which are
    also written beside the checkpoint as training.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = build_model()
    work = directory / "stages"
    work.mkdir(exist_ok=True)
    figures: dict[str, object] = {"seed": seed, "scale": scale, "seconds": {}, "torch": torch.__version__}

    def run(name: str, body: Callable[[], object]) -> object:
        saved = work / f"{name.replace(' ', '_')}.pt"
        if saved.exists():
            state = torch.load(saved, weights_only=True)
            model.load_state_dict(state["model"])
            figures["seconds"][name] = state["seconds"]  # type: ignore[index]
            return state["result"]
        start = time.perf_counter()
        result = body()
        seconds = round(time.perf_counter() - start, 1)
        figures["seconds"][name] = seconds  # type: ignore[index]
        temporary = saved.with_suffix(".tmp")
        torch.save({"model": model.state_dict(), "seconds": seconds, "result": result}, temporary)
        temporary.rename(saved)
        return result

    vision_steps = max(1, int(VISION_STEPS * scale))
    figures["glyphs_read"] = run("vision tower", lambda: train_vision(model, seed, vision_steps, report))
    for number, stage in enumerate(STAGES, start=1):
        scaled = Stage(**{**stage.__dict__, "steps": max(1, int(stage.steps * scale))})
        run(stage.name, lambda scaled=scaled, number=number: train_stage(model, scaled, seed + 10 * number, report))  # type: ignore[misc]
        accuracy = held_out_accuracy(model, 1, ("color", "cell", "count", "row"), 100, seed + 5)
        report(stage.name, scaled.steps, scaled.steps, " ".join(f"{k} {v:.2f}" for k, v in accuracy.items()))
    save_checkpoint(model, directory)
    (directory / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures
