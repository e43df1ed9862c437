"""1. A session that keeps all visual tokens is bit-equal to the plain model."""

import pytest
from catalogue import ATTENTION, THOROUGH, Items, subject
from invariants import LAYOUTS, check_identity

from prunekit import Keep, Stage
from prunekit.policies import STAR, CrossAttention, FasterVLM, FastV, Random, SelfAttention, UniformGrid

EVERYTHING = Keep(ratio=1.0)
KEEP_ALL: dict[str, Items] = {
    "input": (Stage("input", SelfAttention(), EVERYTHING),),
    "decoder": (Stage("decoder.2", CrossAttention(), EVERYTHING),),
    "vision": (Stage("vision.0", Random(), EVERYTHING),),
    "grid": (Stage("input", UniformGrid(), EVERYTHING),),
    "fastv": (FastV(keep=1.0),),
    "fastervlm": (FasterVLM(keep=1.0),),
    "star": (STAR(keep=1.0),),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("items", KEEP_ALL.values(), ids=KEEP_ALL)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
def test_keeping_everything_changes_no_bit(family: str, attention: str, items: Items, layout: str) -> None:
    model = subject(family, attention)
    check_identity(model, items, model.make_inputs(**LAYOUTS[layout]))
