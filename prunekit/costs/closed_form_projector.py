"""Multiply-adds of projectors: of one token, and which tokens there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.costs.closed_form_vision import Encoder, Grid
from prunekit.costs.products import attention, chain, linear
from prunekit.errors import UnsupportedModelError, nearest

__all__ = ["Projector"]


@dataclass(frozen=True)
class Projector:
    """What lies between vision encoder and language model.

    Attributes:
        macs: multiply-adds of one of its tokens.
        merge: patches along the edge of the square that becomes a token.
        special: whether [CLS] goes through it, too.
        counted: whether the number of its tokens follows from the encoder's patches.
    """

    macs: int
    merge: int = 1
    special: bool = False
    counted: bool = True

    @classmethod
    def of(cls, config: Any, video: bool = False) -> Projector:
        """Read the shapes from a model's config.

        Raises:
            UnsupportedModelError: nobody has compared this family's projector with the formulas.
        """
        kind = str(config.model_type)
        if kind not in PROJECTORS:
            raise UnsupportedModelError(
                f"The closed form does not know the vision encoder and projector of {kind!r}; it knows those of"
                f" {', '.join(PROJECTORS)}.{nearest(kind, PROJECTORS)} With images=0 it gives the language model alone;"
                " prunekit.flops.count counts the real forward pass."
            )
        return PROJECTORS[kind](config, video)

    def tokens(self, encoder: Encoder, images: int, grids: Sequence[Grid]) -> int:
        """Tokens of `images` images, or of images with these grids of patches."""
        if encoder.apart == "image":
            return images * (encoder.patches // self.merge**2 + encoder.special * self.special)
        return sum((grid[-2] // self.merge) * (grid[-1] // self.merge) * [1, *grid][-3] for grid in grids)


def _layers(config: Any) -> int:
    """Encoder layers whose features stand side by side."""
    named = getattr(config, "vision_feature_layer", None)
    return len(named) if isinstance(named, (list, tuple)) else 1


def _two(config: Any, edge: int = 1, **others: Any) -> Projector:
    """Two linear layers: k m^2 Dv to D to D, for k encoder layers and squares of m x m patches."""
    width, text = config.vision_config.hidden_size, config.text_config.hidden_size
    return Projector(chain(_layers(config) * edge**2 * width, text, text), edge, **others)


def _llava(config: Any, video: bool) -> Projector:
    return _two(config, special=getattr(config, "vision_feature_select_strategy", "default") == "full")


def _next_video(config: Any, video: bool) -> Projector:
    """Frames are pooled before the projector."""
    return Projector(_two(config).macs, config.spatial_pool_stride) if video else _llava(config, video)


def _mistral3(config: Any, video: bool) -> Projector:
    """Squares of patches are merged by a linear layer of their own."""
    width, edge = config.vision_config.hidden_size, config.spatial_merge_size
    return Projector(chain(width * edge**2, width) + _two(config).macs, edge)


def _gated(config: Any, video: bool) -> Projector:
    """A pixel shuffle and an MLP whose first layer makes values and gates at once."""
    edge, text = config.downsample_factor, config.text_config.hidden_size
    inner = getattr(config, "alignment_intermediate_size", text)
    return Projector(chain(edge**2 * config.vision_config.hidden_size, inner) + chain(inner // 2, text), edge)


def _gemma3(config: Any, video: bool) -> Projector:
    """Squares are averaged, and projected."""
    vision = config.vision_config
    edge = vision.image_size // vision.patch_size // int(config.mm_tokens_per_image**0.5)
    return Projector(chain(vision.hidden_size, config.text_config.hidden_size), edge)


def _idefics3(config: Any, video: bool) -> Projector:
    width = config.scale_factor**2 * config.vision_config.hidden_size
    return Projector(chain(width, config.text_config.hidden_size), config.scale_factor)


def _ovis2(config: Any, video: bool) -> Projector:
    """Weights of the visual vocabulary times its embeddings."""
    return Projector(chain(config.vision_config.vocab_size, config.hidden_size), config.vision_config.hidden_stride)


def _molmo2(config: Any, video: bool) -> Projector:
    """A query a token, their mean, over the features of 2 x 2 patches (3 x 3 of a frame); then a gated MLP."""
    c, pool = config.adapter_config, 9 if video else 4
    features, queries = c.hidden_size * len(c.vision_feature_layer), c.num_attention_heads * c.head_dim
    pooling = linear(1, features, queries) + 2 * linear(pool, features, c.num_key_value_heads * c.head_dim)
    pooling += attention(1, pool, c.num_attention_heads, c.head_dim) + linear(1, queries, c.hidden_size)
    mlp = 2 * linear(1, c.hidden_size, c.intermediate_size) + linear(1, c.intermediate_size, c.text_hidden_size)
    return Projector(pooling + mlp, counted=False)


def _none(config: Any, video: bool) -> Projector:
    """Its mergers lie inside the encoder."""
    return Projector(0)


PROJECTORS: dict[str, Callable[[Any, bool], Projector]] = {
    "aya_vision": _gated,
    "cohere2_vision": _gated,
    "deepseek_vl": lambda config, video: _two(config),
    "gemma3": _gemma3,
    "glm4v": _none,
    "glm4v_moe": _none,
    "idefics3": _idefics3,
    "internvl": lambda config, video: _two(config, round(1 / config.downsample_ratio)),
    "llava": _llava,
    "llava_next": _llava,
    "llava_next_video": _next_video,
    "llava_onevision": _llava,
    "mistral3": _mistral3,
    "molmo2": _molmo2,
    "ovis2": _ovis2,
    "paligemma": lambda config, video: Projector(
        chain(config.vision_config.hidden_size, config.vision_config.projection_dim)
    ),
    "qwen2_5_vl": _none,
    "qwen2_vl": _none,
    "qwen3_vl": _none,
    "qwen3_vl_moe": _none,
    "smolvlm": _idefics3,
    "video_llava": lambda config, video: _two(config, special=video),
    "vipllava": lambda config, video: _two(config),
}
"""By `model_type` of the model's config; the second argument is whether the images are frames of videos."""
