"""Every published method on a released model, with and without tiles: a count, or an error that says what is open."""

from __future__ import annotations

import pytest
from zoo import ZOO

from prunekit import Keep, cost
from prunekit.errors import CostError, NeedsError, SiteError

PRESETS = {"llava-1.5-7b": 576, "llava-next-7b": 2928}
"""Visual tokens of an image."""

DECIDING = ("flowcut", "hired-tiles", "mustdrop", "prumerge-adaptive", "prumerge-plus")
"""Methods whose number of tokens the data decide."""

BEFORE_THE_INPUT = ("flowcut", "mustdrop", "prumerge", "prumerge-adaptive", "prumerge-plus", "tome", "visionzip",
                    "visionzip-released")  # fmt: skip
"""Methods that work where patches of tiles are not yet visual tokens."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ZOO)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_count_or_a_range(preset: str, method: str) -> None:
    items, visual = list(ZOO[method].build(Keep(ratio=0.25))), PRESETS[preset]
    if method == "fitprune":  # its schedule is that of a model with four layers
        with pytest.raises(NeedsError, match=r"each of its 32 decoder layers.*prunekit fit"):
            cost(preset, items)
    elif preset == "llava-next-7b" and method in BEFORE_THE_INPUT:
        with pytest.raises(SiteError, match=r"rearranged.*allowed are 'input'"):
            cost(preset, items)
    elif method in DECIDING:
        stages = rf"Of {visual} visual tokens a sample, there stay: \w+ at [\w.]+ (at least \d+ and )?at most {visual}"
        with pytest.raises(CostError, match=rf"depends on the data.*{stages}.*Give the method a number of tokens"):
            cost(preset, items)
    else:
        found = cost(preset, items)
        (pruned,) = found.pruned
        assert found.prompt["visual_tokens"] == visual
        assert min(pruned.cost.visual_tokens_per_layer) < visual
        assert pruned.cost.macs["prefill"] < found.dense.cost.macs["prefill"]
        assert pruned.kv_bytes < found.dense.kv_bytes
