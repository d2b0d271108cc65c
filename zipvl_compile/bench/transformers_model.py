"""The same decoder with the same weights in Hugging Face transformers: what a user would run without this project."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.prompts.prompt import EncodedPrompt

if TYPE_CHECKING:
    import torch

_DECODER = "model.language_model."


class TransformersDecoder:
    """A bundle's decoder as transformers runs it: float32, SDPA attention, a KV cache, logits of the last token."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Reads config.json and the weights of the bundle, which stay mapped; threads: torch's, of this process."""
        import torch
        from transformers import AutoModelForCausalLM

        from zipvl_compile.models.registry import family

        torch.set_num_threads(threads)
        written = json.loads((bundle.processor_folder / "config.json").read_text(encoding="utf-8"))
        recipe = bundle.manifest.recipe["model"]
        whole = family(written, bundle.processor_folder)
        model = whole.first_layers(recipe.get("layers")).with_rope_theta(recipe.get("rope_theta"))
        config = model.config.text_config
        with torch.device("meta"):
            decoder = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        decoder.load_state_dict(_weights(bundle), strict=not config.tie_word_embeddings, assign=True)
        decoder.tie_weights()
        # Frequencies are computed, not stored: those made on "meta" hold nothing. These are the bundle's own.
        rotary = decoder.model.rotary_emb = type(decoder.model.rotary_emb)(config=config)
        rotary.inv_freq = torch.tensor(model.decoder.rope.inverse_frequencies, dtype=torch.float32)
        rotary.attention_scaling = model.decoder.rope.attention_factor
        self._decoder = decoder.eval()
        self._image_token = bundle.manifest.model.image_token

    def prefill(self, prompt: EncodedPrompt, features: Array | None) -> Array:
        """Run a prompt over its image features [visual, hidden] (None without images); float32 [vocabulary]."""
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(prompt.input_ids)
            embedded = self._decoder.get_input_embeddings()(ids)
            if features is not None:
                embedded[ids == self._image_token] = torch.from_numpy(features)
            outputs = self._decoder(inputs_embeds=embedded[None], use_cache=True, logits_to_keep=1)
            logits: Array = outputs.logits[0, -1].numpy().astype(np.float32, copy=False)
            return logits


def _weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    """The decoder's tensors by transformers' own names."""
    import torch
    from safetensors import safe_open

    assert bundle.manifest.engine.weights is not None  # target.check_modes
    found = {}
    with safe_open(bundle.path / bundle.manifest.engine.weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if name.startswith(_DECODER) or name.startswith("lm_head."):
                own = "model." + name.removeprefix(_DECODER) if name.startswith(_DECODER) else name
                found[own] = file.get_tensor(name).to(torch.float32)
    return found
