"""LLaVA: a CLIP-like vision tower, a two-layer projector and a Llama-family decoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from zipvl_compile.models.llama import MODEL_TYPES, decoder_spec
from zipvl_compile.models.require import require
from zipvl_compile.models.spec import DecoderSpec
from zipvl_serving.contract import ModelShape
from zipvl_serving.errors import InputError

_TOWERS = ("clip_vision_model", "siglip_vision_model")
_STRATEGIES = ("default", "full")


class LlavaVision(nn.Module):
    """Vision tower and projector: pixel_values float32 [images, 3, H, W] -> image_features [images, tokens, hidden]."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.vision_tower = AutoModel.from_config(
            config.vision_config, attn_implementation="sdpa", dtype=torch.get_default_dtype()
        )
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        layer = config.vision_feature_layer
        self.layers = [layer] if isinstance(layer, int) else list(layer)
        self.drop_class_token = config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        chosen = [states[layer][:, 1:] if self.drop_class_token else states[layer] for layer in self.layers]
        features: torch.Tensor = self.multi_modal_projector(torch.cat(chosen, dim=-1))
        return features


class LlavaFamily:
    """What the build needs to know of one LLaVA checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        # Before transformers reads the configuration: what it does not know it refuses with a page of names.
        text, vision = (config.get(part) or {} for part in ("text_config", "vision_config"))
        require("text_config.model_type", text.get("model_type", "llama"), MODEL_TYPES)
        require("vision_config.model_type", vision.get("model_type", "clip_vision_model"), _TOWERS)
        require("quantization_config", config.get("quantization_config"), (None,))
        self.config: LlavaConfig = LlavaConfig.from_dict(config)
        require("vision_feature_select_strategy", self.config.vision_feature_select_strategy, _STRATEGIES)
        self.decoder: DecoderSpec = decoder_spec(self.config.text_config, self.config.image_token_id)

    def first_layers(self, layers: int | None) -> LlavaFamily:
        """This model with only its first decoder layers (None: all of them); InputError where it has fewer."""
        if layers is None:
            return self
        if layers > self.decoder.layers:
            raise InputError(f"model.layers: {layers} is out of range; the checkpoint has {self.decoder.layers} layers")
        return self._with_text(num_hidden_layers=layers)

    def with_rope_theta(self, theta: float | None) -> LlavaFamily:
        """This model with another base of its rotary angles (None: its own)."""
        if theta is None:
            return self
        return self._with_text(rope_parameters={**self.config.text_config.rope_parameters, "rope_theta": theta})

    def _with_text(self, **changes: Any) -> LlavaFamily:
        changed = copy.copy(self)
        changed.config = copy.deepcopy(self.config)
        for name, value in changes.items():
            setattr(changed.config.text_config, name, value)
        changed.decoder = decoder_spec(changed.config.text_config, changed.config.image_token_id)
        return changed

    def build_vision(self) -> nn.Module:
        return LlavaVision(self.config)

    def shape(self) -> ModelShape:
        """The numbers that the graphs' contract depends on."""
        vision, decoder = self.config.vision_config, self.decoder
        patches = (vision.image_size // vision.patch_size) ** 2
        has_class_token = vision.model_type == "clip_vision_model"
        dropped = 1 if self.config.vision_feature_select_strategy == "default" else 0
        return ModelShape(
            layers=decoder.layers,
            hidden=decoder.hidden,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            vocabulary=decoder.vocabulary,
            image_channels=vision.num_channels,
            image_height=vision.image_size,
            image_width=vision.image_size,
            tokens_per_image=patches + has_class_token - dropped,
        )

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Canonical name and shape of every tensor of the checkpoint."""
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(self.config)
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def optional_tensors(self) -> tuple[str, ...]:
        """A tied head may be stored or left out."""
        return ("lm_head.weight",) if self.decoder.tied_embeddings else ()

    @staticmethod
    def checkpoint_name(parameter: str) -> str:
        """The canonical checkpoint name of a graph's parameter."""
        if parameter.startswith("decoder.lm_head."):
            return parameter.removeprefix("decoder.")
        if parameter.startswith("decoder."):
            return "model.language_model." + parameter.removeprefix("decoder.")
        return "model." + parameter
