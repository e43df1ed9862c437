"""The task: deterministic, disjoint splits, answers that follow from what is drawn."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunekit.models.tiny.training.network import pixels
from prunekit.models.tiny.training.processor import build_processor
from prunekit.models.tiny.training.words import prompt
from prunekit.scenes import (
    FAMILIES,
    GRID,
    PATCH_SIZE,
    SPLITS,
    VOCABULARY,
    Question,
    Scene,
    crowded_scene,
    other_questions,
    scene,
)
from prunekit.scenes.digits import digit_images, split_indices

SAMPLE = 600
EXPECTED_TEXTS = ["what color is the digit 8 ?", "what digit has the color yellow ?"]
EXPECTED_ANSWERS = ["red", "5", "circle", "red", "yes", "0", "topright", "below"]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(i, split="test", seed=5) for i in range(SAMPLE)]


def same(a: Scene, b: Scene) -> bool:
    return np.array_equal(a.image, b.image) and a.questions == b.questions


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_depends_on_its_own_number_only(split: str) -> None:
    many = [scene(i, split=split, seed=3) for i in range(12)]
    assert all(same(scene(i, split=split, seed=3), many[i]) for i in reversed(range(12)))
    assert not same(many[4], scene(4, split=split, seed=4))


def test_scenes_never_coincide_between_splits_seeds_and_numbers() -> None:
    drawn = [scene(i, split=split, seed=s) for split in SPLITS for s in range(3) for i in range(40)]
    assert len({hashlib.sha256(s.image.tobytes()).digest() for s in drawn}) == len(drawn)


def test_a_scene_stays_what_it_was() -> None:
    """Published numbers rest on these scenes, so a change of the generator must be seen."""
    shown = scene(0, split="test", seed=0)
    assert [q.text for q in shown.questions][:2] == EXPECTED_TEXTS
    assert [q.answer for q in shown.questions] == EXPECTED_ANSWERS


def test_splits_share_no_digit_image() -> None:
    images, labels = digit_images()
    used = {split: np.concatenate(split_indices(split)) for split in SPLITS}
    assert sorted(np.concatenate(list(used.values()))) == list(range(len(images)))
    contents = {split: {images[i].tobytes() for i in indices} for split, indices in used.items()}
    assert not contents["train"] & contents["test"]
    assert not contents["train"] & contents["development"]
    assert not contents["development"] & contents["test"]
    for split in SPLITS:
        assert all((labels[members] == digit).all() for digit, members in enumerate(split_indices(split)))
        sizes = [len(members) for members in split_indices(split)]
        assert max(sizes) - min(sizes) <= 7


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'validation'"):
        scene(0, split="validation", seed=0)


def test_objects_lie_in_cells_of_their_own(scenes: list[Scene]) -> None:
    for shown in scenes:
        assert len({thing.cell for thing in shown.objects}) == len(shown.objects)
        assert sum(int(t.patches.sum()) for t in shown.objects) == shown.object_patches().sum()
        for thing in shown.objects:
            left, top, right, bottom = thing.box
            rows, columns = np.nonzero(thing.patches)
            assert len(rows)
            assert rows.max() * PATCH_SIZE < bottom
            assert (rows.min() + 1) * PATCH_SIZE > top
            assert columns.max() * PATCH_SIZE < right
            assert (columns.min() + 1) * PATCH_SIZE > left


def test_relevant_patches_are_those_of_the_relevant_objects(scenes: list[Scene]) -> None:
    for shown in scenes[:50]:
        for number, question in enumerate(shown.questions):
            grid = shown.relevant_patches(number)
            assert grid.shape == (GRID, GRID)
            assert np.array_equal(grid, shown.relevant_patches(question))
            assert grid.any() == bool(question.relevant)
            assert not (grid & ~shown.object_patches()).any()


def _find(shown: Scene, kind: str) -> list[int]:
    return [i for i, thing in enumerate(shown.objects) if thing.kind == kind]


def _colored(shown: Scene, color: str, *, digits: bool) -> list[int]:
    return [i for i, t in enumerate(shown.objects) if t.color == color and t.kind.isdigit() == digits]


def solve_retrieval(shown: Scene, words: list[str]) -> tuple[str, list[int]]:
    if words[1] == "color":
        found = _find(shown, words[5] if words[4] == "digit" else words[4])
        answer = shown.objects[found[0]].color
    else:
        found = _colored(shown, words[5], digits=words[1] == "digit")
        answer = shown.objects[found[0]].kind
    assert len(found) == 1, "the question has one answer"
    return answer, found


def solve_exists(shown: Scene, words: list[str]) -> tuple[str, list[int]]:
    color, kind = words[3], words[4]
    both = [i for i in _find(shown, kind) if shown.objects[i].color == color]
    either = sorted({*_find(shown, kind), *_colored(shown, color, digits=False)})
    return ("yes", both) if both else ("no", either)


def solve_count(shown: Scene, words: list[str]) -> tuple[str, list[int]]:
    return str(len(_find(shown, words[2]))), _find(shown, words[2])


def solve_where(shown: Scene, words: list[str]) -> tuple[str, list[int]]:
    (found,) = _find(shown, words[5])
    left, top, right, bottom = shown.objects[found].box
    return ("top" if top + bottom <= 96 else "bottom") + ("left" if left + right <= 96 else "right"), [found]


def solve_relation(shown: Scene, words: list[str]) -> tuple[str, list[int]]:
    (i,), (j,) = _find(shown, words[0]), _find(shown, words[5])
    (row, column), (row_j, column_j) = shown.objects[i].cell, shown.objects[j].cell
    if words[1] == "left":
        assert abs(column - column_j) >= 2
        return ("left" if column < column_j else "right"), [i, j]
    assert abs(row - row_j) >= 2
    return ("above" if row < row_j else "below"), [i, j]


SOLVERS: dict[str, Callable[[Scene, list[str]], tuple[str, list[int]]]] = {
    "color_of_digit": solve_retrieval,
    "digit_of_color": solve_retrieval,
    "shape_of_color": solve_retrieval,
    "color_of_shape": solve_retrieval,
    "exists": solve_exists,
    "count": solve_count,
    "where": solve_where,
    "relation": solve_relation,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_follow_from_the_objects(family: str, scenes: list[Scene]) -> None:
    for number, shown in enumerate(scenes):
        asked = (*shown.questions, *other_questions(shown, number, split="test", seed=5, variant=1))
        for question in (q for q in asked if q.family == family):
            answer, relevant = SOLVERS[family](shown, question.text.split())
            assert (question.answer, question.relevant) == (answer, tuple(relevant)), question


def test_one_question_per_family_in_known_words(scenes: list[Scene]) -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    for shown in scenes:
        assert tuple(q.family for q in shown.questions) == FAMILIES
        for question in shown.questions:
            assert question.answer in VOCABULARY
            assert {*question.text.split()} <= {*VOCABULARY}
            assert len(question.text.split()) == 7


@pytest.mark.parametrize(
    ("family", "classes", "most"),
    [
        ("color_of_digit", 6, 0.25),
        ("digit_of_color", 10, 0.16),
        ("shape_of_color", 4, 0.33),
        ("color_of_shape", 6, 0.25),
        ("exists", 2, 0.57),
        ("count", 4, 0.38),
        ("where", 4, 0.33),
        ("relation", 4, 0.33),
    ],
)
def test_answers_are_balanced(family: str, classes: int, most: float, scenes: list[Scene]) -> None:
    answers = Counter(shown.questions[FAMILIES.index(family)].answer for shown in scenes)
    assert len(answers) == classes
    assert max(answers.values()) / SAMPLE < most


def test_other_questions_start_with_the_same_ones(scenes: list[Scene]) -> None:
    def ask(variant: int) -> tuple[Question, ...]:
        return other_questions(scenes[0], 0, split="test", seed=5, variant=variant)

    assert ask(0) == scenes[0].questions
    assert ask(1) != scenes[0].questions


def test_crowded_scenes_are_full_and_unasked() -> None:
    shown = crowded_scene(0, split="train", seed=0)
    assert 11 <= len(shown.objects) <= 16
    assert not shown.questions


def test_images_cannot_be_changed_by_accident(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        scenes[0].image[0, 0, 0] = 1


def test_the_processor_gives_the_pixels_of_training(scenes: list[Scene]) -> None:
    processor = build_processor()
    shown = scenes[:3]
    inputs = processor(
        images=[s.pil() for s in shown],
        text=[prompt(s.questions[0].text) for s in shown],
        return_tensors="pt",
        padding=True,
    )
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [144] * 3
    expected = pixels(np.stack([s.image for s in shown]))
    assert (inputs["pixel_values"] - expected).abs().max() < 1e-6
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens[:2] == ["<s>", "USER:"]
    assert tokens[146:] == [*shown[0].questions[0].text.split(), "ASSISTANT:"]


def test_words_that_the_model_does_not_know_become_unknown() -> None:
    ids = build_processor().tokenizer("what zebra ?")["input_ids"]
    assert ids.count(3) == 1


def test_digits_are_shipped_without_pickle() -> None:
    file = Path(__file__).parents[1] / "prunekit" / "scenes" / "digits.npz"
    assert file.stat().st_size < 100_000
    with np.load(file, allow_pickle=False) as data:
        assert data["images"].shape == (1797, 8, 8)
        assert data["images"].dtype == data["labels"].dtype == np.uint8
