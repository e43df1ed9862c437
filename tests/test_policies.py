"""Each policy against a slow reference of its formula, and the methods against eager attention maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, Subject, subject
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import LAYOUTS
from oracle import Inputs, row_of
from torch import Tensor

from prunekit import Keep, Method, ScoringPolicy, Stage, VisualTokens, prune
from prunekit.errors import BudgetError, ScoresError
from prunekit.policies import STAR, CrossAttention, FasterVLM, FastV, Random, SelfAttention, UniformGrid


def tokens(hidden: Tensor, counts: tuple[int, ...] | None = None, **kwargs: Any) -> VisualTokens:
    batch, visual, _ = hidden.shape
    counts = counts or (visual,) * batch
    order = torch.arange(visual).expand(batch, -1)
    valid = order < torch.tensor(counts)[:, None]
    return VisualTokens(hidden, order.masked_fill(~valid, -1), valid, counts, counts, **kwargs)


def best(scores: list[float], count: int) -> list[int]:
    """Positions of the `count` highest scores, ascending."""
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


@torch.no_grad()
def kept(model: Subject, inputs: Inputs, *items: Stage | Method) -> list[list[int]]:
    """What the last stage kept, row by row."""
    with prune(model.model, *items) as session:
        model.model(**inputs)
    return [[i for i in row if i >= 0] for row in session.trace[-1].kept.tolist()]


@torch.no_grad()
def eager(inputs: Inputs) -> tuple[Any, Any]:
    dense = subject("llava", "eager").dense
    tower = dense.model.vision_tower(inputs["pixel_values"], output_attentions=True)
    return dense(**inputs, output_attentions=True).attentions, tower.attentions


def looked_at(attention: Tensor, queries: list[int], keys: list[int]) -> list[float]:
    """Mean over heads and queries of the attention that each key receives: plain loops."""
    heads = attention.shape[0]
    return [sum(float(attention[h, q, k]) for h in range(heads) for q in queries) / heads / len(queries) for k in keys]


def parts(model: Subject, inputs: Inputs, row: int) -> tuple[list[int], list[int]]:
    """Columns of the visual tokens, and of the text after them."""
    ids, real = inputs["input_ids"][row].tolist(), inputs["attention_mask"][row].tolist()
    visual = [i for i, token in enumerate(ids) if token == model.family.image_token]
    return visual, [i for i in range(visual[-1] + 1, len(ids)) if real[i]]


def test_embedding_attention_by_loops() -> None:
    hidden = torch.randn(2, 9, 8) * 2
    counts = (9, 6)
    actual = SelfAttention(queries="embedding").score(tokens(hidden, counts))
    for row, count in enumerate(counts):
        received = [0.0] * count
        for j in range(count):
            logits = [sum(float(hidden[row, j, c] * hidden[row, i, c]) for c in range(8)) for i in range(count)]
            powers = [math.exp((value - max(logits)) / math.sqrt(8)) for value in logits]
            for i in range(count):
                received[i] += powers[i] / sum(powers) / count
        assert actual[row, :count].tolist() == pytest.approx(received, rel=1e-4)


@pytest.mark.parametrize("queries", ["visual", "cls"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_self_attention_is_that_of_the_feature_layer(attention: str, queries: Any) -> None:
    model = subject("llava", attention)
    inputs = model.make_inputs(**LAYOUTS["padded"])
    _, encoder = eager(inputs)
    patches = list(range(1, model.family.per_image + 1))
    actual = kept(model, inputs, Stage("input", SelfAttention(queries=queries), Keep(tokens=7)))
    for row in range(3):
        scores = looked_at(encoder[-2][row], patches if queries == "visual" else [0], patches)
        assert actual[row] == best(scores, 7)


@pytest.mark.parametrize("queries", ["text", "last", "instruction"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_cross_attention_is_that_of_the_layer_before(attention: str, queries: Any) -> None:
    model = subject("llava", attention)
    inputs = model.make_inputs(**LAYOUTS["padded"])
    decoder, _ = eager(inputs)
    actual = kept(model, inputs, Stage("decoder.3", CrossAttention(queries=queries), Keep(tokens=7)))
    for row in range(3):
        visual, text = parts(model, inputs, row)
        chosen = {"text": text, "last": text[-1:], "instruction": text[:-1]}[queries]
        assert actual[row] == best(looked_at(decoder[2][row], chosen, visual), 7)


@pytest.mark.parametrize("attention", ATTENTION)
def test_fastv_and_fastervlm(attention: str) -> None:
    model = subject("llava", attention)
    inputs = model.make_inputs(**LAYOUTS["ragged"])
    decoder, encoder = eager(inputs)
    fastv, fastervlm = kept(model, inputs, FastV(keep=0.25)), kept(model, inputs, FasterVLM(keep=0.25))
    patches, start = list(range(1, model.family.per_image + 1)), 0
    for row in range(3):
        visual, text = parts(model, inputs, row)
        assert fastv[row] == best(looked_at(decoder[1][row], text[-1:], visual), len(visual) // 4)
        images = len(visual) // len(patches)
        scores = [s for image in range(start, start + images) for s in looked_at(encoder[-2][image], [0], patches)]
        assert fastervlm[row] == best(scores, len(visual) // 4)
        start += images


@torch.no_grad()
def test_star_from_eager_maps() -> None:
    """Both stages by hand: encoder maps, then the decoder maps of a run that only has the survivors."""
    model, dense = subject("llava", "sdpa"), subject("llava", "eager").dense
    batch, per = model.make_inputs(**LAYOUTS["padded"]), model.family.per_image
    with prune(model.model, STAR(keep=0.25, visual_keep=0.5, layer=2)) as session:
        model.model(**batch)
    first, second = session.trace
    for row in range(3):
        inputs = row_of(batch, row, model.family)
        _, encoder = eager(inputs)
        patches = list(range(1, per + 1))
        early = best(looked_at(encoder[-2][0], patches, patches), per // 2)
        assert first.kept[row].tolist() == early
        states: list[Any] = []
        language = dense.model.language_model
        handle = language.register_forward_pre_hook(lambda m, a, k: states.append(k["inputs_embeds"]), with_kwargs=True)  # noqa: B023
        dense(**inputs)
        handle.remove()
        visual, _ = parts(model, inputs, 0)
        dropped = {column for number, column in enumerate(visual) if number not in early}
        left = [column for column in range(states[0].shape[1]) if column not in dropped]
        maps = language(
            inputs_embeds=states[0][:, left], position_ids=torch.tensor([left]), output_attentions=True
        ).attentions
        places = [left.index(visual[number]) for number in early]
        text = [left.index(column) for column in left if column > visual[-1]]
        scores = looked_at(maps[1][0], text, places)
        assert second.kept[row].tolist() == [early[i] for i in best(scores, per // 4)]


def test_star_by_the_papers_symbols() -> None:
    star = STAR.from_ratios(R=0.5, P=0.5, K=2)
    first, second = star.stages(4)
    assert (first.site, second.site) == ("input", "decoder.2")
    assert [stage.count(576) for stage in (first, second)] == [288, 144]
    assert STAR.from_ratios(R=0.9, P=0.0, K=2).stages(4)[0].count(576) == 57
    for wrong in ({"R": 1.0, "P": 0.5}, {"R": -0.1, "P": 0.5}, {"R": 0.5, "P": 1.0}):
        with pytest.raises(BudgetError, match=r"(?s)[RP].*below 1"):
            STAR.from_ratios(K=2, **wrong)


@pytest.mark.parametrize(("R", "P"), [(a / 10, b / 10) for a in range(10) for b in range(0, 10, 3)])
def test_star_ratios_leave_the_share_they_say(R: float, P: float) -> None:
    """Counts are floors of exact shares: a rounding error of the product must not cost a token."""
    tenths = (10 - round(10 * R)) * (10 - round(10 * P))
    for total in (576, 2880, 100):
        first, second = STAR.from_ratios(R=R, P=P, K=2).stages(4)
        assert first.count(total) == max(1, (10 - round(10 * R)) * total // 10)
        assert second.count(total) == max(1, tenths * total // 100)


def test_star_layers() -> None:
    assert [s.site for s in STAR(keep=0.25).stages(32)] == ["input", "decoder.16"]
    for depth in (4, 8):
        assert [s.site for s in STAR(keep=0.25, layer=depth).stages(depth)] == ["input"]
    halves = STAR(keep=0.25).stages(4)
    assert [stage.count(576) for stage in halves] == [288, 144]  # sqrt(1/4) after stage 1
    assert [stage.count(576) for stage in STAR(keep=144).stages(4)] == [288, 144]


def test_star_with_nothing_dropped_first_is_fastv_with_text() -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs(**LAYOUTS["padded"])
    star = kept(model, inputs, STAR.from_ratios(R=0.0, P=0.75, K=2))
    assert star == kept(model, inputs, Stage("decoder.2", CrossAttention("text"), Keep(ratio=0.25)))
    last = kept(model, inputs, STAR(keep=0.25, visual_keep=1.0, layer=2, text_queries="last"))
    assert last == kept(model, inputs, FastV(keep=0.25, layer=2))


def test_a_literal_row_mean_is_refused() -> None:
    """STAR's equation read literally: the mean of a softmax over its own axis is 1/n for every token."""

    class Literal(ScoringPolicy):
        def score(self, tokens: VisualTokens) -> Tensor:
            logits = tokens.hidden @ tokens.hidden.mT / tokens.hidden.shape[-1] ** 0.5
            return logits.softmax(-1).mean(-1)

    model = subject("llava", "sdpa")
    for seed in range(5):
        with pytest.raises(ScoresError, match=r"(?s)Literal.*rounding noise"):
            kept(model, model.make_inputs(batch=2, seed=seed), Stage("input", Literal(), Keep(ratio=0.5)))


def test_random_is_a_function_of_seed_and_image() -> None:
    model = subject("llava", "sdpa")
    batch = model.make_inputs(batch=4, text=(5, 9, 6, 7))
    state = torch.get_rng_state()
    first = kept(model, batch, Stage("input", Random(seed=5), Keep(ratio=0.25)))
    torch.manual_seed(99)
    again = kept(model, batch, Stage("input", Random(seed=5), Keep(ratio=0.25)))
    assert first == again
    assert first != kept(model, batch, Stage("input", Random(seed=6), Keep(ratio=0.25)))
    assert len({tuple(row) for row in first}) > 1, "every image gets the same draw"
    for row in range(4):
        alone = row_of(batch, row, model.family)
        assert kept(model, alone, Stage("input", Random(seed=5), Keep(ratio=0.25))) == [first[row]]
    torch.set_rng_state(state)
    kept(model, batch, Stage("input", Random(seed=5), Keep(ratio=0.25)))
    assert torch.equal(torch.get_rng_state(), state), "the global random state moved"


def test_random_is_uniform() -> None:
    """Over many images every token is kept about equally often, and neighbours are kept independently."""
    draws = torch.zeros(36)
    both = 0
    for seed in range(60):
        score = Random(seed=seed).score(tokens(torch.randn(8, 36, 16)))
        chosen = torch.zeros(8, 36).scatter(1, score.topk(9, dim=1).indices, 1.0)
        draws += chosen.sum(0)
        both += int((chosen[:, 1:] * chosen[:, :-1]).sum())
    expected = 60 * 8 * 0.25
    assert ((draws - expected).abs() < 6 * (expected * 0.75) ** 0.5).all(), draws
    pairs = 60 * 8 * 35 * (9 / 36) * (8 / 35)
    assert abs(both - pairs) < 6 * pairs**0.5, (both, pairs)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.data())
def test_the_grid_is_exact_and_even(height: int, width: int, images: int, data: st.DataObject) -> None:
    size, total = height * width, height * width * images
    count = data.draw(st.integers(1, total))
    visible = tokens(torch.zeros(1, total, 2), grid=(height, width), per_image=size)
    chosen = UniformGrid().select(visible, Keep(tokens=count)).kept[0].tolist()
    assert len(set(chosen)) == count
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0
    assert chosen[-1] < total
    shares = [sum(place // size == image for place in chosen) for image in range(images)]
    assert max(shares) - min(shares) <= 1
    for image, share in enumerate(shares):
        lines = [sum(place // width == image * height + line for place in chosen) for line in range(height)]
        used = [line for line in lines if line]
        assert not used or max(used) - min(used) <= 1, f"{share} tokens in lines {lines}"


def test_the_grid_of_a_quarter_is_a_lattice() -> None:
    visible = tokens(torch.zeros(1, 36, 2), grid=(6, 6), per_image=36)
    chosen = UniformGrid().select(visible, Keep(tokens=9)).kept[0]
    assert sorted({int(i) // 6 for i in chosen}) == [1, 3, 5]
    assert sorted({int(i) % 6 for i in chosen}) == [1, 3, 5]
