"""What is measured: a model with its weights or with random ones, and a prompt of one image for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.errors import ConfigError, MeasurementError, PrunekitError, nearest
from prunekit.evaluation.data import to_device
from prunekit.evaluation.experiment import ModelSpec
from prunekit.evaluation.loading import load_model, load_processor, model_facts
from prunekit.latency.machine import check_memory

__all__ = ["Source", "at_length", "find", "prepare"]


@dataclass(frozen=True, eq=False)
class Source:
    """A model that can be built, and the inputs of one sample.

    Attributes:
        skeleton: the model without weights.
        build: makes it with weights, on a device.
        inputs: makes the sample, given the built model.
    """

    skeleton: nn.Module
    build: Callable[[torch.device], nn.Module]
    inputs: Callable[[nn.Module], dict[str, Tensor]]


def find(
    name: str, *, random: bool = False, sizes: Mapping[str, int] | None = None, dtype: str, attention: str, text: int
) -> Source:
    """What a model's name stands for; nothing is read but configs.

    Raises:
        ConfigError: there is no such model, or sizes are given for one that has its own.
        CheckpointError: its config is missing or damaged.
        UnsupportedModelError: it cannot be pruned.
    """
    from prunekit.models.tiny.builders import BUILDERS

    family = random and name in BUILDERS and not Path(name).is_dir()
    if sizes and not family:
        raise ConfigError(
            f"size: {name!r} has sizes of its own; sizes go with --random and a family: {', '.join(BUILDERS)}."
        )
    if family:
        return _family(name, dict(sizes or {}), dtype, attention)
    return _random(name, dtype, attention, text) if random else _weights(name, dtype, attention)


def prepare(source: Source, device: torch.device, batch: int, text: int, decode: int) -> tuple[Any, dict[str, Tensor]]:
    """The model on its device, and the inputs of one sample with `text` tokens that are not visual.

    Raises:
        MeasurementError: the device has not enough memory, or no prompt can be that short.
    """
    adapter, dtype = adapter_for(source.skeleton), next(source.skeleton.parameters()).dtype
    check_memory(adapter, dtype, device, batch, (adapter.tokens_per_image or 0) + text + decode)
    model = source.build(device)
    inputs = to_device(source.inputs(model), model)
    return model, at_length(inputs, adapter_for(model), text)


def at_length(inputs: Mapping[str, Tensor], adapter: ModelAdapter, text: int) -> dict[str, Tensor]:
    """Inputs with `text` tokens that are not visual: the last one, of text, is repeated.

    Raises:
        MeasurementError: the prompt has more already.
    """
    ids = inputs["input_ids"]
    present = int((~adapter.visual_mask(ids, None)).sum())
    if text < present:
        raise MeasurementError(f"text_tokens: {text} is too few; the shortest prompt with an image has {present}.")

    def longer(value: Tensor) -> Tensor:
        return torch.cat([value, *[value[:, -1:]] * (text - present)], dim=1) if value.shape == ids.shape else value

    return {name: longer(value) for name, value in inputs.items()}


# --- kinds of models -------------------------------------------------------------------------------------------------


def _weights(name: str, dtype: str, attention: str) -> Source:
    """A folder, a hub name or `tiny`, with its weights and its processor."""
    spec = ModelSpec(path=name, dtype=dtype, attn_implementation=attention)  # type: ignore[arg-type]
    skeleton = model_facts(spec).skeleton.to(getattr(torch, dtype))

    def inputs(model: nn.Module) -> dict[str, Tensor]:
        import numpy as np
        from PIL import Image

        processor = load_processor(spec)
        size = int(getattr(model.config.vision_config, "image_size", 336))  # type: ignore[union-attr]
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        text = f"USER: {processor.image_token} ? ASSISTANT:"
        try:
            return dict(processor(images=[Image.fromarray(noise)], text=[text], return_tensors="pt"))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model: its processor refuses one image with text: {error}") from None

    return Source(skeleton, lambda device: load_model(spec).to(device), inputs)


def _random(name: str, dtype: str, attention: str, text: int) -> Source:
    """A preset, a config or a folder, with random weights and ids in place of a text."""
    from prunekit.costs.prompt import make_prompt
    from prunekit.costs.skeleton import skeleton

    found = skeleton(name)

    def build(device: torch.device) -> nn.Module:
        from transformers import AutoModelForImageTextToText

        torch.manual_seed(0)
        config: Any = found.model.config
        with torch.device(device):
            made: nn.Module = _attending(
                lambda: AutoModelForImageTextToText.from_config(
                    config, dtype=getattr(torch, dtype), attn_implementation=attention
                )
            )
        return made.eval()

    def inputs(model: nn.Module) -> dict[str, Tensor]:
        made = make_prompt(found, adapter_for(found.model), text, 1, None, 1).inputs
        generator = torch.Generator().manual_seed(0)
        noise = {name: torch.randn(value.shape, generator=generator) for name, value in made.items() if _pixels(value)}
        return made | noise

    return Source(found.model.to(getattr(torch, dtype)), build, inputs)


def _pixels(value: Tensor) -> bool:
    return value.is_floating_point()


def _family(name: str, sizes: dict[str, Any], dtype: str, attention: str) -> Source:
    """A random model of a family at any size."""
    from prunekit.models.tiny.builders import BUILDERS, tiny_random
    from prunekit.models.tiny.builders.common import Sizes

    builder = getattr(import_module(f"prunekit.models.tiny.builders.{BUILDERS[name]}"), name)
    named = [key for key, p in inspect.signature(builder).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    known = [*named, *(key for key in Sizes.__dataclass_fields__ if key not in ("std", "attn_implementation"))]
    for key in sizes:
        if key not in known:
            raise ConfigError(f"size: {name} has no {key!r}; allowed are {', '.join(known)}.{nearest(key, known)}")
        if key in Sizes.__dataclass_fields__ and sizes[key] < 1:
            raise ConfigError(f"size: {key}={sizes[key]}; allowed are whole numbers from 1.")

    def made() -> tuple[nn.Module, Any]:
        both: tuple[nn.Module, Any] = _attending(
            lambda: tiny_random(name, std=0.02, attn_implementation=attention, **sizes)
        )
        return both

    def build(device: torch.device) -> nn.Module:
        model = made()[0].to(device)
        for weight in model.parameters():  # tables of positions stay as they are: some are complex
            weight.data = weight.data.to(getattr(torch, dtype))
        return model

    try:
        with torch.device("meta"):
            skeleton, make_inputs = made()
    except (ArithmeticError, AssertionError, RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
        if not sizes or isinstance(error, PrunekitError):
            raise
        given = " ".join(f"{key}={value}" for key, value in sizes.items())
        raise ConfigError(
            f"size: no model of {name} has {given} ({' '.join(str(error).split())[:240]}); sizes that are not given"
            " stay as they are: heads have to divide widths."
        ) from None
    return Source(skeleton.to(getattr(torch, dtype)), build, lambda model: dict(make_inputs(text=1)))


def _attending(build: Callable[[], Any]) -> Any:
    """Build a model, which its family may not have under the attention that is asked for."""
    try:
        return build()
    except (ValueError, ImportError) as error:
        if "attention" not in str(error).lower():
            raise
        raise ConfigError(f"attention: {' '.join(str(error).split())[:240]}") from None
