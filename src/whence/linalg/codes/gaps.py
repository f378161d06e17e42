"""Sorted positions as distances to the one before, each in one or two bytes and a fixed number of slots per row.

A distance too long for a slot takes further slots (*fillers*, the largest value) that advance and hold nothing. So a
row of D numbers with K slots keeps a little less than K of them, and needs no index of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# bytes -> the filler, which advances by that much; smaller values v are entries that advance by v + 1
FILLER = {1: 255, 2: 65535}
FAR = 1 << 40  # behind every position


def slot_bytes(total: int, budget: float) -> int:
    """One or two bytes, whichever leaves room for more entries of half a byte each beside them."""
    narrow = budget / 1.5 - total / FILLER[1]
    return 1 if narrow >= budget / 2.5 - total / FILLER[2] else 2


def kept_within(position_BK: Tensor, slots: int, *, width: int) -> Tensor:
    """How many of each row's entries fit, strongest first.

    Args:
        position_BK: positions by falling strength; ones that are never kept are negative.
        slots: slots per row.
        width: bytes of a slot.

    Returns:
        B numbers of entries that fit together with their fillers; one or two more might, to find out would take a
        search.
    """
    rank = torch.arange(position_BK.shape[1], device=position_BK.device)
    kept_B = (position_BK >= 0).sum(1).clamp(max=slots)
    while True:
        used_B = kept_B + _fillers(_rising(position_BK, rank < kept_B[:, None])[0], width).sum(1)
        over_B = used_B - slots
        if bool((over_B <= 0).all()):
            return kept_B
        share = kept_B / used_B.clamp(min=1)  # of the slots, what entries take: a slot too many costs that much of one
        kept_B = kept_B - torch.where(over_B > 0, (over_B * share).long().clamp(min=1), 0)


def coded(position_BK: Tensor, kept_B: Tensor, *, slots: int, width: int) -> tuple[Tensor, Tensor]:
    """Slots of the strongest entries.

    Returns:
        B x slots distances, and B x slots places of each slot's entry in ``position_BK`` (-1: a filler).
    """
    rank = torch.arange(position_BK.shape[1], device=position_BK.device)
    chosen = rank < kept_B[:, None]
    sorted_BK, order = _rising(position_BK, chosen)
    there = sorted_BK >= 0
    fillers = _fillers(sorted_BK, width)
    at = rank + fillers.cumsum(1)  # each entry comes after its own fillers
    gap = _distances(sorted_BK) - 1 - fillers * FILLER[width]
    distance = torch.full((len(position_BK), slots + 1), FILLER[width], dtype=torch.int64, device=position_BK.device)
    source = torch.full_like(distance, -1)
    at = torch.where(there, at, slots)  # what is not kept lands in a slot that is cut off
    distance.scatter_(1, at, gap)
    source.scatter_(1, at, order)
    return _stored(distance[:, :slots], width), source[:, :slots]


def positions(distance_BK: Tensor, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """Positions of all slots as ``dtype``, and which of them hold an entry."""
    filler = FILLER[distance_BK.element_size()]
    ahead = distance_BK.to(torch.int32)
    if distance_BK.dtype == torch.int16:
        ahead.bitwise_and_(filler)  # the sign is the sixteenth bit
    entry = ahead != filler
    return ahead.add_(entry).cumsum(1, dtype=dtype).sub_(1), entry


def _stored(distance: Tensor, width: int) -> Tensor:
    if width == 1:
        return distance.to(torch.uint8)
    return torch.where(distance > 32767, distance - 65536, distance).to(torch.int16)


def _rising(position_BK: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen positions rising, then -1; and where each of them stood.

    One sort of both at once, by NumPy: a seventh of torch's time for rows of a few thousand.
    """
    bits = max(1, position_BK.shape[1] - 1).bit_length()
    keys = (torch.where(chosen, position_BK, FAR) << bits) + torch.arange(position_BK.shape[1], device=chosen.device)
    keys = torch.from_numpy(np.sort(keys.cpu().numpy(), axis=1)).to(chosen.device)
    rising = keys >> bits
    return torch.where(rising < FAR, rising, -1), keys & ((1 << bits) - 1)


def _distances(sorted_BK: Tensor) -> Tensor:
    """Distance of each position to the one before (the first: to -1); what is -1 has the distance 1."""
    before = torch.cat([torch.full_like(sorted_BK[:, :1], -1), sorted_BK[:, :-1]], dim=1)
    return torch.where(sorted_BK >= 0, sorted_BK - before, 1)


def _fillers(sorted_BK: Tensor, width: int) -> Tensor:
    return (_distances(sorted_BK) - 1).div(FILLER[width], rounding_mode="floor")
