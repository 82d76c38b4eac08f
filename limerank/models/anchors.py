"""Anchored links: what a user's history holds of exactly one item, or of one value of a feature.

Learned links are a low-rank bottleneck: ``o_t = W_t LP``. With them alone no model can tell this
item, or this category, apart from others once there are more of them than links. An *anchored* link
is not learned: there is one for each item and one for each value of the anchored features. Exactly
the items that have the value receive from it, so its weights are known beforehand::

    z(u, t) = sum over keys v of t of share(t, v) z(u, v)            z(u, v) in R^r
    a(u, t) = ... + A_z z(u, t)                                       the head's first layer

``z(u, v)`` is a linear map of the statistics of v in the history of u, and zero where the history
has no event with v:

- the outcome of the newest event with v, the mean outcome, and the mean that weighs each event by
  :data:`FADING` for every later one with v;
- how many events there were, how many events ago and how long ago the newest one was: positions on
  logarithmic scales, as weights of the two nearest knots.

All are scaled by the evidence n / (n + k). ``A_z`` starts at zero: a model begins as it is without
anchored links. Items have a map of their own; features share one, and each has a learned scale.

Shape letters: B requests, N history positions, U items, M candidates, V pairs of a request and a
key in its history, o outcome numbers, r numbers of an anchored link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limerank.data.batch import ItemKeys, Users

OUTCOMES = 8
"""Numbers of an embedded outcome, o."""
FADING = 0.6
"""Weight of an event with a value relative to the next one with it, in the fading mean."""
START_EVENTS = 1.0
"""Number of events at which the evidence is one half when training starts."""
DROPOUT = 0.2
"""Share of the statistics that a training step drops."""
COUNTS = 0.0, 1.0, 2.0, 3.0, 4.0
"""Knots of log2(n)."""
AGO = 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0
"""Knots of log2(1 + events since)."""
AGES = 0.0, 2.0, 4.0, 6.0, 9.0, 11.0, 13.0, 15.0, 17.0
"""Knots of log2(1 + minutes since); days of 1,440 minutes."""
MINUTES = 1440.0
STATISTICS = 3 * OUTCOMES + len(COUNTS) + len(AGO) + len(AGES)


@dataclass(frozen=True)
class Anchored:
    """The anchored links of B requests that are not zero.

    Attributes:
        offsets: where each request's links begin and, last, end, i64 [B + 1].
        keys: of each link, i64 [V], ascending within a request.
        links: z, [V, r].
    """

    offsets: Tensor
    keys: Tensor
    links: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, part: slice) -> Anchored:
        """Those of some requests, side by side."""
        low, high, _ = part.indices(len(self))
        offsets = self.offsets[low : max(low, high) + 1]
        of = slice(int(offsets[0]), int(offsets[-1]))
        return Anchored(offsets - offsets[0], self.keys[of], self.links[of])


def ragged(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Positions ``first[i] .. first[i] + counts[i] - 1`` of all i, and the i of each: i64 [T]."""
    owner = torch.repeat_interleave(counts)
    ends = counts.cumsum(0)
    return torch.arange(len(owner), device=counts.device) + (first - ends + counts)[owner], owner


def knots(x: Tensor, at: tuple[float, ...]) -> Tensor:
    """Weights of the two nearest knots, [n, knots]: a piecewise linear scale, constant beyond."""
    position = x.new_tensor(at)
    x = x.clamp(at[0], at[-1])[:, None]
    gaps = position.diff()
    low = (x - position[:-1]) / gaps
    up = torch.cat([torch.ones_like(x), low], 1).clamp(0, 1)
    down = torch.cat([low, torch.zeros_like(x)], 1).clamp(0, 1)
    return up - down


class AnchoredLinks(nn.Module):
    """The anchored links of one model.

    Args:
        event_tokens: rows of the table of outcomes.
        item_tokens: rows of the items' content table.
        items: whether items are anchored.
        features: first row and number of rows of each anchored feature in the content table.
        width: numbers of a link, r.
    """

    def __init__(
        self,
        event_tokens: int,
        item_tokens: int,
        items: bool,
        features: tuple[tuple[int, int], ...],
        width: int,
    ) -> None:
        super().__init__()
        self.item_tokens, self.items, self.width = item_tokens, items, width
        self.outcomes = nn.Embedding(event_tokens, OUTCOMES)
        nn.init.normal_(self.outcomes.weight, std=0.5)
        self.log_prior = nn.Parameter(torch.full((2,), math.log(START_EVENTS)))
        self.maps = nn.ModuleList(nn.Linear(STATISTICS, width, bias=False) for _ in range(2))
        self.scales = nn.Parameter(torch.ones(len(features) + 1))
        self.dropout = nn.Dropout(DROPOUT)
        self.features = features

    def kind_of(self, keys: Tensor) -> Tensor:
        """0 of items, else the number of the key's feature; -1 where it is not anchored, i64."""
        kinds = torch.full_like(keys, -1)
        for number, (start, size) in enumerate(self.features, 1):
            kinds[(keys > start) & (keys < start + size)] = number
        if self.items:
            kinds[keys >= self.item_tokens] = 0
        return kinds

    def forward(self, users: Users) -> Anchored:
        """The links of requests.

        Args:
            users: B requests, with the keys of their histories' items.
        """
        keys = users.keys
        if keys is None:
            raise RuntimeError("a model with anchored links needs the keys of the items")
        batch, size = users.items.shape
        real = torch.arange(size, device=users.lengths.device) < users.lengths[:, None]
        b_e, n_e = real.nonzero(as_tuple=True)
        item_e = users.items[real]
        counts_u = keys.offsets.diff()
        at, event = ragged(keys.offsets[item_e], counts_u[item_e])
        key = keys.keys[at]
        held = self.kind_of(key) >= 0
        key, event = key[held], event[held]
        most = int(key.max()) + 1 if len(key) else 1
        pair, order = (b_e[event] * most + key).sort(stable=True)
        first = torch.ones_like(pair, dtype=torch.bool)
        first[1:] = pair[1:] != pair[:-1]
        segment = first.cumsum(0) - 1
        start = first.nonzero()[:, 0]
        count_v = torch.cat([start, start.new_tensor([len(pair)])]).diff()
        event = event[order]
        later = (
            count_v[segment] - 1 - (torch.arange(len(pair), device=pair.device) - start[segment])
        )
        newest = event[start + count_v - 1]
        # Outcomes.
        tokens_ea = users.tokens[b_e, n_e]
        outcome_eo = self.outcomes(tokens_ea).sum(1)
        of_pair = outcome_eo[event]
        none = of_pair.new_zeros(len(start), OUTCOMES)
        n = count_v.to(of_pair.dtype)
        mean = none.index_add(0, segment, of_pair) / n[:, None]
        faded = none.index_add(0, segment, of_pair * (FADING**later)[:, None])
        faded = faded / ((1 - FADING**n) / (1 - FADING))[:, None]
        owner_v = b_e[newest]
        ago = (users.lengths[owner_v] - 1 - n_e[newest]).to(n.dtype)
        age = users.age[owner_v, n_e[newest]].to(n.dtype)
        statistics = torch.cat(
            [
                mean,
                faded,
                outcome_eo[newest],
                knots(n.log2(), COUNTS),
                knots((1 + ago).log2(), AGO),
                knots((1 + MINUTES * age).log2(), AGES),
            ],
            1,
        )
        key_v = pair[start] % most
        links = self.of_statistics(statistics, n, key_v)
        per = torch.bincount(owner_v, minlength=batch)
        return Anchored(torch.cat([per.new_zeros(1), per.cumsum(0)]), key_v, links)

    def of_statistics(self, statistics: Tensor, n: Tensor, key: Tensor) -> Tensor:
        """z of statistics [V, STATISTICS] of keys with n events."""
        kind = self.kind_of(key)
        is_item = kind == 0
        evidence = n / (n + self.log_prior.exp()[is_item.long()])
        x = self.dropout(statistics * evidence[:, None])
        of_items, of_values = self.maps[0](x), self.maps[1](x)
        return torch.where(is_item[:, None], of_items, of_values) * self.scales[kind][:, None]

    def gathered(self, anchored: Anchored, keys: ItemKeys, candidates: Tensor) -> Tensor:
        """z [B, M, r] of candidates i64 [B, M] (or [M], the same for all): positions of items whose
        keys are given."""
        batch = len(anchored)
        if candidates.dim() == 1:
            candidates = candidates.expand(batch, -1)
        size = candidates.shape[1]
        flat = candidates.reshape(-1)
        at, spot = ragged(keys.offsets[flat], keys.offsets.diff()[flat])
        out = anchored.links.new_zeros(batch * size, self.width)
        if len(at) and len(anchored.keys):
            most = int(max(keys.keys.max(), anchored.keys.max())) + 1
            owner = torch.repeat_interleave(anchored.offsets.diff())
            held = owner * most + anchored.keys
            sought = spot.div(max(size, 1), rounding_mode="floor") * most + keys.keys[at]
            found = torch.searchsorted(held, sought).clamp(max=len(held) - 1)
            hit = held[found] == sought
            links = anchored.links[found[hit]] * keys.shares[at[hit]][:, None]
            out = out.index_add(0, spot[hit], links)
        return out.view(batch, size, self.width)
