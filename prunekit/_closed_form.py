"""Multiply-adds of the parts of a model, from their shapes alone. The traced count must agree, to the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunekit.errors import UnsupportedModelError

__all__ = ["Decoder", "Encoder", "attention", "attention_rows", "embedding_attention", "linear"]


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """A linear layer: `tokens * inputs * outputs`. Its bias is an addition, and not counted."""
    return tokens * inputs * outputs


def attention(queries: int, keys: int, heads: int, head_dim: int) -> int:
    """Q K^T and the average of V, each in full: `2 * queries * keys * heads * head_dim`.

    A causal mask does not make it less, and neither does sharing keys among heads.
    """
    return 2 * queries * keys * heads * head_dim


def attention_rows(rows: int, keys: int, heads: int, head_dim: int) -> int:
    """What a policy reads from a layer's attention: Q K^T of some rows, without V."""
    return rows * keys * heads * head_dim


def embedding_attention(tokens: int, width: int) -> int:
    """Similarity of all token states with each other: `tokens^2 * width`."""
    return tokens * tokens * width


@dataclass(frozen=True)
class Decoder:
    """Shapes of a Llama-like language model.

    Attributes:
        hidden: width D.
        intermediate: width I of the gated MLP, which has three matrices.
        heads: query heads.
        key_heads: key and value heads; fewer than `heads` under grouped-query attention.
        head_dim: width of a head; `heads * head_dim` need not be D.
        vocabulary: rows of the output head.
    """

    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """Read the shapes from a text config."""
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.hidden_size, config.intermediate_size, heads, key_heads, head_dim, config.vocab_size)

    def layer(self, tokens: int) -> int:
        """One layer: `n (2 D Dq + 2 D Dkv) + 2 n^2 Dq + 3 n D I`, Dq and Dkv the widths of all query and key heads."""
        queries, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        return (
            2 * linear(tokens, self.hidden, queries)
            + 2 * linear(tokens, self.hidden, keys)
            + attention(tokens, tokens, self.heads, self.head_dim)
            + 3 * linear(tokens, self.hidden, self.intermediate)
        )

    def rows(self, rows: int, keys: int) -> int:
        """Reading `rows` rows of a layer's attention, over `keys` keys."""
        return attention_rows(rows, keys, self.heads, self.head_dim)

    def head(self, rows: int) -> int:
        """The output head on `rows` positions."""
        return linear(rows, self.hidden, self.vocabulary)


@dataclass(frozen=True)
class Encoder:
    """Shapes of a CLIP vision encoder.

    Attributes:
        hidden: width D.
        intermediate: width I of the MLP, which has two matrices.
        heads: attention heads.
        depth: layers that run. The last ones run even where the features are those of an earlier layer.
        patches: patches of an image.
        patch_size: side of a patch in pixels.
        channels: of the image.
    """

    hidden: int
    intermediate: int
    heads: int
    depth: int
    patches: int
    patch_size: int
    channels: int

    @classmethod
    def of(cls, config: Any) -> Encoder:
        """Read the shapes from a vision config.

        Raises:
            UnsupportedModelError: the encoder is not CLIP's.
        """
        if config.model_type != "clip_vision_model":
            raise UnsupportedModelError(
                f"The closed form knows the vision encoder 'clip_vision_model', given {config.model_type!r}; count the"
                " real forward pass with prunekit.flops.count."
            )
        patches = (config.image_size // config.patch_size) ** 2
        widths = config.hidden_size, config.intermediate_size, config.num_attention_heads
        return cls(*widths, config.num_hidden_layers, patches, config.patch_size, config.num_channels)

    @property
    def tokens(self) -> int:
        """Patches and [CLS]."""
        return self.patches + 1

    def embedding(self) -> int:
        """The convolution that cuts an image into patches."""
        return linear(self.patches, self.channels * self.patch_size**2, self.hidden)

    def layer(self, tokens: int) -> int:
        """One layer: `4 n D^2 + 2 n^2 D + 2 n D I`."""
        return (
            4 * linear(tokens, self.hidden, self.hidden)
            + attention(tokens, tokens, self.heads, self.hidden // self.heads)
            + 2 * linear(tokens, self.hidden, self.intermediate)
        )

    def rows(self, rows: int, keys: int) -> int:
        """Reading `rows` rows of a layer's attention, over `keys` keys."""
        return attention_rows(rows, keys, self.heads, self.hidden // self.heads)
