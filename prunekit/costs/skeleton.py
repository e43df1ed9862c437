"""A model on the meta device, from a preset, a config or a folder: shapes of all weights, and no weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.adapter import adapter_for, supported_models
from prunekit.errors import CheckpointError, ConfigError, UnsupportedModelError, nearest
from prunekit.presets import presets

__all__ = ["Skeleton", "skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """A model without weights.

    Attributes:
        name: as the user gave it, or the name of the model's class.
        model: on the meta device, in evaluation mode.
        image: what is known of its processor, see `Preset.image`.
    """

    name: str
    model: nn.Module
    image: dict[str, Any] = field(default_factory=dict)


def skeleton(model: Any) -> Skeleton:
    """Lay out a model.

    Args:
        model: a preset's name, `tiny`, a folder with a config.json, such a file, the hub name of a model whose config
            is in the local cache, a config, or a model (whose config is taken).

    Raises:
        ConfigError: it is none of these.
        CheckpointError: config.json is missing, damaged, or not in the local cache.
        UnsupportedModelError: the model is of no supported family.
    """
    if not isinstance(model, str):
        config = getattr(model, "config", model)
        if not hasattr(config, "model_type"):
            raise ConfigError(
                f"model: {type(model).__name__} is no model, config or name; presets are {', '.join(presets())}."
            )
        return Skeleton(type(model).__name__, build(config, type(model).__name__))
    preset = presets().get(model)
    if preset is not None:
        from transformers import CONFIG_MAPPING

        values = dict(preset.config)
        config = CONFIG_MAPPING[values.pop("model_type")](**values)
        return Skeleton(model, build(config, model), preset.image)
    twin = next((each for each in presets().values() if each.hub == model), None)
    try:
        return Skeleton(model, build(_config(model), model), {} if twin is None else twin.image)
    except CheckpointError:
        if twin is None or Path(model).exists():
            raise
        return skeleton(twin.name)


def _config(model: str) -> Any:
    """Read a config.json, from disk or from the local cache of the hub."""
    from transformers import AutoConfig

    from prunekit.models.tiny import PATH

    path = str(PATH) if model == "tiny" else model
    hub = not Path(path).exists()
    if hub and (path.count("/") != 1 or path.startswith((".", "/", "~"))):
        raise ConfigError(
            f"model: there is no preset, folder or config file {model!r}; presets are {', '.join(presets())}, and"
            f" 'tiny' is the bundled model.{nearest(model, ['tiny', *presets()])}"
        )
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=hub)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if hub:
            raise CheckpointError(
                f"model: the config of {model!r} is not in the local cache; download its config.json and give the"
                f" folder, or take a preset: {', '.join(presets())}.{nearest(model.split('/')[1].lower(), presets())}"
            ) from None
        raise CheckpointError(f"model: the config.json of {model!r} cannot be read: {_brief(error)}") from None


def build(config: Any, name: str) -> nn.Module:
    """The model of a config on the meta device, under an attention that a trace sees through."""
    from transformers import AutoModelForImageTextToText

    if config.model_type not in supported_models() and type(config) not in AutoModelForImageTextToText._model_mapping:
        raise UnsupportedModelError(
            f"model: {name!r} is a model of type {config.model_type!r}; supported are"
            f" {', '.join(sorted(supported_models()))}.{nearest(config.model_type, supported_models())}"
        )
    for attention in ("sdpa", "eager"):  # the same products; a few models have no sdpa
        try:
            with torch.device("meta"):
                model: nn.Module = AutoModelForImageTextToText.from_config(config, attn_implementation=attention).eval()
        except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
            if attention == "sdpa" and isinstance(error, ValueError) and "attention" in str(error):
                continue
            raise CheckpointError(f"model: the config of {name!r} describes no model: {_brief(error)}") from None
        adapter_for(model)
        return model
    raise AssertionError("unreachable")


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
