"""One spelling for the tensors of a LLaVA checkpoint, whichever version of transformers wrote it.

Canonical names are the keys of `LlavaForConditionalGeneration(config).state_dict()` in transformers 5. Files spell
them otherwise: published checkpoints and `save_pretrained` of every version put the decoder under
`language_model.model.` and leave out the leading `model.`; files from before transformers 5 also have a
`vision_model.` level in the vision tower.
"""

from __future__ import annotations

import re

# Applied in this order, each at most once, every one to the outcome of those before it.
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^(language_model|vision_tower|multi_modal_projector)\."), r"model.\1."),
    (re.compile(r"^model\.vision_tower\.vision_model\."), "model.vision_tower."),
)

# Older versions saved these; the model computes them from its configuration.
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids)$")


def canonical_name(stored: str) -> str:
    """The canonical name of a tensor stored as `stored`; a canonical name is its own, an unknown one is kept."""
    for pattern, replacement in _RENAMES:
        stored = pattern.sub(replacement, stored)
    return stored


def is_computed(name: str) -> bool:
    """Whether `name` (in any spelling) is a buffer that the model computes and no checkpoint needs."""
    return _COMPUTED.search(name) is not None
