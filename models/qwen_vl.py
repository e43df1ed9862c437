"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, the latter two also as mixtures of experts."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from prunekit.adapter import ModelAdapter
from prunekit.patches import Encoded

__all__ = ["Qwen2VLAdapter", "Qwen3VLAdapter", "Qwen25VLAdapter", "Qwen35Adapter"]


class Qwen2VLAdapter(ModelAdapter):
    """Qwen2-VL: images of any size in one sequence; four patches that follow each other make a visual token; M-RoPE.

    Attention is counted within an image, or a frame of a video.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    encoder = "visual"
    encoder_layers = "blocks"
    encoder_attention = "attn"
    connector = "visual.merger"
    packed = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.merge = int(self.model.config.vision_config.spatial_merge_size)

    def grid_of(self, tokens: int) -> None:
        return None


class Qwen25VLAdapter(Qwen2VLAdapter):
    """Qwen2.5-VL: most encoder layers look at windows, and the whole encoder runs in the order of the windows."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def patches_of_tokens(self, patches: int, encoded: Encoded) -> Tensor:
        vision = self.model.config.vision_config
        grids = encoded.inputs[f"{encoded.kind}_grid_thw"].cpu()  # read once, not number by number
        order, _ = get_vision_window_index(grids, self.merge, vision.window_size, vision.patch_size)
        return super().patches_of_tokens(patches, encoded)[order.argsort()]


class Qwen3VLAdapter(Qwen2VLAdapter):
    """Qwen3-VL: features of encoder layers are added to the states after the first decoder layers (DeepStack)."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")

    def full_length_after(self, layer: int) -> bool:
        stacked = len(self.model.config.vision_config.deepstack_visual_indexes)
        return layer < stacked or super().full_length_after(layer)


class Qwen35Adapter(Qwen2VLAdapter):
    """Qwen3.5: the encoder of Qwen3-VL without DeepStack; three of four decoder layers are recurrent."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_5_moe")
