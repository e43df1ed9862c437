"""What a policy reads besides the states at its site: `Needs`, made of `Rows` (attention) and `States`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from prunekit.errors import NeedsError, nearest

__all__ = ["Keys", "Needs", "Queries", "Rows", "States"]

Queries = Literal["cls", "visual", "image", "last", "text", "instruction"]
Reduce = Literal["mean", "max"]
Kind = Literal["hidden", "key", "value", "embedding", "normed"]
Of = Literal["visual", "text", "cls"]


@dataclass(frozen=True)
class Rows:
    """A set of attention rows: which queries, of which layer, and how they are summed up.

    Attributes:
        queries: `cls` and `visual` are rows of the vision encoder; `image` (the visual tokens), `last` (the last
            token), `text` (every text token after the last visual one) and `instruction` (`text` without its last
            `cue` tokens) are rows of the language model.
        layer: the layer whose attention is read; negative counts from the end. None stands for the site's own: in the
            vision encoder the layer that produces the features (at `vision.<i>`: layer i), in the language model the
            last layer before the site in which text sees more than a window before it.
        reduce: `mean` averages over heads and rows, in chunks, so that memory grows linearly with the tokens; `max`
            takes the largest of the heads and averages over rows; None hands over every head and row.
        cue: tokens at the end of the prompt that belong to the chat template's cue for the answer and not to the
            instruction (`ASSISTANT:` is 1 token for the bundled model and 5 for LLaVA-1.5's tokenizer).
        joined: whether all heads count as one wide one: the softmax is over products of all of them, divided by the
            root of their total width.
        ahead: read the layer AFTER the site, `decoder.<i>`'s layer i, on the states at the site, as if nothing were
            pruned there. Costs that layer's query and key projections once more.
    """

    queries: Queries
    layer: int | None = None
    reduce: Reduce | None = None
    cue: int = 1
    joined: bool = False
    ahead: bool = False

    def __post_init__(self) -> None:
        allowed = get_args(Queries)
        if self.queries not in allowed:
            raise NeedsError(
                f"Rows({self.queries!r}): queries are {', '.join(allowed)}.{nearest(self.queries, allowed)}"
            )
        if self.reduce is not None and self.reduce not in get_args(Reduce):
            raise NeedsError(f"Rows(reduce={self.reduce!r}): allowed are 'mean', 'max' and None.")
        if self.cue < 0:
            raise NeedsError(f"Rows(cue={self.cue}): must be at least 0.")
        if self.ahead and (self.of_vision or self.layer is not None):
            raise NeedsError(
                "Rows(ahead=True) reads the decoder layer after the site: give no layer and no encoder rows."
            )

    @property
    def of_vision(self) -> bool:
        """Whether these are rows of the vision encoder."""
        return self.queries in ("cls", "visual")

    @property
    def of_layer(self) -> bool:
        """Whether they are read while a layer runs."""
        return not self.ahead


@dataclass(frozen=True)
class States:
    """States of tokens at some layer.

    Attributes:
        kind: `hidden` is the output of a layer; `key` and `value` are what a layer's attention receives (keys after
            rotary embedding); `embedding` is what entered the language model; `normed` are the states at the site,
            put through the language model's final norm.
        layer: the layer that is read; negative counts from the end. None stands for the site's own (see `Rows`). Has no
            meaning for `embedding` and `normed`.
        of_vision: whether it is a layer of the vision encoder or of the language model; None: of the encoder before the
            language model, of the language model at `decoder.<i>`.
        of: whose states: those of the `visual` tokens, of the `text` tokens (of the language model, in the order of
            `VisualTokens.text`), or of the encoder's [CLS] (at `vision.<i>` and `connector`).
    """

    kind: Kind
    layer: int | None = None
    of_vision: bool | None = None
    of: Of = "visual"

    def __post_init__(self) -> None:
        for name, value, allowed in (("kind", self.kind, get_args(Kind)), ("of", self.of, get_args(Of))):
            if value not in allowed:
                raise NeedsError(
                    f"States({name}={value!r}): allowed are {', '.join(allowed)}.{nearest(str(value), allowed)}"
                )
        if self.kind in ("embedding", "normed") and (self.layer is not None or self.of_vision or self.of == "cls"):
            raise NeedsError(f"States({self.kind!r}): of the language model's tokens, and of no layer.")

    def at(self, part: int) -> States:
        """With `of_vision` told, for a stage in this part of the model (see `Site`)."""
        return replace(self, of_vision=part < 2) if self.of_vision is None and self.of_layer else self

    @property
    def of_layer(self) -> bool:
        """Whether they are read in a layer."""
        return self.kind in ("hidden", "key", "value")

    @property
    def queries(self) -> str:
        """Names them in messages, as `Rows.queries` does."""
        name = {"key": "keys", "value": "values"}.get(self.kind, f"{self.kind} states")
        return name + ("" if self.of == "visual" else f" of {self.of}")


def Keys(layer: int | None = None, of_vision: bool | None = None) -> States:
    """The attention keys of the visual tokens: `States("key", ...)`, handed over as `VisualTokens.keys`."""
    return States("key", layer, of_vision)


@dataclass(frozen=True, init=False)
class Needs:
    """What a policy reads besides the hidden states, declared so that it can be checked before anything runs.

    Attributes:
        attention: row sets, each a `Rows` or the short name of its queries.
        keys: the attention keys of the visual tokens; True for those of the site's own layer.
        text: whether the states of the text tokens are read.
        states: further states, see `States`.
        patches: whether the patch of each token is read (`VisualTokens.patches`).
        side: names of tensors that the user hands to the session (`session.side`).
        bias: whether the policy weighs later attention inside the vision encoder (`Selection.bias`).
    """

    attention: tuple[Rows, ...] = ()
    keys: States | None = None
    text: bool = False
    states: tuple[States, ...] = ()
    patches: bool = False
    side: tuple[str, ...] = ()
    bias: bool = False

    @property
    def all_states(self) -> tuple[States, ...]:
        """`states`, and `keys` among them."""
        return self.states if self.keys is None else (*self.states, self.keys)

    @property
    def of_text(self) -> bool:
        """Whether anything of the text tokens is read."""
        return self.text or any(wanted.of == "text" for wanted in self.states)

    def __init__(
        self,
        attention: Rows | str | Iterable[Rows | str] = (),
        keys: States | bool = False,
        text: bool = False,
        *,
        states: States | Iterable[States] = (),
        patches: bool = False,
        side: str | Iterable[str] = (),
        bias: bool = False,
    ) -> None:
        items = [attention] if isinstance(attention, (Rows, str)) else list(attention)
        rows = tuple(item if isinstance(item, Rows) else Rows(item) for item in items)  # type: ignore[arg-type]
        object.__setattr__(self, "attention", rows)
        object.__setattr__(self, "keys", (Keys() if keys else None) if isinstance(keys, bool) else keys)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "states", (states,) if isinstance(states, States) else tuple(states))
        object.__setattr__(self, "patches", patches)
        object.__setattr__(self, "bias", bias)
        object.__setattr__(self, "side", (side,) if isinstance(side, str) else tuple(side))
