"""Write a trained network the way any Hugging Face checkpoint is written, and load it like a user would."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from prunekit.models.tiny.training.network import configuration
from prunekit.models.tiny.training.processor import build_processor
from prunekit.models.tiny.training.words import BOS, EOS, PAD, TOKEN

FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def export(network: Any, folder: Path) -> None:
    """Half precision weights, configuration, tokenizer and processor.  The network itself stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    copy: Any = LlavaForConditionalGeneration(configuration())
    copy.load_state_dict(network.state_dict())
    copy.generation_config = GenerationConfig(
        bos_token_id=TOKEN[BOS],
        eos_token_id=TOKEN[EOS],
        pad_token_id=TOKEN[PAD],
        max_new_tokens=4,
        do_sample=False,
    )
    copy.half().save_pretrained(folder)
    build_processor().save_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """The exported model in single precision, and its processor."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor: Any = AutoProcessor
    return model.eval(), processor.from_pretrained(folder)


def ship(source: Path, target: Path) -> None:
    """Copy an exported model over the shipped one."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
