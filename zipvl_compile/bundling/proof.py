"""Does a checkpoint fit together, and does what was built from it compute? Asked at build, not at the first request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import ModelShape
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.manifest import Manifest
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.sessions.base import open_as_served


def check_processor(processor: PromptProcessor, folder: Path, shape: ModelShape) -> None:
    """InputError, naming the checkpoint's folder, where its processor makes what its model cannot take."""
    prompt = processor.encode(f"{processor.image_token} ?", [Image.new("RGB", (shape.image_width, shape.image_height))])
    pixels, wanted = prompt.pixel_values.shape[1:], (shape.image_channels, shape.image_height, shape.image_width)
    if pixels != wanted:
        raise InputError(f"{folder}: the processor makes images of {pixels}, the vision tower takes {wanted}")
    visual = int(np.count_nonzero(~prompt.is_text))
    if visual != shape.tokens_per_image:
        raise InputError(
            f"{folder}: the processor writes {visual} image tokens per image, the model gives {shape.tokens_per_image} "
            "features; check patch_size, num_additional_image_tokens and vision_feature_select_strategy"
        )
    beyond = [token for token in (*prompt.input_ids.tolist(), *processor.eos_token_ids) if token >= shape.vocabulary]
    if beyond:
        raise InputError(f"{folder}: the tokenizer uses token {beyond[0]}, the model has {shape.vocabulary}")


def prove(folder: Path, manifest: Manifest) -> Generator:
    """Answer a prompt with an image on the fresh engines; ZipvlError where they cannot."""
    bundle = Bundle(folder, manifest)
    generator = Generator(bundle, open_as_served(bundle))
    shape = manifest.model.shape
    image = Image.effect_noise((shape.image_width, shape.image_height), 64)
    prompt = generator.processor.encode(f"{generator.processor.image_token} ?", [image])
    if len(prompt.input_ids) > manifest.limits.max_input_tokens:
        return generator  # a bundle for text alone, or for smaller images than the model's own
    result, _ = generator.prefill(prompt)
    if not np.isfinite(result.logits).all():
        raise ZipvlError("the built model gives logits that are not finite; does the checkpoint hold NaN or Inf?")
    generator.answer(prompt, SamplingParams(max_new_tokens=min(2, manifest.limits.max_new_tokens)))
    return generator
