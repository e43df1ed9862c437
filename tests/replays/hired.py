"""HiRED on LLaVA-1.5 and on the tiles of LLaVA-NeXT."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, Skip, visual

from prunekit.patches import Image
from prunekit.policies.hired import HiRED


def replay(case: Case) -> dict[str, Any]:
    late = case["in_cls_attn_22"].mean(1)  # [tiles, 576]
    if case.params["model"] == "llava15":
        (stage,) = HiRED(case.params["rate"]).stages(32)
        (rows,) = stage.policy.needs.attention
        tokens = visual(late[:1, :, None], attention={rows: late[:1], rows.queries: late[:1]})
        return {"out_keep": stage.policy.select(tokens, stage.keep).kept[0]}
    (stage,) = HiRED(case.params["rate"], tiles=True, alpha=case.params["alpha"]).stages(32)
    early_rows, late_rows = stage.policy.needs.attention
    count, size = late.shape
    seen = {early_rows: case["in_cls_attn_0"].mean(1).view(1, -1), late_rows: late.view(1, -1)}
    place = torch.arange(count * size)
    patches = torch.stack([place // size, place % size], -1)[None]
    images = (tuple(Image(tiles * size) for tiles in case.params["tiles"]),)
    tokens = visual(place[None, :, None].float(), attention=seen, patches=patches, images=images)
    kept = stage.policy.select(tokens, None).kept[0]
    mask = torch.zeros(count * size + 1, dtype=torch.bool).scatter(0, kept % (count * size + 1), True)[:-1]
    mask = mask.view(count, size)
    flat, lengths = packed(case, mask)
    return {"out_mask": mask, "out_budget": mask.sum(1), "out_packed_flat": flat, "out_packed_lens": lengths}


def packed(case: Case, mask: torch.Tensor) -> tuple[Any, Any]:
    """Kept tokens in the order of feeding: the thumbnail's, then those of the mosaic line by line."""
    side = round(mask.shape[1] ** 0.5)
    flat, lengths, first = [], [], 0
    for tiles, (lines, columns) in zip(case.params["tiles"], case.params["grid_rows_cols"], strict=True):
        number = torch.arange(first * side**2, (first + tiles) * side**2).view(tiles, side, side)
        mosaic = number[1:].view(lines, columns, side, side).transpose(1, 2).reshape(lines * side, columns * side)
        height, width = case.params["image_sizes_hw"][len(lengths)]
        if lines != columns:
            skip = Skip("the released packing mixes up grids that are not square, and loses tokens there")
            return skip, skip
        whole_height, whole_width = mosaic.shape
        if width / height > whole_width / whole_height:
            cut = (whole_height - height * whole_width // width) // 2
            mosaic = mosaic[cut : whole_height - cut]
        else:
            cut = (whole_width - width * whole_height // height) // 2
            mosaic = mosaic[:, cut : whole_width - cut]
        order = torch.cat([number[0].flatten(), mosaic.flatten()])
        flat.append(order[mask.flatten()[order]])
        lengths.append(len(flat[-1]))
        first += tiles
    return torch.cat(flat), torch.tensor(lengths)
