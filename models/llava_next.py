"""LLaVA-NeXT (1.6), LLaVA-NeXT-Video, LLaVA-OneVision: an image is a thumbnail and tiles, its rows end in newlines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.adapter import ModelAdapter
from prunekit.patches import Encoded, squares

__all__ = ["LlavaNextAdapter", "LlavaNextVideoAdapter", "LlavaOnevisionAdapter"]


class LlavaNextAdapter(ModelAdapter):
    """LLaVA-NeXT: CLIP runs on the thumbnail and the tiles; tiles are joined to one image, unpadded, ended by newlines.

    Values of patches go through the model's own packing, so that every visual token gets that of its patch; newline
    tokens get 0.
    """

    model_types = ("llava_next",)
    encoder = "vision_tower"
    connector = "multi_modal_projector"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.has_cls = hasattr(getattr(self.vision_tower, "embeddings", None), "class_embedding")
        self.prefix_tokens = int(self.has_cls)

    @property
    def vision_sites(self) -> int:
        return 0  # tiles are cut and joined behind the encoder: its images are not those of the sample

    @property
    def tokens_per_image(self) -> None:
        return None

    def grid_of(self, tokens: int) -> None:
        return None

    def to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        if encoded.kind == "video":
            return self.frames_to_tokens(values, encoded)
        packed, _ = self.pack(values.transpose(1, 2), encoded.inputs)
        return torch.cat(list(packed))

    def pack(self, values: Tensor, inputs: dict[str, Any]) -> Any:
        """The model's own packing of [tiles, patches, channels], with 0 for newlines."""
        core: Any = self.core
        tiles = [values.new_zeros(0)] if not len(values) else list(values.split(self.tiles(inputs)))
        newline = values.new_zeros(values.shape[-1])
        strategy = self.model.config.vision_feature_select_strategy
        return core.pack_image_features(tiles, inputs["image_sizes"], strategy, image_newline=newline)

    def tiles(self, inputs: dict[str, Any]) -> list[int]:
        """Runs of the encoder for each image: its thumbnail and its tiles."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.model.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in inputs["image_sizes"]
        ]

    def frames_to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        """Values of the patches of video frames by visual token."""
        return super().to_tokens(values, encoded)


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """LLaVA-NeXT-Video: frames are pooled by 2 x 2 patches."""

    model_types = ("llava_next_video",)

    def patches_of_tokens(self, patches: int, encoded: Encoded) -> Tensor:
        return squares(patches, self.model.config.spatial_pool_stride if encoded.kind == "video" else 1)


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """LLaVA-OneVision: SigLIP; large images are shrunk after packing, frames of a video by half along each edge.

    The values of a shrunk image are shrunk as its features are (bilinearly).
    """

    model_types = ("llava_onevision",)

    def pack(self, values: Tensor, inputs: dict[str, Any]) -> Any:
        core: Any = self.core
        newline = values.new_zeros(values.shape[-1])
        ratio = self.model.config.vision_aspect_ratio
        tiles = list(values.split(self.tiles(inputs)))
        return core.pack_image_features(tiles, inputs["image_sizes"], image_newline=newline, vision_aspect_ratio=ratio)

    def tiles(self, inputs: dict[str, Any]) -> list[int]:
        counts, number = super().tiles(inputs), inputs.get("batch_num_images")
        if number is None:
            return counts
        several = [int(n) != 1 for n in number for _ in range(int(n))]
        return [1 if alone else count for alone, count in zip(several, counts, strict=False)]

    def frames_to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        core: Any = self.core
        videos = encoded.inputs["pixel_values_videos"].shape[0]
        pooled = core.apply_pooling(values.transpose(1, 2))  # [frames, tokens, channels]
        pooled = pooled.reshape(videos, -1, pooled.shape[-1])
        return torch.nn.functional.pad(pooled, (0, 0, 0, 1)).flatten(0, 1)  # a newline ends each video
