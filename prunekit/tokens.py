"""What a policy sees (`VisualTokens`), what it asks for (`Needs`, `Rows`) and what it answers (`Selection`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunekit.errors import BudgetError, NeedsError, nearest
from prunekit.keep import Keep
from prunekit.patches import Image

__all__ = ["Keys", "Needs", "Queries", "Rows", "Selection", "VisualTokens"]

Queries = Literal["cls", "visual", "last", "text", "instruction"]


@dataclass(frozen=True)
class Rows:
    """A set of attention rows: which queries, of which layer, and how they are summed up.

    Attributes:
        queries: `cls` and `visual` are rows of the vision encoder; `last` (the last token), `text` (every text token
            after the last visual one) and `instruction` (`text` without its last `cue` tokens) are rows of the
            language model.
        layer: the layer whose attention is read; negative counts from the end. None stands for the site's own: in the
            vision encoder the layer that produces the features (at `vision.<i>`: layer i), in the language model the
            last layer before the site in which text sees more than a window before it.
        reduce: `mean` averages over heads and rows, in chunks, so that memory grows linearly with the tokens; None
            hands over every head and row.
        cue: tokens at the end of the prompt that belong to the chat template's cue for the answer and not to the
            instruction (`ASSISTANT:` is 1 token for the bundled model and 5 for LLaVA-1.5's tokenizer).
    """

    queries: Queries
    layer: int | None = None
    reduce: Literal["mean"] | None = None
    cue: int = 1

    def __post_init__(self) -> None:
        allowed = get_args(Queries)
        if self.queries not in allowed:
            raise NeedsError(
                f"Rows({self.queries!r}): queries are {', '.join(allowed)}.{nearest(self.queries, allowed)}"
            )
        if self.cue < 0:
            raise NeedsError(f"Rows(cue={self.cue}): must be at least 0.")

    @property
    def of_vision(self) -> bool:
        """Whether these are rows of the vision encoder."""
        return self.queries in ("cls", "visual")


@dataclass(frozen=True)
class Keys:
    """The attention keys of the visual tokens, as the layer's attention receives them (after rotary embedding).

    Attributes:
        layer: the layer whose keys are read; negative counts from the end. None stands for the site's own (see `Rows`).
        of_vision: whether it is a layer of the vision encoder or of the language model; None: of the encoder at
            `vision.<i>` and `input`, of the language model at `decoder.<i>`.
    """

    layer: int | None = None
    of_vision: bool | None = None

    @property
    def queries(self) -> str:
        """Names them in messages, as `Rows.queries` does."""
        return "keys"


@dataclass(frozen=True, init=False)
class Needs:
    """What a policy reads besides the hidden states, declared so that it can be checked before anything runs.

    Attributes:
        attention: row sets, each a `Rows` or the short name of its queries.
        keys: the attention keys of the visual tokens; True for those of the site's own layer.
        text: whether the states of the text tokens are read.
    """

    attention: tuple[Rows, ...] = ()
    keys: Keys | None = None
    text: bool = False

    def __init__(
        self, attention: Rows | str | Iterable[Rows | str] = (), keys: Keys | bool = False, text: bool = False
    ) -> None:
        items = [attention] if isinstance(attention, (Rows, str)) else list(attention)
        rows = tuple(item if isinstance(item, Rows) else Rows(item) for item in items)  # type: ignore[arg-type]
        object.__setattr__(self, "attention", rows)
        object.__setattr__(self, "keys", (Keys() if keys else None) if isinstance(keys, bool) else keys)
        object.__setattr__(self, "text", text)


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of a batch at one site.

    Rows may hold different numbers of tokens: `valid` marks the real ones, which come first. At `vision.<i>` a batch
    row is an image; elsewhere it is a sample.

    Attributes:
        hidden: states at the site, [batch, visual, dim].
        source: original number of each token within its row, [batch, visual]; -1 where not valid.
        valid: which entries are tokens, [batch, visual].
        total: original number of visual tokens of each row (host integers).
        counts: number of tokens of each row now (host integers).
        attention: attention from the needed rows to these tokens, softmax over all keys that the row sees, in float32:
            [batch, visual] with `reduce="mean"`, otherwise [batch, heads, rows, visual] with rows that do not exist set
            to 0. Keys are the `Rows` of `needs` and the plain names of their queries.
        keys: attention keys, [batch, key heads, visual, head_dim], or None if not asked for.
        text: states of the text tokens, [batch, text, dim], or None if not asked for.
        text_valid: which entries of `text` are tokens, [batch, text].
        grid: rows and columns of the tokens of one image, if all images have the same; or None.
        per_image: visual tokens of one image, if all images have as many; or None.
        images: the images of each row, in order; None where they cannot be told apart.
        alive: tokens of each of these images that are left; None where that depends on what a policy decided.
        memory: scratch that all stages of one prefill share; policies themselves are frozen.
    """

    hidden: Float[Tensor, "batch visual dim"]
    source: Int[Tensor, "batch visual"]
    valid: Bool[Tensor, "batch visual"]
    total: tuple[int, ...]
    counts: tuple[int, ...]
    attention: Mapping[Rows | str, Float[Tensor, "..."]] = field(default_factory=dict)
    keys: Float[Tensor, "batch heads visual head_dim"] | None = None
    text: Float[Tensor, "batch text dim"] | None = None
    text_valid: Bool[Tensor, "batch text"] | None = None
    grid: tuple[int, int] | None = None
    per_image: int | None = None
    images: tuple[tuple[Image, ...], ...] | None = None
    alive: tuple[tuple[int, ...], ...] | None = None
    memory: dict[str, object] = field(default_factory=dict)

    def budget(self, keep: Keep) -> tuple[int, ...]:
        """Tokens that `keep` asks of each row. A ratio never asks for more than the roundings of earlier stages left.

        Raises:
            BudgetError: a number of tokens is above what a row has left; a budget per image where images cannot be told
                apart.
        """
        if keep.per == "image":
            return tuple(map(sum, self.budget_per_image(keep)))
        asked = tuple(keep.count(total) for total in self.total)
        if keep.ratio is not None:
            return tuple(map(min, asked, self.counts))
        if any(count > there for count, there in zip(asked, self.counts, strict=True)):
            raise BudgetError(f"Keep({keep}): the rows have only {list(self.counts)} visual tokens left.")
        return asked

    def budget_per_image(self, keep: Keep) -> tuple[tuple[int, ...], ...]:
        """Tokens that a budget per image asks of each image of each row.

        Raises:
            BudgetError: images cannot be told apart; an earlier stage left an image a number that depends on the data.
        """
        if self.images is None:
            if any(self.total) and self.per_image is None:
                raise BudgetError(
                    f"Keep({keep}): where one image of a sample ends and the next begins is not known for this model or"
                    " these inputs; use a budget per sample."
                )
            size = self.per_image or 1
            images = tuple((Image(size, self.grid),) * (total // size) for total in self.total)
        else:
            images = self.images
        alive = self.alive
        if alive is None:
            if self.counts != self.total:
                raise BudgetError(
                    f"Keep({keep}): an earlier stage decided for whole samples, so that images have nothing certain"
                    " left; give that stage a budget per image too."
                )
            alive = tuple(tuple(image.tokens for image in row) for row in images)
        return tuple(
            tuple(min(keep.count(image.tokens), left) for image, left in zip(row, rest, strict=True))
            for row, rest in zip(images, alive, strict=True)
        )

    def left_per_image(self, keep: Keep | None) -> tuple[tuple[int, ...], ...] | None:
        """Tokens of each image after this budget, None where the policy decides how they are spread over images."""
        if keep is not None and keep.per == "image":
            return self.budget_per_image(keep)
        return tuple((count,) for count in self.budget(keep)) if keep is not None and self._one_each else None

    @property
    def _one_each(self) -> bool:
        return self.images is not None and all(len(row) == 1 for row in self.images)

    def image_number(self) -> Int[Tensor, "batch visual"]:
        """The number of each token's image within its row; 0 where images cannot be told apart."""
        if self.images is None:
            return self.source.clamp(min=0) // (self.per_image or 2**31)
        ends = [list(accumulate(image.tokens for image in row)) for row in self.images]
        widest = max(map(len, ends))
        bounds = torch.tensor([[*row, *[2**31] * (widest - len(row))] for row in ends], device=self.source.device)
        return (self.source[..., None] >= bounds[:, None]).sum(-1)


@dataclass(frozen=True)
class Selection:
    """Which tokens stay.

    Attributes:
        kept: positions among the tokens the policy saw (not original numbers), ascending, [batch, kept]; -1 fills
            rows that keep fewer, at the right.
        counts: tokens kept by each row, as host integers; None lets the core read them from `kept`.
        scores: what the ranking was made from, [batch, visual], for the trace; or None.
        owner: for merging, the slot in `kept` that each token is averaged into, [batch, visual]; -1 drops it. A kept
            token owns itself.
        weight: for merging, the weight of each token in its owner's average, [batch, visual]; None means 1.
    """

    kept: Int[Tensor, "batch kept"]
    counts: tuple[int, ...] | None = None
    scores: Float[Tensor, "batch visual"] | None = None
    owner: Int[Tensor, "batch visual"] | None = None
    weight: Float[Tensor, "batch visual"] | None = None

    @classmethod
    def everything(cls, tokens: VisualTokens) -> Selection:
        """The selection that keeps all tokens."""
        index = torch.arange(tokens.source.shape[1], device=tokens.source.device)
        return cls(torch.where(tokens.valid, index, -1), tokens.counts)
