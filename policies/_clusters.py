"""Density-peak clustering (Rodriguez and Laio, 2014), batched over rows of different sizes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["density_peaks"]


def density_peaks(states: Tensor, sizes: list[int], groups: list[int]) -> tuple[Tensor, Tensor]:
    """Group the first `sizes` states of each row.

    Distances are Euclidean over the root of the width; the density of a state is `exp(-mean squared distance)` to its
    C nearest, itself among them; its rise is the distance to the nearest denser one, of the densest the largest of all.
    Centres are those with the largest product; every other state goes to the nearest centre.

    Args:
        states: [batch, n, dim].
        sizes: how many of them there are in each row.
        groups: C of each row, at most its size.

    Returns:
        Centres [batch, max(groups)], best first, and each state's group [batch, n]; both -1 where there is none.
    """
    device = states.device
    size, many = (torch.tensor(each, device=device)[:, None] for each in (sizes, groups))
    place = torch.arange(states.shape[1], device=device)
    real = place < size
    apart = torch.cdist(states.float(), states.float()) / states.shape[-1] ** 0.5
    pairs = real[:, None] & real[..., None]
    near = apart.masked_fill(~pairs, torch.inf).sort(-1).values
    within = place < many[..., None]
    density = torch.exp(-near.square().masked_fill(~within, 0).sum(-1) / many).masked_fill(~real, 0)
    denser = (density[:, None] > density[..., None]) & pairs
    most = apart.masked_fill(~pairs, 0).amax((1, 2))[:, None]
    rise = torch.where(denser.any(-1), apart.masked_fill(~denser, torch.inf).amin(-1), most)
    worth = (rise * density).masked_fill(~real, -1)
    centres = worth.argsort(dim=1, descending=True, stable=True)[:, : max(groups)]
    slot = torch.arange(centres.shape[1], device=device).expand_as(centres)
    there = slot < many
    to_centres = apart.gather(2, centres[:, None].expand(-1, apart.shape[1], -1))
    group = to_centres.masked_fill(~there[:, None], torch.inf).argmin(-1)
    # a centre is its own, even where another lies at the same place
    own = torch.nn.functional.pad(group, (0, 1)).scatter(1, torch.where(there, centres, len(place)), slot)
    return centres.masked_fill(~there, -1), own[:, :-1].masked_fill(~real, -1)
