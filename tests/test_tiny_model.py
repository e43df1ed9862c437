"""The bundled model as it is shipped: a real checkpoint that answers, stops, and needs to look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from prunekit.models.tiny.training import network
from prunekit.models.tiny.training.__main__ import main
from prunekit.models.tiny.training.data import scene_pool
from prunekit.models.tiny.training.language import Drop, answerable, features, packed_correct, random_subset
from prunekit.models.tiny.training.words import WORDS, prompt
from prunekit.scenes import FAMILIES, Scene, scene

SHIPPED = Path(__file__).parents[1] / "models" / "tiny" / "llava"
SEED = 77


@pytest.fixture(scope="module")
def model() -> Any:
    return LlavaForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(i, split="test", seed=SEED) for i in range(30)]


def generate(model: Any, processor: Any, scenes: list[Scene], image: Image.Image | None = None) -> torch.Tensor:
    """New token ids (questions, at most 4)."""
    asked = [(image or s.pil(), prompt(q.text)) for s in scenes for q in s.questions]
    inputs = processor(images=[i for i, _ in asked], text=[t for _, t in asked], return_tensors="pt", padding=True)
    with torch.no_grad():
        new: torch.Tensor = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    return new


def accuracy(model: Any, processor: Any, scenes: list[Scene], image: Image.Image | None = None) -> float:
    new = generate(model, processor, scenes, image)
    answers = [q.answer for s in scenes for q in s.questions]
    given = processor.batch_decode(new, skip_special_tokens=True)
    return float(np.mean([a == g for a, g in zip(answers, given, strict=True)]))


def test_files_are_small_and_hold_no_pickle() -> None:
    files = [path for path in SHIPPED.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert {path.suffix for path in files} <= {".json", ".jinja", ".md", ".safetensors"}


def test_it_answers_and_stops_by_itself(model: Any, processor: Any, scenes: list[Scene]) -> None:
    new = generate(model, processor, scenes)
    answers = [q.answer for s in scenes for q in s.questions]
    given = processor.batch_decode(new, skip_special_tokens=True)
    assert new.shape[1] == 2, "one word and the end token, without being told to stop"
    assert (new[:, 1] == processor.tokenizer.eos_token_id).all()
    assert np.mean([a == g for a, g in zip(answers, given, strict=True)]) > 0.9


def test_it_is_near_chance_without_the_image(model: Any, processor: Any, scenes: list[Scene]) -> None:
    assert accuracy(model, processor, scenes[:15], Image.new("RGB", (96, 96), (128, 128, 128))) < 0.45


def test_chat_template_gives_the_prompt_of_training(processor: Any, scenes: list[Scene]) -> None:
    text = scenes[0].questions[0].text
    content = [{"type": "image", "image": scenes[0].pil()}, {"type": "text", "text": text}]
    chat = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == prompt(text)
    made = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    direct = processor(images=scenes[0].pil(), text=prompt(text), return_tensors="pt")
    assert all(torch.equal(made[key], direct[key]) for key in ("input_ids", "pixel_values", "attention_mask"))


def test_left_padding_does_not_change_answers(model: Any, processor: Any, scenes: list[Scene]) -> None:
    short, long = (
        "USER: <image> how many circle can you see ? ASSISTANT:",
        prompt(scenes[0].questions[0].text),
    )
    texts = [short, long + " " + scenes[0].questions[0].answer]
    padded = processor(images=[scenes[0].pil()] * 2, text=texts, return_tensors="pt", padding=True)
    alone = processor(images=scenes[0].pil(), text=short, return_tensors="pt")
    assert padded["attention_mask"][0, 0] == 0
    with torch.no_grad():
        torch.testing.assert_close(model(**padded).logits[0, -1], model(**alone).logits[0, -1], atol=1e-3, rtol=1e-3)


def test_packed_training_forward_equals_the_library(processor: Any, scenes: list[Scene]) -> None:
    """Also where tokens are dropped: removing them by hand and keeping positions gives the same logits."""
    own = LlavaForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    pool = scene_pool(2, "test", SEED)
    questions, answers = (torch.from_numpy(a[:, 0]).long() for a in (pool.questions, pool.answers))
    inputs = processor(
        images=[scenes[1].pil()] * len(FAMILIES),
        text=[prompt(q.text) for q in scenes[1].questions],
        return_tensors="pt",
        padding=True,
    )
    keep = random_subset(np.random.default_rng(0), 2, 20)
    after = 2 + network.VISUAL_TOKENS
    with torch.no_grad():
        expected = own(**inputs).logits[:, -1]
        own.set_attn_implementation(network.ATTENTION)
        patches = features(own, pool, exact=True).patches
        packed = network.answer(own, patches, questions, answers)[1, :, 0]
        dropped = network.answer(own, patches, questions, answers, keep)[1, :, 0]
        own.set_attn_implementation("sdpa")
        words = own.model.language_model.embed_tokens(inputs["input_ids"])
        words[:, 2:after] = own.model.multi_modal_projector(patches[1])
        stay = torch.cat([torch.arange(2), keep[1] + 2, torch.arange(after, words.shape[1])])
        hidden = own.model.language_model(inputs_embeds=words[:, stay], position_ids=stay[None]).last_hidden_state
        by_hand = own.lm_head(hidden[:, -1])
    torch.testing.assert_close(packed, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(dropped, by_hand, atol=1e-3, rtol=1e-3)


def test_a_question_counts_while_each_of_its_objects_is_seen() -> None:
    pool = scene_pool(8, "train", SEED)
    chosen, relevant = np.arange(8), pool.relevant[:, 0]
    everything = torch.arange(network.VISUAL_TOKENS).expand(8, -1)
    assert answerable(pool, chosen, relevant, everything).all()
    keep = random_subset(np.random.default_rng(1), 8, 20)
    result = answerable(pool, chosen, relevant, keep)
    for i in range(8):
        shown = scene(i, split="train", seed=SEED)
        for f, question in enumerate(shown.questions):
            seen = [shown.objects[j].patches.ravel()[keep[i].numpy()].any() for j in question.relevant]
            assert result[i, f] == all(seen)


def test_random_subsets_are_sorted_uniform_and_without_repeats() -> None:
    keep = random_subset(np.random.default_rng(0), 4_000, 36)
    assert (keep.diff(dim=1) > 0).all()
    shares = torch.bincount(keep.flatten(), minlength=network.VISUAL_TOKENS) / 4_000
    assert (shares - 0.25).abs().max() < 0.04


def test_losing_random_tokens_hurts(model: Any) -> None:
    own = LlavaForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    own.set_attn_implementation(network.ATTENTION)
    data = features(own, scene_pool(30, "test", SEED), exact=True)
    few = Drop(random_subset(np.random.default_rng(0), 30, 7), 0)
    assert packed_correct(own, data, few, exact=True).mean() < packed_correct(own, data, exact=True).mean() - 0.2


def test_the_card_has_its_numbers() -> None:
    card = json.loads((SHIPPED / "card.json").read_text())
    text = (SHIPPED / "README.md").read_text()
    assert card["families"] == list(FAMILIES)
    assert len(card["seeds"]) >= 2
    best = max(card["seeds"], key=lambda seed: card["seeds"][seed]["development"]["all"]["mean"])
    assert str(card["shipped"]) == best
    shipped = card["seeds"][str(card["shipped"])]
    assert shipped["test"]["all"]["mean"] >= 94
    for entry in card["seeds"].values():
        assert {*entry["test"]} == {"all", *FAMILIES}
        assert {*entry["stages"]} == {"vision", "language", "dropout", "control"}
        for value in entry["test"].values():
            assert f"{value['mean']:.1f} [{value['low']:.1f}, {value['high']:.1f}]" in text
    assert card["bytes"] == (SHIPPED / "model.safetensors").stat().st_size
    assert "{" not in text.replace('{"', "").split("## Model")[1]


def test_training_runs_through_and_skips_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke", "--work", str(tmp_path), "--seeds", "0", "--workers", "1"])
    assert "seed 0 dropout" in capsys.readouterr().out
    assert (tmp_path / "llava" / "README.md").exists()
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava", dtype=torch.float32)
    assert loaded.config.text_config.vocab_size >= len(WORDS)
    main(["--smoke", "--work", str(tmp_path), "--seeds", "0", "--workers", "1"])
    assert "seed 0 dropout" not in capsys.readouterr().out
