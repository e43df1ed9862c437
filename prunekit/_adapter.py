"""Adapters name the parts of a model family; they copy no forward.

The base class finds the language model, its layers and the placeholders of any model that follows transformers'
conventions, which is all that pruning at `input` and `decoder.<i>` needs. A family's own adapter adds what cannot be
found: where the vision encoder is, and how its patches become visual tokens. Everything else (hooks, gathering, masks,
caches) is the session's and the same for all families.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit._language import LanguageModel
from prunekit.errors import SiteError, UnsupportedModelError, nearest
from prunekit.patches import Encoded, squares
from prunekit.plan import Shape, Site

__all__ = ["ModelAdapter"]


class ModelAdapter(LanguageModel):
    """Names of the parts of one loaded model.

    As it stands it serves unknown families, at `input` and `decoder.<i>`. A family's adapter is a subclass that sets
    the class attributes below and overrides what differs.

    Attributes:
        model_types: values of `config.model_type` that this adapter serves.
        encoder: path of the vision encoder from `core`; empty where its inside is out of reach.
        encoder_layers: path of its list of layers from the encoder.
        encoder_attention: path of the attention module from one of its layers.
        connector: path of the module between vision encoder and language model from `core`; empty if there is none.
        prefix_tokens: tokens before the patches inside the encoder ([CLS], registers); they always stay.
        has_cls: whether the first of them is a [CLS] token.
        merge: patches along each edge of the square that becomes one visual token.
        packed: whether the encoder runs on the patches of all images in one sequence.
        model: the model.

    Raises:
        UnsupportedModelError: the model lacks what pruning needs; the message says what.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    encoder: str = ""
    encoder_layers: str = "encoder.layers"
    encoder_attention: str = "self_attn"
    connector: str = ""
    prefix_tokens: int = 0
    has_cls: bool = False
    merge: int = 1
    packed: bool = False

    def full_length_after(self, layer: int) -> bool:
        """Whether the model itself works on the states that a decoder layer returns, and so expects all columns.

        Behind the final norm they are put back in every model. For language models that nobody has looked at it is
        true everywhere: that costs one copy a layer.
        """
        unknown = type(self) is ModelAdapter and not self.hands_on
        sharing = layer == self.owning - 1 < self.depth - 1  # the model may hand on the last columns only
        return unknown or sharing or (layer == self.depth - 1 and self.norm is None)

    # --- modules of the vision encoder -------------------------------------------------------------------------------

    @property
    def vision_tower(self) -> nn.Module | None:
        """The vision encoder, None where the adapter does not know it."""
        return self._part(self.core, "encoder") if self.encoder else None

    @property
    def vision_layers(self) -> nn.ModuleList | None:
        """The layers of the vision encoder, in order."""
        tower = self.vision_tower
        return None if tower is None else self._part(tower, "encoder_layers")  # type: ignore[return-value]

    def vision_attention(self, layer: nn.Module) -> nn.Module:
        """The self-attention module of a layer of the encoder."""
        return self._part(layer, "encoder_attention")

    @property
    def projector(self) -> nn.Module | None:
        """The module between vision encoder and language model."""
        return self._part(self.core, "connector") if self.connector else None

    def _part(self, root: nn.Module, field: str) -> nn.Module:
        """The module at the path that is the value of a class attribute."""
        path: str = getattr(self, field)
        try:
            return root.get_submodule(path)
        except AttributeError:
            near = nearest(path, (name for name, _ in root.named_modules() if name.count(".") == path.count(".")))
            raise UnsupportedModelError(
                f"{type(self).__name__}.{field} is {path!r}, but {type(root).__name__} has no such module.{near}"
            ) from None

    def check_paths(self) -> None:
        """Raise `UnsupportedModelError` where a class attribute names no module of this model."""
        for layer in self.vision_layers or ():
            self.vision_attention(layer)
        _ = self.projector

    @property
    def vision_depth(self) -> int:
        """Number of layers of the vision encoder; 0 where the adapter does not know it."""
        layers = self.vision_layers
        return 0 if layers is None else len(layers)

    @property
    def feature_layer(self) -> int:
        """The encoder layer whose output becomes the visual tokens; of several the last.

        `hidden_states[0]` is the encoder's input, `hidden_states[i]` the output of layer i - 1.
        """
        config = self.model.config  # ViP-LLaVA's has the plural before transformers 5.23
        named = getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", None))
        layers = [-1] if named is None else [named] if isinstance(named, int) else list(named)
        return max(layer if layer >= 0 else self.vision_depth + 1 + layer for layer in layers) - 1

    # --- visual tokens -----------------------------------------------------------------------------------------------

    def image_tokens(self, features: Any, inputs: dict[str, Any]) -> tuple[int, ...] | None:
        """Visual tokens of each image (or video) that `get_image_features` was given; None if they cannot be told.

        Args:
            features: what it returned as `pooler_output`: a tensor [images, tokens, dim], or one tensor an image. Where
                it is one tensor a sample (the mask of tiles says so), tiles are told apart as images.
            inputs: what it was given, by name.
        """
        if isinstance(features, Tensor):
            grids = [value for name, value in inputs.items() if name.endswith("_grid_thw") and value is not None]
            given = max(map(len, grids), default=0)
            joined = features.ndim != 3 or given > features.shape[0]  # all images in one sequence
            return None if joined else (int(features.shape[-2]),) * int(features.shape[0])
        sizes = tuple(int(each.shape[0] if each.ndim == 2 else each.shape[:-1].numel()) for each in features)
        tiles = inputs.get("pixel_attention_mask")
        if tiles is None or tiles.ndim != 2 or len(tiles) != len(sizes):
            return sizes
        return tuple(
            size // count for size, count in zip(sizes, tiles.sum(-1).tolist(), strict=True) for _ in range(count)
        )

    def grid_of(self, tokens: int) -> tuple[int, int] | None:
        """Rows and columns of an image's visual tokens, row by row; None where they form no grid. Default: a square."""
        side = round(tokens**0.5)
        return (side, side) if self.encoder and side * side == tokens else None

    @property
    def tokens_per_image(self) -> int | None:
        """Visual tokens of one image, None where that depends on the image."""
        vision = getattr(self.model.config, "vision_config", None)
        size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if self.packed or not self.encoder or not isinstance(size, int) or not isinstance(patch, int):
            return None
        return int(size // patch // self.merge) ** 2

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the visual tokens of one image, None where that depends on the image."""
        return None if self.tokens_per_image is None else self.grid_of(self.tokens_per_image)

    def patches_of_tokens(self, patches: int, encoded: Encoded) -> Tensor:
        """Which patches of the encoder's sequence become which visual token, [tokens, patches of a token].

        The default are the `merge` x `merge` squares of a square raster; where the encoder is packed, patches of a
        token follow each other.

        Args:
            patches: patches of one image; of all images where the encoder is packed.
            encoded: what the encoder was given.
        """
        if self.packed:
            return torch.arange(patches).view(-1, self.merge**2)
        return squares(patches, self.merge)

    def packed_tokens(self, encoded: Encoded) -> tuple[int, ...]:
        """Visual tokens of each image of a packed encoder, before it runs; here from `image_grid_thw` (`video_...`)."""
        grids: Tensor = encoded.inputs[f"{encoded.kind}_grid_thw"]
        return tuple((grids.prod(-1) // self.merge**2).tolist())

    def to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        """Turn values of patches into values of visual tokens: averages over `patches_of_tokens`.

        Families that rearrange tokens behind the encoder (tiles, newlines) override this.

        Args:
            values: [images, channels, patches]; of a packed encoder [1, channels, patches of all images].
            encoded: what the encoder was given, and what came out.

        Returns:
            [tokens of all images, channels]; a token without patches has 0.
        """
        index = self.patches_of_tokens(int(values.shape[-1]), encoded).to(values.device)
        return values[..., index].mean(-1).transpose(1, 2).flatten(0, 1)

    # --- sites -------------------------------------------------------------------------------------------------------

    @property
    def vision_sites(self) -> int:
        """How many sites `vision.0`, `vision.1`, ... the encoder offers."""
        return 0 if self.vision_tower is None else self.feature_layer + 1

    @property
    def shape(self) -> Shape:
        """How many layers the model has; methods are laid out by it."""
        depth = self.vision_depth
        return Shape(self.depth, depth, self.feature_layer if depth else -1)

    @property
    def masked_encoder(self) -> bool:
        """Whether the layers of the vision encoder take an attention mask with a row an image."""
        layers = self.vision_layers
        if layers is None or self.packed:
            return False
        return "attention_mask" in inspect.signature(layers[0].forward).parameters

    @property
    def connector_site(self) -> bool:
        """Whether the projector is given one row an image, so that `connector` is a site."""
        return bool(self.connector and self.vision_sites) and not self.packed

    def sites(self) -> list[str]:
        """All sites of this model, in the order of the forward pass."""
        encoder = [f"vision.{i}" for i in range(self.vision_sites)] + ["connector"] * self.connector_site
        return [*encoder, "input", *(f"decoder.{i}" for i in range(1, self.last_site + 1))]

    def check_site(self, site: Site) -> None:
        """Raise `SiteError` where this model cannot offer a site."""
        if str(site) in self.sites():
            return
        name, count = type(self.model).__name__, self.vision_sites
        allowed = f"'vision.0' to 'vision.{count - 1}', " if count else ""
        allowed += "'connector', " * self.connector_site + "'input'"
        allowed += f" and 'decoder.1' to 'decoder.{self.last_site}'" * (self.last_site > 0)
        raise SiteError(f"{str(site)!r}: {self._why_not(name, site)}; allowed are {allowed}.")

    def _why_not(self, name: str, site: Site) -> str:
        if site.part == 2:
            return f"later layers of {name} share the keys of layer {self.last_site}, and have to hold the same tokens"
        if self.vision_tower is None:
            return f"no adapter names the layers of the vision encoder of {name}"
        if not self.vision_sites:
            return f"the patches of {name} are rearranged between its vision encoder and its visual tokens"
        if site.kind == "connector":
            return f"the projector of {name} is not given one row of features an image"
        return f"{name} takes its visual tokens from layer {self.feature_layer} of its vision encoder"
