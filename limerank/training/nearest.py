"""Items whose collaborative vectors are most alike, found in bounded time.

The similarity of two items is ``v_i . v_j / d``: the cosine of their vectors times the evidence of
both (limerank.training.collaborative). Small catalogues are compared whole. The items of a large
one are first dealt to about as many groups as each then has members, by the nearest of as many
centres (spherical k-means); the items of a group are compared with those of the nearest groups, as
many as :data:`COMPARED` allows.

Shape letters: f folds and all users, i rows of the id table, n items that have a vector, d numbers
of a vector, g groups, k items that are found for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

COMPARED = 1 << 31
"""Pairs of items that are compared for all folds together, about: a minute of one core, and two
where there are groups."""
ITEMS = 1 << 18
"""Items that are compared, at most: those with the longest vectors, which tell most."""
AT_ONCE = 1 << 22
"""Pairs of items that are compared at once."""
ROUNDS = 3
"""Of finding the centres of groups."""


class Nearest(NamedTuple):
    """Of some items of a fold: their rows, i64 [n]; the rows of the items that are most like them,
    the most similar one first, i64 [n, k]; and the similarities, f32 [n, k], zero where there are
    no more."""

    fold: int
    rows: Tensor
    others: Tensor
    similarities: Tensor


def nearest(vectors_fid: Tensor, known: list[Tensor], most: int) -> Iterator[Nearest]:
    """What is most like each item, by the vectors of each fold; itself and what is known of it
    excepted.

    Args:
        vectors_fid: vectors by folds, the last ones those of all users, f32 [f, i, d].
        known: of each fold, rows of items that are not looked for, 0 for none, i32 [i, K].
        most: items for each, at most.
    """
    width = vectors_fid.shape[-1]
    length_i = vectors_fid[-1].norm(dim=-1)
    rows_n = length_i.nonzero()[:, 0]
    if len(rows_n) > ITEMS:
        rows_n = length_i.topk(ITEMS).indices.sort().values
    position_i = torch.full((len(length_i),), -1)
    for own, others in _groups(vectors_fid[-1, rows_n], COMPARED // len(vectors_fid)):
        candidates = rows_n[others]
        position_i[candidates] = torch.arange(len(candidates))
        for rows in rows_n[own].split(max(AT_ONCE // len(candidates), 1)):
            for fold, vectors_id in enumerate(vectors_fid):
                found_nc = vectors_id[rows] @ vectors_id[candidates].T / width
                left_out = torch.cat([rows[:, None], known[fold][rows].long()], 1)
                at, of = (position_i[left_out] >= 0).nonzero(as_tuple=True)
                found_nc[at, position_i[left_out[at, of]]] = 0
                best, at = found_nc.topk(min(most, len(candidates)), 1)
                yield Nearest(fold, rows, candidates[at], best.clamp(min=0))
        position_i[candidates] = -1


def _groups(vectors_nd: Tensor, pairs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of the items of each group, and of those that they are compared with; about so many
    pairs in all."""
    count = len(vectors_nd)
    if count**2 <= pairs:
        if count:
            yield torch.arange(count), torch.arange(count)
        return
    groups = math.isqrt(count)
    unit_nd = F.normalize(vectors_nd, dim=1)
    centres_gd = unit_nd[torch.linspace(0, count - 1, groups).long()]
    for _ in range(ROUNDS):
        group_n = torch.cat([(part @ centres_gd.T).argmax(1) for part in _parts(unit_nd, groups)])
        sums_gd = torch.zeros_like(centres_gd).index_add_(0, group_n, unit_nd)
        some = sums_gd.any(1)
        centres_gd[some] = F.normalize(sums_gd[some], dim=1)
    members = group_n.argsort(stable=True).split(group_n.bincount(minlength=groups).tolist())
    compared = min(max(pairs * groups // count**2, 1), groups)
    similar_gg = centres_gd @ centres_gd.T
    similar_gg.fill_diagonal_(2)  # the group itself is the nearest one
    for own, near in zip(members, similar_gg.topk(compared, 1).indices, strict=True):
        if len(own):
            yield own, torch.cat([members[group] for group in near])


def _parts(vectors_nd: Tensor, groups: int) -> tuple[Tensor, ...]:
    return vectors_nd.split(max(AT_ONCE // groups, 1))
