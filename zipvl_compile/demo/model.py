"""The demo model's shape, tokenizer and processor; all in Hugging Face's own formats."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from zipvl_compile.demo.questions import VOCABULARY
from zipvl_compile.demo.scenes import CELL, GRID, SIDE

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER :' }}{% else %}{{ ' ASSISTANT :' }}{% endif %}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ ' <image>' }}{% else %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ ' </s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT :' }}{% endif %}"
)


def build_config() -> LlavaConfig:
    """A LLaVA of 1.2 M parameters: one visual token per grid cell, GQA 2:1 in the decoder."""
    vision = CLIPVisionConfig(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256, image_size=SIDE,
        patch_size=CELL,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=128, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=320, max_position_embeddings=32768, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=VOCABULARY.index("<s>"), eos_token_id=VOCABULARY.index("</s>"),
        pad_token_id=VOCABULARY.index("<pad>"), initializer_range=0.04,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=VOCABULARY.index("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
    )  # fmt: skip


def build_model() -> LlavaForConditionalGeneration:
    """A freshly initialised model; seed torch first for a repeatable one."""
    return LlavaForConditionalGeneration(build_config())


def build_processor(side: int = SIDE, patch: int = CELL) -> LlavaProcessor:
    """Tokenizer (one word, one token), image processor (`side` pixels square, in patches of `patch`), chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, model_max_length=32768, padding_side="left",
    )  # fmt: skip
    image_processor = CLIPImageProcessorPil(
        size={"height": side, "width": side}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=patch,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def save_checkpoint(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Write an fp16 Hugging Face checkpoint that loads offline through AutoProcessor and AutoModel."""
    disable_progress_bar()
    model.half().save_pretrained(directory)
    build_processor().save_pretrained(directory)
