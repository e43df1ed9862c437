"""Mistakes that depend on the model family: models, sites, needs, positions and inputs that do not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from catalogue import Subject, subject
from invariants import generate
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from prunekit import Keep, Needs, Rows, ScoringPolicy, Stage, VisualTokens, prune
from prunekit.errors import (
    NeedsError,
    PruningWarning,
    SessionError,
    SiteError,
    UnsupportedInputError,
    UnsupportedModelError,
)
from prunekit.models.tiny.builders import tiny_random
from prunekit.policies import STAR, CrossAttention, FasterVLM, Random, SelfAttention

HALF = Keep(ratio=0.5)
INPUT = Stage("input", Random(), HALF)
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


# --- models ----------------------------------------------------------------------------------------------------------


class Holder(nn.Module):
    """A module with a model inside, as training frameworks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = subject("llava", "sdpa").model
        self.config = self.inner.config


def clip() -> nn.Module:
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config={"vocab_size": 20, **SMALL, **ids}, vision_config=vision))


class Nothing(PreTrainedModel):  # type: ignore[misc]
    """A model of nobody's family."""

    config_class = PreTrainedConfig

    def __init__(self) -> None:
        super().__init__(PreTrainedConfig())
        self.layer = nn.Linear(2, 2)


NO_TOKENS = r"names no placeholder for images, such as image_token_id"
T5_SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "Llama": (
        lambda: LlamaForCausalLM(LlamaConfig(vocab_size=20, **SMALL)),
        rf"LlamaForCausalLM \(model_type 'llama'\).*{NO_TOKENS}.*supported are.*Did you mean 'llava'\?",
    ),
    "Bert": (lambda: BertModel(BertConfig(vocab_size=20, **SMALL)), rf"BertModel \(model_type 'bert'\).*{NO_TOKENS}"),
    "CLIP": (clip, rf"CLIPModel \(model_type 'clip'\).*{NO_TOKENS}"),
    "an encoder": (lambda: subject("llava", "sdpa").model.model.vision_tower, rf"'clip_vision_model'.*{NO_TOKENS}"),
    "a decoder": (lambda: subject("llava", "sdpa").model.model.language_model, rf"LlamaModel.*{NO_TOKENS}"),
    "T5": (lambda: T5ForConditionalGeneration(T5Config(vocab_size=20, **T5_SIZES)), r"'t5'.*encoder-decoder"),
    "of nobody": (Nothing, rf"Nothing.*{NO_TOKENS}"),
    "a module": (lambda: nn.Linear(2, 2), r"Linear is no model of transformers; supported are.*llava"),
    "a holder": (Holder, r"Holder is no model of transformers; supported are.*llava"),
    "a class": (lambda: LlamaForCausalLM, r"the class LlamaForCausalLM is no model of transformers"),
    "florence2": (lambda: tiny_random("florence2")[0], r"Florence2.*'florence2'.*is an encoder-decoder model"),
    "mllama": (lambda: tiny_random("mllama")[0], r"Mllama.*'mllama'.*looks at images by cross-attention"),
    "gemma3n": (lambda: tiny_random("gemma3n")[0], r"Gemma3n.*several streams of states"),
    "inkling": (lambda: tiny_random("inkling")[0], r"Inkling.*layers of the kind hybrid, which keep a recurrent state"),
    "minimax": (lambda: tiny_random("minimax_m3_vl")[0], r"MiniMaxM3.*kind minimax_m3_sparse, which attend to blocks"),
    "pi0": (lambda: tiny_random("pi0")[0], r"PI0.*a whole vision-language model inside it"),
    "kosmos2_5": (lambda: tiny_random("kosmos2_5")[0], rf"Kosmos2_5.*'kosmos-2\.5'.*{NO_TOKENS}"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_pruned(name: str) -> None:
    """Each is refused before a hook is placed, with what it is, why, and what can be pruned."""
    make, text = MODELS[name]
    with pytest.raises(UnsupportedModelError, match=f"(?s){text}") as caught:
        prune(make(), INPUT)
    message = str(caught.value)
    assert "supported are" in message
    assert "qwen2_vl" in message
    assert ("Did you mean" in message) == (name == "Llama")  # a text model by mistake; other names are no misspellings


@pytest.mark.parametrize("family", ["blip_2", "instructblip"])
@torch.no_grad()
def test_families_whose_generate_bypasses_their_forward(family: str) -> None:
    model, make_inputs = tiny_random(family)
    with prune(model, INPUT) as session:
        model(**make_inputs())
        assert [record.kept.shape[1] for record in session.trace] == [8]
        with pytest.raises(UnsupportedInputError, match=r"Call the whole model; .*cannot generate in a session"):
            model.generate(**make_inputs(), max_new_tokens=2)
        model(**make_inputs())
    assert len(session.trace) == 2


# --- sites, needs and positions --------------------------------------------------------------------------------------

DECODER = r"'input' and 'decoder\.1' to 'decoder\.3'"
SITES = {
    (
        "llava",
        "vision.99",
    ): rf"from layer 2 of its vision encoder; allowed are 'vision\.0' to 'vision\.2', 'connector', {DECODER}",
    ("qwen2_5_vl", "vision.99"): rf"allowed are 'vision\.0' to 'vision\.3', {DECODER}",
    ("gemma3", "vision.3"): rf"allowed are 'vision\.0' to 'vision\.2', 'connector', {DECODER}",
    ("qwen2_vl", "connector"): rf"the projector of Qwen2VL.* not given one row.*allowed are .*, {DECODER}",
    ("llava_next", "connector"): rf"LlavaNext.*are rearranged between its vision encoder.*allowed are {DECODER}",
    ("llava_next", "vision.0"): rf"LlavaNext.*are rearranged between its vision encoder.*allowed are {DECODER}",
    ("molmo2", "vision.0"): rf"Molmo2.*are rearranged between its vision encoder.*allowed are {DECODER}",
    ("fast_vlm", "vision.0"): rf"no adapter names the layers.*FastVlm.*allowed are {DECODER}",
    ("smolvlm", "decoder.99"): r"the language model has 4 layers; allowed are 'decoder\.1' to 'decoder\.3'",
    ("mistral3", "decoder.4"): r"the language model has 4 layers; allowed are 'decoder\.1' to 'decoder\.3'",
}


@pytest.mark.parametrize(("family", "site"), SITES)
def test_sites_that_a_family_does_not_have(family: str, site: str) -> None:
    with pytest.raises(SiteError, match=rf"^'{site}': .*{SITES[family, site]}"):
        prune(subject(family, "sdpa").model, Stage(site, Random(), HALF))


@dataclass(frozen=True)
class HiddenNorm(ScoringPolicy):
    """Asks for something that it does not use."""

    needs: Needs

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.hidden.norm(dim=-1)


NO_CLS = r"reads the attention of \[CLS\], but the vision encoder of {} has no \[CLS\] token; read 'visual' instead"
OUT_OF_REACH = r"at 'input' reads '{}' of the vision encoder, but no adapter names.*allowed are policies that read"
ONE_SEQUENCE = r"reads every row of 'visual'.*all images in one sequence; use Rows\(\.\.\., reduce='mean'\)"
EVERY_ROW = Stage("input", HiddenNorm(Needs(attention=Rows("visual"))), HALF)
CLS = Stage("input", SelfAttention(queries="cls"), HALF)
NEEDS: dict[str, tuple[str, Any, str]] = {
    "[CLS] of smolvlm": ("smolvlm", CLS, "SelfAttention " + NO_CLS.format("SmolVLM.*")),
    "[CLS] of qwen3_vl": ("qwen3_vl", CLS, "SelfAttention " + NO_CLS.format("Qwen3VL.*")),
    "[CLS] inside gemma3": (
        "gemma3",
        Stage("vision.1", SelfAttention(queries="cls"), HALF),
        NO_CLS.format("Gemma3.*"),
    ),
    "fastervlm on molmo2": ("molmo2", FasterVLM(keep=0.5), NO_CLS.format("Molmo2.*")),
    "star on fast_vlm": ("fast_vlm", STAR(keep=0.5), "SelfAttention " + OUT_OF_REACH.format("visual")),
    "[CLS] of fast_vlm": ("fast_vlm", CLS, "SelfAttention " + OUT_OF_REACH.format("cls")),
    "keys of perception_lm": (
        "perception_lm",
        Stage("input", HiddenNorm(Needs(keys=True)), HALF),
        "HiddenNorm " + OUT_OF_REACH.format("keys"),
    ),
    "every row of qwen2_vl": ("qwen2_vl", EVERY_ROW, "HiddenNorm " + ONE_SEQUENCE),
    "every row of mistral3": ("mistral3", EVERY_ROW, "HiddenNorm " + ONE_SEQUENCE),
    "a layer of internvl": (
        "internvl",
        Stage("input", SelfAttention(layer=7), HALF),
        r"SelfAttention at 'input' reads the attention of layer 7, but allowed are 0 to 2",
    ),
    "a layer of the decoder": (
        "llava_next",
        Stage("decoder.2", CrossAttention(layer=3), HALF),
        r"CrossAttention at 'decoder\.2' reads the attention of layer 3, but allowed are 0 to 1",
    ),
}


@pytest.mark.parametrize(("family", "item", "text"), NEEDS.values(), ids=NEEDS)
def test_needs_that_a_family_does_not_meet(family: str, item: Any, text: str) -> None:
    with pytest.raises(NeedsError, match=text):
        prune(subject(family, "sdpa").model, item)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "gemma3", "molmo2"])
def test_positions_that_cannot_be_numbered_anew(family: str) -> None:
    """M-RoPE has several axes; Gemma 3 and Molmo 2 have tables that differ between layers."""
    model = subject(family, "sdpa").model
    text = rf"positions='compact' needs one rotary position.*{type(model).__name__}.*Use positions='original'\."
    with pytest.raises(SessionError, match=text):
        prune(model, INPUT, positions="compact")
    prune(model, INPUT)


# --- inputs ----------------------------------------------------------------------------------------------------------

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "llava_next", "internvl", "smolvlm", "gemma3", "mistral3", "molmo2")
MEDIA = ("pixel", "image")  # how the names of what an image brings begin


def media(name: str) -> bool:
    return name.startswith(MEDIA)


def mixed(text: dict[str, Tensor], images: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text of one prompt with the images of another."""
    return {name: value for name, value in text.items() if not media(name)} | {
        name: value for name, value in images.items() if media(name)
    }


def shifted(model: Subject, by: int) -> dict[str, Tensor]:
    """A prompt with one placeholder more or less than its image has visual tokens."""
    inputs = dict(model.make_inputs())
    first = int((inputs["input_ids"][0] == model.family.image_token).int().argmax())
    length = inputs["input_ids"].shape[1]
    columns = [*range(first), *([first] * (1 + by)), *range(first + 1, length)]
    return {name: value if media(name) else value[:, columns] for name, value in inputs.items()}


def uneven(model: Subject) -> dict[str, Tensor]:
    """Two rows with an image each, of which the second has taken a placeholder of the first."""
    inputs = dict(model.make_inputs(batch=2))
    visual = inputs["input_ids"] == model.family.image_token
    first, word = int(visual[0].int().argmax()), int(visual[1].int().argmin())
    for name, value in inputs.items():
        if not media(name):
            inputs[name] = value.clone()
            inputs[name][0, first], inputs[name][1, word] = value[1, word], value[0, first]
    return inputs


WRONG: dict[str, Callable[[Subject], dict[str, Tensor]]] = {
    "a token too few": lambda model: shifted(model, -1),
    "a token too many": lambda model: shifted(model, 1),
    "an image too few": lambda model: mixed(model.make_inputs(images=2), model.make_inputs()),
    "an image too many": lambda model: mixed(model.make_inputs(), model.make_inputs(images=2)),
    "no image for a row": lambda model: mixed(model.make_inputs(batch=2), model.make_inputs()),
    "an image without placeholders": lambda model: mixed(words(model), model.make_inputs()),
    "a token in the wrong row": uneven,
}


def words(model: Subject) -> dict[str, Tensor]:
    inputs = model.make_inputs()
    columns = inputs["input_ids"][0] != model.family.image_token
    return {name: value[:, columns] for name, value in inputs.items() if not media(name)}


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_placeholders_that_do_not_fit_the_images(family: str, call: str) -> None:
    """The error comes before the model's own, says how many there are, and the session goes on."""
    model = subject(family, "sdpa")
    with prune(model.model, INPUT):
        expected = generate(model.model, model.make_inputs(), 2).sequences
    with prune(model.model, INPUT) as session:
        for name, make in WRONG.items():
            inputs = make(model)
            with pytest.raises(UnsupportedInputError, match=r"placeholders.*(every|Every) row needs") as caught:
                model.model(**inputs) if call == "forward" else generate(model.model, inputs, 2)
            held = (inputs["input_ids"] == model.family.image_token).sum(-1).tolist()
            assert "cannot be numbered" in str(caught.value) or f"hold {held} placeholders" in str(caught.value), name
        assert session.trace == []
        assert torch.equal(generate(model.model, model.make_inputs(), 2).sequences, expected)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_placeholders_without_images_are_warned_of(family: str) -> None:
    """Transformers runs such a prompt; so does a session, which says that nothing was pruned, and why."""
    model = subject(family, "sdpa")
    inputs = {name: value for name, value in model.make_inputs().items() if not media(name)}
    held = int((inputs["input_ids"] == model.family.image_token).sum())
    with warnings.catch_warnings(record=True) as caught, prune(model.model, INPUT) as session:
        warnings.simplefilter("always")
        assert torch.equal(model.model(**inputs).logits, model.dense(**inputs).logits)
        model.model(**inputs)
    assert [warning.category for warning in caught] == [PruningWarning]
    assert f"its {held} placeholders were given no images" in str(caught[0].message)
    assert session.trace == []
