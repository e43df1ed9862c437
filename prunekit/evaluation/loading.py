"""Models from disk or hub: what can be known without their weights, and then the weights.

Weights are read from safetensors files only, and no code that comes with a model is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.adapter import adapter_for, supported_models
from prunekit.errors import CheckpointError, ConfigError, UnsupportedModelError, nearest
from prunekit.evaluation.experiment import ModelSpec

__all__ = ["ModelFacts", "load_model", "load_processor", "model_facts", "model_path"]


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config.json says.

    Attributes:
        name: class of the model.
        depth: decoder layers.
        tokens_per_image: visual tokens of one image, None where that depends on the image.
        grid: rows and columns of an image's visual tokens, None where that depends on the image.
        sites: where the model can be pruned.
        skeleton: the model without weights, on the meta device.
    """

    name: str
    depth: int
    tokens_per_image: int | None
    grid: tuple[int, int] | None
    sites: tuple[str, ...]
    skeleton: nn.Module


def model_path(path: str) -> str:
    """The folder or hub name that a model's `path` stands for.

    Raises:
        ConfigError: it is neither.
    """
    from prunekit.models.tiny import PATH

    if path == "tiny":
        return str(PATH)
    if Path(path).is_dir():
        return path
    looks_like_hub = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    if looks_like_hub and not path.split("/")[0].startswith("."):
        return path
    beside = [str(p) for p in Path(path).parent.glob("*") if p.is_dir()] if Path(path).parent.is_dir() else []
    raise ConfigError(
        f"model.path: {path!r} is no folder; give 'tiny', a local folder, or a hub name such as"
        f" 'llava-hf/llava-1.5-7b-hf'.{nearest(path, ['tiny', *beside])}"
    )


def model_facts(spec: ModelSpec) -> ModelFacts:
    """Read config.json and lay the model out on the meta device: no weights are read.

    Raises:
        CheckpointError: config.json is missing or damaged.
        UnsupportedModelError: the model is of no supported family.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    path = model_path(spec.path)
    try:
        config = AutoConfig.from_pretrained(path, revision=spec.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"model.path: the config.json of {spec.path!r} cannot be read: {_brief(error)}") from None
    if config.model_type not in supported_models() and type(config) not in AutoModelForImageTextToText._model_mapping:
        known = ", ".join(sorted(supported_models()))
        hint = nearest(config.model_type, supported_models())
        raise UnsupportedModelError(
            f"model.path: {spec.path!r} is a model of type {config.model_type!r}; supported are {known}.{hint}"
        )
    try:
        with torch.device("meta"):
            skeleton = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"model.path: the config.json of {spec.path!r} describes no model: {_brief(error)}"
        ) from None
    adapter = adapter_for(skeleton)
    return ModelFacts(
        name=type(skeleton).__name__,
        depth=adapter.depth,
        tokens_per_image=adapter.tokens_per_image,
        grid=adapter.grid,
        sites=tuple(adapter.sites()),
        skeleton=skeleton,
    )


def load_processor(spec: ModelSpec) -> Any:
    """The processor, with padding at the left, as `generate` needs it.

    Raises:
        CheckpointError: its files are missing or damaged.
    """
    from transformers import AutoProcessor

    try:
        path = model_path(spec.path)
        processor = AutoProcessor.from_pretrained(path, revision=spec.revision, trust_remote_code=False)
        processor.tokenizer.padding_side = "left"
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise CheckpointError(f"model.path: the processor of {spec.path!r} cannot be read: {_brief(error)}") from None
    return processor


def load_model(spec: ModelSpec) -> Any:
    """The model with its weights, in evaluation mode.

    Raises:
        CheckpointError: weights are missing, damaged, of the wrong shape, or in another format than safetensors.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            model_path(spec.path),
            revision=spec.revision,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"model.path: the weights of {spec.path!r} cannot be read: {_brief(error)}") from None
    except ImportError as error:
        raise ConfigError(f"model.attn_implementation: {_brief(error)}") from None
    finally:
        if bars:
            logging.enable_progress_bar()
    model, found = loaded
    wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if wrong:
        raise CheckpointError(
            f"model.path: {spec.path!r} lacks {len(wrong)} weights of the model, or has them in another shape,"
            f" for example {wrong[0]}."
        )
    return model.eval()


def _brief(error: BaseException) -> str:
    """The first sentence or so of another library's message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:240]}"
