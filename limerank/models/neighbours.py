"""Neighbours: what a history holds of the items that go with a candidate.

An item that the same users chose as this candidate is its *neighbour*. A candidate receives from
anchored links of its neighbours as it does from its own (limerank.models.anchors)::

    z(u, t) = ... + sum over the neighbours j of t of s_tj z'(u, j)

``z'`` is what a network of its own makes of the statistics of item j in the history of u, and zero
where the history has no event with j. ``s_tj`` is the similarity of the two items in the training
window (limerank.training.neighbours). That is what item-kNN knows, but it is learned what an event
says of a neighbour, and how much that is worth beside everything else.

In the keys of items, the neighbour with row i of the id table is the key ``-i``. The keys of an
item contain those of its neighbours, with their shares, and its own with the share 0: a candidate
receives nothing from it, and an event has it alone.

Shape letters: I rows of the id table, U items, K neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limerank.data.batch import ItemKeys
from limerank.models.config import DataShape, ModelConfig

NEIGHBOUR = "neighbour"
"""Kind of an anchored link that belongs to a neighbour of the item."""
NEIGHBOURS, LEAST = 50, 10
"""Of an item, at most and at least, where a model with anchored links does not say."""
STORED = 5_000_000
"""Neighbours of all items together, about, that decide between these."""


def neighbours_of(shape: DataShape, config: ModelConfig) -> int:
    """Neighbours of an item in a model with this configuration, at most."""
    if config.neighbours is not None:
        return config.neighbours
    if config.anchors == ():
        return 0
    return min(max(STORED // shape.item_ids, LEAST), NEIGHBOURS)


class NeighbourLists(NamedTuple):
    """The neighbours of each row of the id table, the most similar one first: their rows, i32
    [I, K], and their shares, f32 [I, K]; 0 behind the last one."""

    ids: Tensor
    shares: Tensor


class Neighbours(nn.Module):
    """The neighbours that a model has.

    Args:
        items: rows of the id table.
        most: neighbours of an item, at most.
    """

    ids: Tensor
    shares: Tensor

    def __init__(self, items: int, most: int) -> None:
        super().__init__()
        self.register_buffer("ids", torch.zeros(items, most, dtype=torch.int32))
        self.register_buffer("shares", torch.zeros(items, most))

    @property
    def lists(self) -> NeighbourLists:
        return NeighbourLists(self.ids, self.shares)

    @torch.no_grad()
    def set(self, lists: NeighbourLists) -> None:
        """Replace all."""
        self.ids.copy_(lists.ids)
        self.shares.copy_(lists.shares)


def with_neighbours(
    keys: ItemKeys, lists: NeighbourLists, candidates: int | None = None
) -> ItemKeys:
    """Keys of U items with those of their neighbours, which stand behind all others.

    Args:
        keys: with ``ids``.
        lists: of the neighbours.
        candidates: how many of the items, the first ones, receive from neighbours; all of them when
            not given. The others are in histories alone.
    """
    ids = keys.ids
    assert ids is not None
    near_uk, shares_uk = lists.ids[ids[:candidates]].long(), lists.shares[ids[:candidates]]
    held_uk, known_u = shares_uk > 0, ids > 0
    own_u = keys.offsets.diff()
    counts_u = own_u + known_u
    counts_u[:candidates] += held_uk.sum(1)
    ends = counts_u.cumsum(0)
    first_u = ends - counts_u
    made = keys.keys.new_empty(int(ends[-1]) if len(ends) else 0)
    shares = keys.shares.new_zeros(len(made))
    at = torch.arange(len(keys.keys), device=made.device)
    at = at + torch.repeat_interleave(first_u - keys.offsets[:-1], own_u)
    made[at], shares[at] = keys.keys, keys.shares
    made[(first_u + own_u)[known_u]] = -ids[known_u]
    behind_u = (first_u + own_u + known_u)[:candidates]
    rank_uk = held_uk.cumsum(1) - 1 + behind_u[:, None]
    made[rank_uk[held_uk]] = -near_uk[held_uk]
    shares[rank_uk[held_uk]] = shares_uk[held_uk].to(shares.dtype)
    offsets = torch.cat([ends.new_zeros(1), ends])
    return replace(keys, keys=made, shares=shares, offsets=offsets, complete=True)
