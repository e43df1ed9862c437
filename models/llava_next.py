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
        sizes: list[list[int]] = torch.as_tensor(encoded.inputs["image_sizes"]).tolist()
        packed, _ = self.pack(values.transpose(1, 2), sizes, encoded.inputs.get("batch_num_images"))
        return torch.cat(list(packed))

    def pack(self, values: Tensor, sizes: list[list[int]], grouped: Any) -> Any:
        """The model's own packing of [tiles, patches, channels], with 0 for newlines.

        Args:
            values: one row a run of the encoder.
            sizes: height and width of each image.
            grouped: numbers of images of the samples, where the family asks for them.
        """
        core: Any = self.core
        tiles, newline = list(values.split(self.tiles(sizes))), values.new_zeros(values.shape[-1])
        strategy = self.model.config.vision_feature_select_strategy
        return core.pack_image_features(tiles, sizes, strategy, image_newline=newline)

    def tiles(self, sizes: list[list[int]]) -> list[int]:
        """Runs of the encoder for each image: its thumbnail and its tiles."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.model.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in sizes
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

    def pack(self, values: Tensor, sizes: list[list[int]], grouped: Any) -> Any:
        core: Any = self.core
        counts, newline = self.tiles(sizes), values.new_zeros(values.shape[-1])
        if grouped is not None:  # an image among several of its sample is not tiled
            alone = [number == 1 for number in torch.as_tensor(grouped).tolist() for _ in range(number)]
            counts = [count if tiled else 1 for tiled, count in zip(alone, counts, strict=False)]
        ratio, tiles = self.model.config.vision_aspect_ratio, list(values.split(counts))
        return core.pack_image_features(tiles, sizes, image_newline=newline, vision_aspect_ratio=ratio)

    def frames_to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        core: Any = self.core
        videos = encoded.inputs["pixel_values_videos"].shape[0]
        pooled = core.apply_pooling(values.transpose(1, 2))  # [frames, tokens, channels]
        pooled = pooled.reshape(videos, -1, pooled.shape[-1])
        return torch.nn.functional.pad(pooled, (0, 0, 0, 1)).flatten(0, 1)  # a newline ends each video
