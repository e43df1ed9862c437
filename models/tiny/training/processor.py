"""The tokenizer and the processor, made of the library's own classes."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from prunekit.models.tiny.training.words import BOS, EOS, IMAGE, PAD, TOKEN, UNKNOWN
from prunekit.scenes import IMAGE_SIZE, PATCH_SIZE

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image> ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_processor() -> LlavaProcessor:
    """Words are tokens; images must have 96x96 pixels and are only rescaled to [-1, 1]."""
    words = Tokenizer(models.WordLevel(TOKEN, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, TOKEN[BOS])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size=side,
        crop_size=side,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
