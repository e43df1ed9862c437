"""VTW: where it withdraws, and that nothing is left; its search is part of fitting."""

from __future__ import annotations

import pytest
from policies_common import random_tokens

from prunekit.errors import SiteError
from prunekit.policies import VTW
from prunekit.selection import merged


@pytest.mark.parametrize(("depth", "layer"), [(32, 15), (40, 19), (28, 13), (4, 2), (2, 1)])
def test_the_same_share_of_every_depth(depth: int, layer: int) -> None:
    (stage,) = VTW().stages(depth)
    assert (stage.site, stage.keep) == (f"decoder.{layer}", None)
    assert [stage.count(total) for total in (0, 1, 576)] == [0, 0, 0]


def test_nothing_is_left() -> None:
    (stage,) = VTW(3).stages(8)
    tokens = random_tokens((16, 0, 5))
    selection = stage.policy.select(tokens, None)
    assert selection.counts == (0, 0, 0)
    assert selection.kept.shape == (3, 0)
    assert merged(tokens.hidden, selection).shape == (3, 0, 8)


@pytest.mark.parametrize("layer", [0, 8, -1])
def test_no_such_layer(layer: int) -> None:
    with pytest.raises(SiteError, match=rf"VTW\(layer={layer}\): .* allowed are 1 to 7"):
        VTW(layer).stages(8)
