"""What each model family offers, found out by pruning its tiny random model: the parts of `docs/models.md`.

Whatever a table says of a family was tried when the page was built. An error that prunekit does not raise on purpose
stops the build.
"""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from page_parts import quietly
from torch import Tensor

from prunekit import Keep, Needs, Rows, ScoringPolicy, Stage, VisualTokens, prune
from prunekit.adapter import ModelAdapter, supported_models
from prunekit.errors import PrunekitError, PruningWarning, UnsupportedModelError
from prunekit.models import ADAPTERS
from prunekit.models.tiny.builders import BUILDERS, tiny_random
from prunekit.patches import Encoded, squares
from prunekit.policies import CrossAttention, Random, SelfAttention

RELEASED: dict[str, str] = json.loads(Path(__file__).with_name("released.json").read_text(encoding="utf-8"))
"""Released models that the code of transformers names as examples of a family; none where it names none."""

HALF = Keep(ratio=0.5)
NO = "no"


@dataclass(frozen=True)
class EveryRow(ScoringPolicy):
    """Reads every row of the encoder's attention instead of their average."""

    needs = Needs(Rows("visual"))

    def score(self, tokens: VisualTokens) -> Tensor:
        scores: Tensor = tokens.attention["visual"].mean((1, 2))
        return scores


class Family:
    """A family's tiny random model, and what came of pruning it: each property is a cell of a table."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.make_inputs = tiny_random(name)
        config: Any = self.model.config
        self.model_type: str = config.model_type
        self.refused: dict[str, str] = {}
        self.adapter: Any = None
        try:
            self.adapter = supported_models().get(self.model_type, ModelAdapter)(self.model)
        except UnsupportedModelError as error:
            why = str(error).partition("cannot be pruned: ")[2]
            self.refused["the family"] = why[:1].upper() + why[1:]

    @cached_property
    def served(self) -> bool:
        """Whether the family can be pruned at all."""
        return self.adapter is not None and self.several != NO

    @property
    def name_and_parts(self) -> tuple[str, str]:
        """Its type; what it consists of, in the words of its builder, with its form where forms of a type differ."""
        module = importlib.import_module(f"prunekit.models.tiny.builders.{BUILDERS[self.name]}")
        words = " ".join(inspect.cleandoc(module.__doc__ or "").partition("\n\n")[0].split())
        form, colon, _ = (getattr(module, self.name).__doc__ or "").partition(":")
        form = f" {form}." if colon and form.startswith("The ") else ""
        return f"`{self.model_type}`", f"{words.partition('. ')[0].rstrip('.')}.{form}"

    @property
    def rest(self) -> str:
        """Names of what is refused."""
        return ", ".join(self.refused)

    def works(self, what: str, inputs: Any, *stages: Stage, generate: bool = False, **kwargs: Any) -> bool:
        """Whether the model runs in this session; if not, the reason is noted as that of `what`."""
        model: Any = self.model
        try:
            with warnings.catch_warnings(), torch.no_grad(), prune(model, *stages, **kwargs):
                warnings.simplefilter("error", PruningWarning)
                model.generate(**inputs, max_new_tokens=2, do_sample=False) if generate else model(**inputs)
        except (PrunekitError, PruningWarning) as error:
            if what:
                self.refused.setdefault(what, str(error))
            return False
        return True

    @property
    def deeper(self) -> tuple[Stage, ...]:
        """A stage between decoder layers that reads the attention of the one before; none where that cannot be."""
        layers = [layer for layer in range(self.adapter.depth) if self.adapter.keys_of(layer) is not None]
        site = f"decoder.{layers[0] + 1}" if layers else ""
        return (Stage(site, CrossAttention(), HALF),) if site in self.adapter.sites() else ()

    @cached_property
    def several(self) -> str:
        """Several images in a sample, by forward and by `generate`; whether each can have a budget of its own."""
        inputs = self.make_inputs(batch=2, images=(2, 1))
        stages = (Stage("input", Random(), HALF), *self.deeper)
        if not self.works("several images", inputs, *stages):
            return NO
        self.works("`generate`", inputs, *stages, generate=True)
        alone = Stage("input", Random(), Keep(tokens=1, per="image"))
        if not self.works("`Keep(per='image')`", inputs, alone):
            return "one budget"
        with torch.no_grad(), prune(self.model, alone) as session:
            self.model(**inputs)
        return "tile by tile" if session.trace[-1].kept.shape[1] > 2 else "yes"

    @cached_property
    def video(self) -> str:
        """Videos, and whether the encoder can be read while it sees one."""
        if self.make_inputs.video is None:
            return "not tried" if self.adapter.video_ids else NO
        inputs = self.make_inputs(images=0, videos=1)
        if not self.works("videos", inputs, Stage("input", Random(), HALF)):
            return NO
        if self.encoder and not self.works(
            "encoder attention of videos", inputs, Stage("input", SelfAttention(), HALF)
        ):
            return "yes, not its attention"
        return "yes"

    @cached_property
    def positions(self) -> str:
        """What the position of a token is."""
        stage = Stage("input", Random(), HALF)
        compact = self.works("compact positions", self.make_inputs(), stage, positions="compact")
        if self.adapter._several_positions:
            return "M-RoPE"
        return "1-D" if compact else "1-D, original only"

    @property
    def cells(self) -> list[str]:
        """The cells of a family with an adapter."""
        encoder = [self.cls, self.encoder or NO, self.patches or NO]
        return [*encoder, self.several, self.video, self.positions, self.inside, self.rest]

    @cached_property
    def cls(self) -> str:
        """Whether the row of [CLS] can be read."""
        return "yes" if self.works("", self.make_inputs(), Stage("input", SelfAttention("cls"), HALF)) else NO

    @cached_property
    def encoder(self) -> str:
        """Encoder layers whose attention can be read, and which one is read by default."""
        depth, inputs = self.adapter.vision_depth, self.make_inputs(batch=2, images=(2, 1))
        able = [self.works("", inputs, Stage("input", SelfAttention(layer=at), HALF)) for at in range(depth)]
        if not any(able):
            return ""
        assert all(able), f"{self.name}: layers that can be read: {able}"
        from_end = ("last", "last but one", "last but two")[depth - 1 - self.adapter.feature_layer]
        whole = self.works("every row of encoder attention", inputs, Stage("input", EveryRow(), HALF))
        return f"all; {from_end}" + ("" if whole else "; averages")

    @cached_property
    def inside(self) -> str:
        """Whether tokens can be dropped inside the encoder."""
        sites = range(max(1, self.adapter.vision_sites))
        stages = [Stage(f"vision.{at}", Random(), HALF) for at in sites]
        inputs = self.make_inputs(batch=2, images=(2, 1))
        return "yes" if all(self.works("`vision.<i>`", inputs, stage) for stage in stages) else NO

    @cached_property
    def patches(self) -> str:
        """What a visual token is made of, read off the map from values of patches to values of tokens."""
        if not self.encoder:
            return ""
        owns, runs = self._owns()
        counts = set(owns.sum(1).tolist())
        if counts == {0, 1}:
            return "a patch; newlines have none"
        if len(counts) > 1:
            return "some patches"
        groups = owns.nonzero()[:, 1].view(len(owns), -1)
        if counts == {1}:
            assert torch.equal(groups[:, 0], torch.arange(len(owns))), self.name
            return "a patch"
        if bool((groups.diff(dim=1) == 1).all()):
            ordered = bool((groups[:, 0].diff() > 0).all())
            return "neighbours in the sequence" + ("" if ordered else ", windows in turn")
        raster = squares(owns.shape[1] // runs, round(groups.shape[1] ** 0.5)).sort(1).values
        assert torch.equal(groups[: len(raster)], raster), self.name
        return "a square of patches"

    def _owns(self) -> tuple[Tensor, int]:
        """Which patches each visual token of the default image is made of, and how often the encoder ran."""
        adapter, shapes = self.adapter, []

        def note(module: Any, args: Any, kwargs: Any) -> None:
            shapes.append((args[0] if args else kwargs["hidden_states"]).shape)

        method, inputs = adapter.core.get_image_features, self.make_inputs()
        accepted = {name: inputs[name] for name in inspect.signature(method).parameters if name in inputs}
        handle = adapter.vision_layers[0].register_forward_pre_hook(note, with_kwargs=True)
        try:
            with torch.no_grad():
                output = method(**accepted)
        finally:
            handle.remove()
        first = shapes[0]
        runs, each = (1, first[:-1].numel()) if adapter.packed else (first[0], first[1] - adapter.prefix_tokens)
        counts = adapter.image_tokens(output.pooler_output, accepted)
        ones = torch.eye(runs * each).view(runs * each, runs, each).transpose(0, 1)
        return adapter.to_tokens(ones, Encoded("image", accepted, output, counts, sum(counts))) > 0, runs


@cache
def family(name: str) -> Family:
    """A family by the name of its builder; built once."""
    return Family(name)


# --- what the page is made of ----------------------------------------------------------------------------------------


def matrix() -> list[list[str]]:
    """A row for each family with an adapter; types that share one, and all they offer, share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    with quietly():
        for adapter in ADAPTERS:
            for name in adapter.model_types:
                rows.setdefault((adapter.model_types[0], *family(name).cells), []).append(name)
    return [
        [
            "<br>".join(f"[`{name}`](#{key[0]})" for name in names),
            "<br>".join(RELEASED[name] for name in names if name in RELEASED),
            *key[1:],
        ]
        for key, names in rows.items()
    ]


def sections() -> str:
    """A section for each adapter: what it says of itself, and what its families refuse."""
    matrix()  # tries everything
    parts = []
    for adapter in ADAPTERS:
        module = importlib.import_module(adapter.__module__)
        text, _, raises = inspect.cleandoc(adapter.__doc__ or "").partition("\nRaises:\n")
        where = f"models/{adapter.__module__.rpartition('.')[2]}.py"
        parts += [
            f"### {', '.join(f'`{name}`' for name in adapter.model_types)} {{ #{adapter.model_types[0]} }}",
            inspect.cleandoc(module.__doc__ or ""),
            text,
            f"[`{adapter.__name__}`](docs/api/adapter.md#prunekit.models.{adapter.__name__}), in `{where}`.",
        ]
        found = {what: why for name in adapter.model_types for what, why in family(name).refused.items()}
        lines = [f"- {what}: {why}" for what, why in found.items()]
        lines += [f"- a model, if {line.partition('Error: ')[2]}" for line in raises.splitlines() if "Error: " in line]
        if lines:
            parts.append("Refused:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def others() -> list[list[str]]:
    """A row for each family without an adapter that the general one serves."""
    with quietly():
        found = [each for each in _without_adapter() if each.served]
        return [[*each.name_and_parts, each.several, each.video, each.positions, each.rest] for each in found]


def reasons() -> str:
    """Why the families of `others` refuse what they refuse; the text of the page speaks of compact positions."""
    others()  # tries everything
    found = [(each, what, why) for each in _without_adapter() if each.served for what, why in each.refused.items()]
    lines = [f"- `{each.model_type}`, {what}: {why}" for each, what, why in found if what != "compact positions"]
    return "\n".join(lines)


def refused() -> list[list[str]]:
    """A row for each family that is refused, with the reason from the error."""
    with quietly():
        found = [each for each in _without_adapter() if not each.served]
    return [[*each.name_and_parts, next(iter(each.refused.values()))] for each in found]


def _without_adapter() -> list[Family]:
    served = {name for adapter in ADAPTERS for name in adapter.model_types}
    return [family(name) for name in BUILDERS if name not in served]
