"""Anchored links: what a user's history holds of exactly one item, or of one value of a feature.

Learned links are a low-rank bottleneck: ``o_t = W_t LP``. With them alone no model can tell this
item, or this category, apart from others once there are more of them than links. An *anchored* link
is not learned: there is one for each item and one for each value of the anchored features. Exactly
the items that have the value receive from it, so its weights are known beforehand::

    z(u, t) = sum over keys v of t of share(t, v) z(u, v)            z(u, v) in R^r
    a(u, t) = ... + A_z z(u, t)                                       the head's first layer

``z(u, v)`` is what a small network makes of the statistics of v in the history of u, and zero where
the history has no event with v:

- the outcome of the newest event with v, the mean outcome, and the mean that weighs each event by
  :data:`FADING` for every later one with v;
- how many events there were, how many events ago and how long ago the newest one was: positions on
  logarithmic scales, as weights of the two nearest knots;
- where the log has a binary label: how many events after the user's newest positive event, or
  before it, the newest one with v was, on a scale of the same kind in both directions. What was
  seen since the last purchase says more than what led to it. Zero without a positive event.

All are scaled by the evidence n / (n + k). ``A_z`` starts at zero: a model begins as it is without
anchored links. Items have a network of their own; features share one, and each has a learned scale.
Neighbours of items (limerank.models.neighbours) have a third one.

Shape letters: B requests, N history positions, U items, M candidates, V pairs of a request and a
key in its history, o outcome numbers, r numbers of an anchored link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import ItemKeys, Users
from limerank.kernels.history import LinkLayers, anchored_links
from limerank.kernels.ragged import ragged

OUTCOMES = 8
"""Numbers of an embedded outcome, o."""
FADING = 0.6
"""Weight of an event with a value relative to the next one with it, in the fading mean."""
FADED = 36
"""Events with a key that the fading mean of a prefix reads: FADING ** 36 is 1e-8."""
HIDDEN = 32
"""Hidden units of the network."""
START_EVENTS = 1.0
"""Number of events at which the evidence is one half when training starts."""
COUNTS = 0.0, 1.0, 2.0, 3.0, 4.0
"""Knots of log2(n)."""
AGO = 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0
"""Knots of log2(1 + events since)."""
AGES = 0.0, 2.0, 4.0, 6.0, 9.0, 11.0, 13.0, 15.0, 17.0
"""Knots of log2(1 + minutes since); days of 1,440 minutes."""
FROM = 1.0, 2.0, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0
SINCE = (*(-at for at in reversed(FROM)), 0.0, *FROM)
"""Knots of sign(d) log2(1 + |d|) of d events after the newest positive one."""
MINUTES = 1440.0
PRIORS = torch.tensor([1, 0, 2])
"""The entry of ``log_prior`` of each network: of items, features and neighbours."""
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

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.offsets.nbytes + self.keys.nbytes + self.links.nbytes

    def __getitem__(self, part: slice) -> Anchored:
        """Those of some requests, side by side."""
        low, high, _ = part.indices(len(self))
        offsets = self.offsets[low : max(low, high) + 1]
        of = slice(int(offsets[0]), int(offsets[-1]))
        return Anchored(offsets - offsets[0], self.keys[of], self.links[of])


class KeyStatistics(NamedTuple):
    """What the histories of B requests hold of V keys, from which anchored links follow.

    Sums alone: those of two consecutive parts of a history give those of the history.

    Attributes:
        offsets: where each request's keys begin and, last, end, i64 [B + 1].
        keys: i64 [V], ascending within a request.
        counts: events with the key, i64 [V], at least 1.
        sums: sum of their outcomes, f32 [V, o].
        faded: the same with the weight :data:`FADING` ** (later events with the key), f32 [V, o].
        newest: outcome of the newest of them, f32 [V, o].
        ago: events of the history since it, i64 [V].
        age: days (events, where the log has no clock) from it to the newest event of the history,
            f32 [V].
        positive: events of each history up to its newest positive one, that one included, i64 [B];
            0: none.
        events: events of each history, i64 [B].
    """

    offsets: Tensor
    keys: Tensor
    counts: Tensor
    sums: Tensor
    faded: Tensor
    newest: Tensor
    ago: Tensor
    age: Tensor
    positive: Tensor
    events: Tensor


class _Pairs(NamedTuple):
    """Pairs of an event and a key: the key, the request and the event's position in its history,
    i64 [P]; and whether a pair is the first of its request and key, bool [P]."""

    key: Tensor
    owner: Tensor
    position: Tensor
    first: Tensor


def fading_sum(n: Tensor) -> Tensor:
    """Sum of the weights of n events in the fading mean."""
    return (1 - FADING**n) / (1 - FADING)


def fading_weights(fading: Tensor | float, later: Tensor) -> Tensor:
    """Weights of events that ``later`` ones followed. Below 1e-20 they count as 0: much smaller
    numbers are slow to multiply."""
    weights = torch.as_tensor(fading) ** later
    return torch.where(weights < 1e-20, 0.0, weights)


def _keys_of(keys: ItemKeys, items: Tensor) -> tuple[Tensor, Tensor]:
    """Of items i64 [n] the positions of the keys that they receive from, and the number of the item
    of each, 0 .. n - 1: i64 [T]."""
    at, spot = ragged(keys.offsets[items], keys.offsets.diff()[items])
    received = keys.shares[at] != 0
    return at[received], spot[received]


def _contains(ascending: Tensor, values: Tensor) -> Tensor:
    """Which of the values are among the ascending ones."""
    if not len(ascending):
        return torch.zeros_like(values, dtype=torch.bool)
    found = torch.searchsorted(ascending, values).clamp(max=len(ascending) - 1)
    return ascending[found] == values


def matches(anchored: Anchored, keys: ItemKeys) -> tuple[Tensor, Tensor, Tensor]:
    """Every key that a request's anchored links and an item have in common.

    Returns:
        The request and the position of the item, i64 [P], and the link times the share, [P, r].
    """
    order, low, high = key_ranges(anchored, keys)
    at, link = ragged(low, high - low)
    at = order[at]
    request = torch.repeat_interleave(anchored.offsets.diff())[link]
    item = torch.repeat_interleave(keys.offsets.diff())[at]
    return request, item, anchored.links[link] * keys.shares[at][:, None]


def key_ranges(anchored: Anchored, keys: ItemKeys) -> tuple[Tensor, Tensor, Tensor]:
    """The keys of items in ascending order, i64 [T], and which of them each link has: from the
    first one to the one before the last, i64 [V] each."""
    ordered, order = keys.keys.sort(stable=True)
    low = torch.searchsorted(ordered, anchored.keys)
    return order, low, torch.searchsorted(ordered, anchored.keys, right=True)


def knots(x: Tensor, at: tuple[float, ...]) -> Tensor:
    """Weights of the two nearest knots, [n, knots]: a piecewise linear scale, constant beyond."""
    position = x.new_tensor(at)
    x = x.clamp(at[0], at[-1])[:, None]
    gaps = position.diff()
    low = (x - position[:-1]) / gaps
    up = torch.cat([torch.ones_like(x), low], 1).clamp(0, 1)
    down = torch.cat([low, torch.zeros_like(x)], 1).clamp(0, 1)
    return up - down


def _since(number: Tensor, positive: Tensor) -> Tensor:
    """Events from number ``positive`` of a history to another one, f32; NaN where ``positive`` is
    0: none is."""
    return (number - positive).float().where(positive > 0, math.nan)


def _sortable(owners: Tensor, keys: Tensor, first: int, most: int) -> Tensor:
    """One number for each pair of a request and a key in ``first .. first + most - 1``, ascending
    with both."""
    return owners * most + (keys - first)


def signed(x: Tensor) -> Tensor:
    """sign(x) log2(1 + |x|)."""
    return x.sign() * (1 + x.abs()).log2()


def _map(statistics: int, width: int) -> nn.Sequential:
    """The network from statistics to the numbers of a link."""
    return nn.Sequential(
        nn.Linear(statistics, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, width, bias=False)
    )


class AnchoredLinks(nn.Module):
    """The anchored links of one model.

    Args:
        event_tokens: rows of the table of outcomes.
        item_tokens: rows of the items' content table.
        items: whether items are anchored.
        features: first row and number of rows of each anchored feature in the content table.
        width: numbers of a link, r.
        dropout: share of the statistics that a training step drops.
        neighbours: rows of the id table, where items receive from their neighbours; 0: they do not.
        positive: the event token of a positive outcome; None: links do not know which events are.

    Attributes:
        features: first row and number of rows of each anchored feature and, last, the first key and
            the number of keys of neighbours, where there are some.
    """

    def __init__(
        self,
        event_tokens: int,
        item_tokens: int,
        items: bool,
        features: tuple[tuple[int, int], ...],
        width: int,
        dropout: float,
        neighbours: int = 0,
        positive: int | None = None,
    ) -> None:
        super().__init__()
        self.item_tokens, self.items, self.width = item_tokens, items, width
        self.neighbours, self.positive = neighbours, positive
        self.outcomes = nn.Embedding(event_tokens, OUTCOMES)
        nn.init.normal_(self.outcomes.weight, std=0.5)
        networks = 3 if neighbours else 2
        self.log_prior = nn.Parameter(torch.full((networks,), math.log(START_EVENTS)))
        statistics = STATISTICS + (0 if positive is None else len(SINCE))
        self.maps = nn.ModuleList(_map(statistics, width) for _ in range(networks))
        self.scales = nn.Parameter(torch.ones(len(features) + 1))
        self.dropout = nn.Dropout(dropout)
        self.features = (*features, (-neighbours, neighbours)) if neighbours else features

    def kind_of(self, keys: Tensor) -> Tensor:
        """0 of items, else the number of the key's feature; -1 where it is not anchored, i64."""
        kinds = torch.full_like(keys, -1)
        for number, (start, size) in enumerate(self.features, 1):
            kinds[(keys > start) & (keys < start + size)] = number
        if self.items:
            kinds[keys >= self.item_tokens] = 0
        return kinds

    def forward(
        self, users: Users, candidates: Tensor | None = None, native: bool = False
    ) -> Anchored:
        """The links of requests.

        Args:
            users: B requests, with the keys of their histories' items.
            candidates: positions of all items that will receive from them, among those with keys,
                i64 [B, M]: the links of other keys are left out.
            native: compute them in C++: without gradients, float32 on the processor.
        """
        if native and users.keys is not None:
            of, keys = users, users.keys
            histories = (of.items, of.tokens, of.age, of.lengths)
            of_items = (keys.offsets, keys.keys, keys.shares)
            return Anchored(*anchored_links(self.layers(), *histories, *of_items))
        return self.links_of(self.statistics(users, candidates))

    def statistics(self, users: Users, candidates: Tensor | None = None) -> KeyStatistics:
        """What the histories hold of each key that is anchored; with candidates i64 [B, M], of each
        one that these have."""
        pairs = self._pairs(users, candidates)
        start = pairs.first.nonzero()[:, 0]
        count_v = torch.cat([start, start.new_tensor([len(pairs.key)])]).diff()
        segment = pairs.first.cumsum(0) - 1
        newest = start + count_v - 1
        outcome_po = self._outcomes(users, pairs)
        later = newest[segment] - torch.arange(len(segment), device=segment.device)
        none = outcome_po.new_zeros(len(start), OUTCOMES)
        owner, position = pairs.owner[newest], pairs.position[newest]
        counts_b = torch.bincount(owner, minlength=len(users.lengths))
        return KeyStatistics(
            torch.cat([counts_b.new_zeros(1), counts_b.cumsum(0)]),
            pairs.key[start],
            count_v,
            none.index_add(0, segment, outcome_po),
            none.index_add(0, segment, outcome_po * fading_weights(FADING, later)[:, None]),
            outcome_po[newest],
            users.lengths[owner] - 1 - position,
            users.age[owner, position],
            F.pad(self._positives(users), (1, 0)).amax(1),
            users.lengths,
        )

    def _positives(self, users: Users) -> Tensor:
        """Of each positive event, the events of its history up to it, that one included; 0 of all
        others: i64 [B, N]."""
        size = users.items.shape[1]
        number = torch.arange(1, size + 1, device=users.lengths.device).expand(users.items.shape)
        if self.positive is None:
            return torch.zeros_like(number)
        held = (users.tokens == self.positive).any(-1) & (number <= users.lengths[:, None])
        return number * held

    def links_of(self, statistics: KeyStatistics) -> Anchored:
        """The links of requests with these statistics."""
        offsets, keys, counts, sums, faded, newest, ago, age, positive, events = statistics
        n = counts.to(sums.dtype)
        mean, fading = sums / n[:, None], faded / fading_sum(n)[:, None]
        owner = torch.repeat_interleave(offsets.diff())
        since = _since(events[owner] - ago, positive[owner])
        links = self.of_statistics(keys, n, mean, fading, newest, ago, age, since)
        return Anchored(offsets, keys, links)

    def layers(self) -> LinkLayers:
        """The parameters and constants of :meth:`forward`."""
        networks = []
        for of in self.maps:
            assert isinstance(of, nn.Sequential)
            first, second = of[0], of[2]
            assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
            networks.append((first.weight, first.bias, second.weight))
        return LinkLayers(
            features=self.features,
            items=self.items,
            item_tokens=self.item_tokens,
            outcomes=self.outcomes.weight,
            log_prior=self.log_prior,
            networks=networks,
            scales=self._scales(),
            neighbours=self.neighbours > 0,
            fading=FADING,
            knots=(COUNTS, AGO, AGES, SINCE),
            positive=-1 if self.positive is None else self.positive,
            per_day=MINUTES,
        )

    def of_prefixes(self, users: Users, owner_m: Tensor, prefix_m: Tensor) -> Anchored:
        """The links of M impressions, each of exactly the events before it. They take memory in
        proportion to the impressions times the length of their histories.

        Args:
            users: B histories, with the keys of their items.
            owner_m: the history of each impression, i64.
            prefix_m: how many of its events each one sees, i64.
        """
        some = slice(0, int(prefix_m.max()) if len(prefix_m) else 0)
        age_mn = users.age[owner_m, some]
        if age_mn.shape[1]:  # counted from the newest event that each one sees
            age_mn = age_mn - age_mn.gather(1, (prefix_m - 1).clamp(min=0)[:, None])
        seen = replace(
            users,
            items=users.items[owner_m, some],
            tokens=users.tokens[owner_m, some],
            age=age_mn,
            lengths=prefix_m,
        )
        return self(seen)

    def at_prefixes(
        self, users: Users, owner_m: Tensor, prefix_m: Tensor, candidates_m: Tensor
    ) -> Tensor:
        """What M impressions receive, each from exactly the events before it: z [M, r].

        Args:
            users: B histories, with the keys of all items.
            owner_m: the history of each impression, i64.
            prefix_m: how many of its events each one sees, i64.
            candidates_m: positions of their items among those with keys, i64.
        """
        keys, pairs = users.keys, self._pairs(users)
        assert keys is not None
        out = users.age.new_zeros(len(owner_m), self.width)
        at, spot = _keys_of(keys, candidates_m)
        if not len(at) or not len(pairs.key):
            return out
        key = keys.keys[at]
        size = users.items.shape[1] + 1
        most = int(max(key.max(), pairs.key.max())) + 1 + self.neighbours
        order = _sortable(pairs.owner, pairs.key, -self.neighbours, most) * size + pairs.position
        wanted = _sortable(owner_m[spot], key, -self.neighbours, most)
        newest = torch.searchsorted(order, wanted * size + prefix_m[spot]) - 1
        seen = (newest >= 0) & (
            order[newest.clamp(min=0)].div(size, rounding_mode="floor") == wanted
        )
        newest, at, spot, key = newest[seen], at[seen], spot[seen], key[seen]
        owner, position = pairs.owner[newest], pairs.position[newest]
        # Of the events with the key up to the newest one.
        start = torch.searchsorted(order, wanted[seen] * size)
        count = newest - start + 1
        outcome_po = self._outcomes(users, pairs)
        sums = outcome_po.double().cumsum(0)
        sums = torch.cat([sums.new_zeros(1, OUTCOMES), sums])
        n = count.to(outcome_po.dtype)
        mean = ((sums[newest + 1] - sums[start]) / count[:, None]).to(n.dtype)
        faded = torch.zeros_like(mean)
        for later in range(min(int(count.max()), FADED) if len(count) else 0):
            weight = FADING**later * (later < count).to(n.dtype)
            faded = faded + weight[:, None] * outcome_po[(newest - later).clamp(min=0)]
        end = prefix_m[spot] - 1
        positive = F.pad(self._positives(users).cummax(1).values, (1, 0))[owner, end + 1]
        links = self.of_statistics(
            key,
            n,
            mean,
            faded / fading_sum(n)[:, None],
            outcome_po[newest],
            end - position,
            users.age[owner, position] - users.age[owner, end],
            _since(position + 1, positive),
        )
        return out.index_add(0, spot, links * keys.shares[at][:, None])

    def _pairs(self, users: Users, candidates: Tensor | None = None) -> _Pairs:
        """All pairs of an event and a key of its item (with candidates i64 [B, M], of each key that
        a candidate of the request has), ordered by request, key and event."""
        keys = users.keys
        if keys is None:
            raise RuntimeError("a model with anchored links needs the keys of the items")
        real = torch.arange(users.items.shape[1], device=users.lengths.device)
        owner_e, position_e = (real < users.lengths[:, None]).nonzero(as_tuple=True)
        item_e = users.items[owner_e, position_e]
        held = self.kind_of(keys.keys) >= 0
        if self.neighbours:  # an event has its own key alone
            held &= (keys.keys >= 0) | (keys.shares == 0)
        own = held.nonzero()[:, 0]
        first = torch.searchsorted(own, keys.offsets)
        at, event = ragged(first[item_e], first.diff()[item_e])
        key = keys.keys[own[at]]
        most = int(keys.keys.max()) + 1 + self.neighbours if len(keys.keys) else 1
        pairs = _sortable(owner_e[event], key, -self.neighbours, most)
        if candidates is not None:
            at, spot = _keys_of(keys, candidates.reshape(-1))
            owner = spot.div(max(candidates.shape[1], 1), rounding_mode="floor")
            wanted = _sortable(owner, keys.keys[at], -self.neighbours, most).sort().values
            held = _contains(wanted, pairs)
            pairs, event = pairs[held], event[held]
        pair, order = pairs.sort(stable=True)
        first = torch.ones_like(pair, dtype=torch.bool)
        first[1:] = pair[1:] != pair[:-1]
        event = event[order]
        return _Pairs(pair % most - self.neighbours, owner_e[event], position_e[event], first)

    def _outcomes(self, users: Users, pairs: _Pairs) -> Tensor:
        """The embedded outcome of each pair's event, [P, o]."""
        tokens_bna = users.tokens
        flat = pairs.owner * tokens_bna.shape[1] + pairs.position
        tokens_ea = tokens_bna.flatten(0, 1)
        if len(flat) < len(tokens_ea):  # fewer pairs than events: no event without one
            return self.outcomes(tokens_ea[flat]).sum(1)
        return self.outcomes(tokens_ea).sum(1)[flat]

    def of_statistics(
        self,
        key: Tensor,
        n: Tensor,
        mean: Tensor,
        faded: Tensor,
        newest: Tensor,
        ago: Tensor,
        age: Tensor,
        since: Tensor,
    ) -> Tensor:
        """z [V, r] of V pairs of a request and a key in its history.

        Args:
            key: i64 [V].
            n: events with the key, f32 [V], at least 1.
            mean, faded, newest: their mean outcome, the fading mean, the newest one, f32 [V, o].
            ago: events since the newest of them, [V].
            age: days (events, where the log has no clock) since it, f32 [V].
            since: events from the newest positive one to it, negative where it was before, f32 [V];
                NaN: none is positive.
        """
        kind = self.kind_of(key)
        network = torch.where(key < 0, 2, (kind > 0).long())
        scales = [
            knots(n.log2(), COUNTS),
            knots((1 + ago.to(n.dtype)).log2(), AGO),
            knots((1 + MINUTES * age).log2(), AGES),
        ]
        if self.positive is not None:
            known = ~since.isnan()
            scales.append(knots(signed(since.where(known, 0.0)), SINCE) * known[:, None])
        x = torch.cat([mean, faded, newest, *scales], 1)
        evidence = n / (n + self.log_prior.exp()[PRIORS.to(key.device)[network]])
        x = self.dropout(x * evidence[:, None])
        z = torch.where((network == 0)[:, None], self.maps[0](x), self.maps[1](x))
        if self.neighbours:
            z = torch.where((network == 2)[:, None], self.maps[2](x), z)
        return z * self._scales()[kind][:, None]

    def _scales(self) -> Tensor:
        """Of each kind of key; that of neighbours is in their network."""
        return torch.cat([self.scales, self.scales.new_ones(1)]) if self.neighbours else self.scales

    def gathered(self, anchored: Anchored, keys: ItemKeys, candidates: Tensor) -> Tensor:
        """z [B, M, r] of candidates i64 [B, M] (or [M], the same for all): positions of items whose
        keys are given."""
        batch = len(anchored)
        if candidates.dim() == 1:
            items = len(keys.offsets) - 1
            request, item, links = matches(anchored, keys)
            all_items = anchored.links.new_zeros(batch * items, self.width)
            all_items = all_items.index_add(0, request * items + item, links)
            return all_items.view(batch, items, self.width)[:, candidates]
        size = candidates.shape[1]
        at, spot = _keys_of(keys, candidates.reshape(-1))
        out = anchored.links.new_zeros(batch * size, self.width)
        if len(at) and len(anchored.keys):
            first = -self.neighbours
            most = int(max(keys.keys.max(), anchored.keys.max())) + 1 - first
            owner = torch.repeat_interleave(anchored.offsets.diff())
            held = _sortable(owner, anchored.keys, first, most)
            of = spot.div(max(size, 1), rounding_mode="floor")
            sought = _sortable(of, keys.keys[at], first, most)
            found = torch.searchsorted(held, sought).clamp(max=len(held) - 1)
            hit = held[found] == sought
            links = anchored.links[found[hit]] * keys.shares[at[hit]][:, None]
            out = out.index_add(0, spot[hit], links)
        return out.view(batch, size, self.width)
