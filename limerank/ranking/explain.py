"""Why an item has its ranking value: the part of each event of the history.

There are two measures. Both follow from the model's own arithmetic; neither is an estimate:

- **Share**: the part of an event in what a LIME item receives from the links, ``o_t = sum over
  links of W[t] LP``. ``share_j = sum_l w[l] a[l, j]``, where ``w[l]`` is the item's weight of link
  l, averaged over heads. A link weighs events by SiLU, with either sign (LIME-XOR: events that
  links have written to before), so ``a[l, j]`` is the absolute weight of event j for link l,
  summed over heads and scaled to a sum of one per link: where the link attends. Shares sum to one.
- **Effect**: the ranking value minus its value without the event. It is exact: the user's state is
  computed again without the event, and the item is scored again. The context of the request (its
  hour, the gap since the newest event) does not change. A negative effect means that the event
  lowered the value. For a ranker without links the effects are computed in the same manner, and the
  shares are the absolute effects.

Effects do not add up to the effect of the full history, since events repeat each other.

A model with anchored links has effects of these besides: :mod:`limerank.ranking.anchored`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Impressions, ItemKeys, Users
from limerank.models import Ranker
from limerank.models.neighbours import NEIGHBOUR
from limerank.ranking.anchored import AnchoredEffect, AnchorNames, added, anchored_effects
from limerank.results import TableResult, aligned, none_for_nan, printable

TITLE = 40
"""Characters of a title in a table of text."""


@dataclass(frozen=True)
class EventShare:
    """The part of one event of the history in an item's ranking value.

    Attributes:
        position: its position in the history, 0 the oldest.
        item: external id of its item.
        time: milliseconds since 1970, or its order where the log has no clock.
        age: days before the newest event of the history; events where the log has no clock.
        share: its share of what the item receives from the history; shares sum to one.
        effect: the ranking value minus the value without the event; NaN where it was not computed.
    """

    position: int
    item: Any
    time: int
    age: float
    share: float
    effect: float


@dataclass(frozen=True)
class FeatureEffect:
    """The effect of one impression feature of a candidate on its ranking value.

    Attributes:
        feature: its name.
        effect: the ranking value minus the value with this feature unknown.
    """

    feature: str
    effect: float


@dataclass(frozen=True, repr=False, eq=False)
class Explanation(TableResult):
    """Why one item has its ranking value; as a table, a row for each event of the history.

    Attributes:
        item: external id.
        value: the ranking value: the weighted sum of the tasks' logits.
        without_history: the value with an empty history.
        events: every event of the history, oldest first.
        links: the item's weights of the links, f32 [H, l]; None for models without links.
        reads: the links' weights of the events, f32 [l, N], rows sum to one; None for models
            without links.
        impression: effects of the impression features that were given with the candidate; empty
            where none were.
        anchored: anchored links that the item shares with the history, the largest effects first.
        titles: external id -> title, of the item and of the history's, where they have one.
    """

    item: Any
    value: float
    without_history: float
    events: tuple[EventShare, ...]
    links: NDArray[np.float32] | None
    reads: NDArray[np.float32] | None
    impression: tuple[FeatureEffect, ...] = ()
    anchored: tuple[AnchoredEffect, ...] = ()
    titles: Mapping[Any, str] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Explanation):
            return NotImplemented
        return self.to_dict() == other.to_dict() and all(
            np.array_equal(own, theirs) if own is not None and theirs is not None else own is theirs
            for own, theirs in ((self.links, other.links), (self.reads, other.reads))
        )

    def __hash__(self) -> int:
        return hash((self.item, self.value, self.without_history, len(self.events)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "item": self.item,
            **self.titled(self.item),
            "value": self.value,
            "without_history": self.without_history,
            "events": [
                {
                    **asdict(event),
                    "effect": none_for_nan(event.effect),
                    **self.titled(event.item),
                }
                for event in self.events
            ],
            **({"impression": [asdict(one) for one in self.impression]} if self.impression else {}),
            "anchored": [asdict(one) for one in self.anchored],
        }

    def titled(self, item: Any) -> dict[str, str]:
        """An item's title, as an entry of :meth:`to_dict`; empty where it has none."""
        title = self.titles.get(item)
        return {} if title is None else {"title": title}

    def columns(self) -> dict[str, list[Any]]:
        events = self.to_dict()["events"]
        return {one.name: [event[one.name] for event in events] for one in fields(EventShare)}

    def caption(self) -> str:
        of_features = [f"{one.feature} {one.effect:+.4f}" for one in self.impression]
        return (
            f"item {printable(named(self.item, self.titles))}: value {self.value:.4f}, "
            f"{self.without_history:.4f} with an empty history"
            + (f"; effects of {', '.join(of_features)}" if of_features else "")
        )

    def text(self) -> str:
        """The anchored links and the events, those with the largest effects first."""
        ordered = sorted(self.events, key=lambda event: -abs(np.nan_to_num(event.effect)))
        rows = [("position", "item", "age", "share", "effect")]
        for event in ordered:
            effect = "-" if math.isnan(event.effect) else f"{event.effect:+.4f}"
            rows.append(
                (
                    str(event.position),
                    named(event.item, self.titles),
                    f"{event.age:.2f}",
                    f"{event.share:.4f}",
                    effect,
                )
            )
        links = [("anchored link", "history", "effect")]
        for one in self.anchored:
            value = named(one.value, self.titles) if one.kind == NEIGHBOUR else one.value
            links.append((f"{one.kind} {value}", one.text, f"{one.effect:+.4f}"))
        above = aligned(links, "<<>") if self.anchored else []
        return "\n".join([self.caption(), *above, *aligned(rows, "><>>>")])

    def reasons(self, most: int = 3) -> list[EventShare]:
        """The events that raised the value most, the largest effect first."""
        helped = [event for event in self.events if event.effect > 0]
        return sorted(helped, key=lambda event: (-event.effect, event.position))[:most]

    def matches(self, most: int = 3) -> list[AnchoredEffect]:
        """The anchored links that raised the value most, the largest effect first."""
        return [one for one in self.anchored if one.effect > 0][:most]


def named(item: Any, titles: Mapping[Any, str]) -> str:
    """An item in a text: its id, and its title where it has one."""
    title = titles.get(item)
    return str(item) if title is None else f"{item} {title[:TITLE]}"


@dataclass(frozen=True)
class Past:
    """One user's request with its history, as a model's input, and the same with events removed.

    Attributes:
        users: the request, B = 1.
        vectors: the item vectors that it refers to, [U, d].
        items: external ids of the history's items, oldest first.
        times: times of its events.
        without: positions [P] -> P + 1 requests, in batches that refer to the same vectors: each
            lacks the event at one of the positions; the last has an empty history.
        outcomes: returns the names of each event's outcomes; nothing where they are not known.
        clock: whether times are milliseconds since 1970.
    """

    users: Users
    vectors: Tensor
    items: Sequence[Any]
    times: NDArray[np.int64]
    without: Callable[[NDArray[np.int64]], Iterable[Users]]
    outcomes: Callable[[], Sequence[Sequence[str]]] = tuple
    clock: bool = True


@torch.inference_mode()
def explain(
    ranker: Ranker,
    past: Past,
    items: Sequence[Any],
    vectors_md: Tensor,
    weights: NDArray[np.float32],
    *,
    shown: Impressions | None = None,
    features: Sequence[str] = (),
    keys: ItemKeys | None = None,
    counted: Tensor | None = None,
    names: AnchorNames | None = None,
    effects: int = 512,
) -> list[Explanation]:
    """Explain the ranking values of M items for one user.

    Args:
        ranker: the model.
        past: the user's request.
        items: external ids of the items, M of them.
        vectors_md: their item vectors.
        weights: of the tasks' logits in the ranking value, [K].
        shown: impression features of the items, [M, F], and ``features``: their names.
        keys: of the items; for a model with anchored links.
        counted: counters of the items, f32 [M, F], of a model that has counters; None: those that
            it has of the items of ``keys``.
        names: of the values of anchored features.
        effects: compute the effects of at most so many events, those with the largest shares.
    """
    if ranker.anchors is not None and keys is None:
        raise RuntimeError("a model with anchored links needs the keys of the explained items")
    length = int(past.users.lengths[0])
    terms = ranker.encode_items(vectors_md)
    weights_k = torch.from_numpy(np.asarray(weights, dtype=np.float32)).to(vectors_md.device)
    at = torch.arange(len(items), device=vectors_md.device)

    def values(users: Users, shown: Impressions | None) -> Tensor:
        """Ranking values [B, M]."""
        state = ranker.encode_users(users, past.vectors)
        extra = added(ranker.extra(state, keys, at, counted=counted), ranker.added_by(shown))
        return ranker.score(state, terms, extra) @ weights_k

    value_m = values(past.users, shown)[0]
    links_mhl: NDArray[np.float32] | None = None
    reads_ln: NDArray[np.float32] | None = None
    shares_mn = np.full((len(items), length), 1.0 / max(length, 1))
    if ranker.explains:
        w_mhl = ranker.link_weights(terms)
        reads_ln = _reads(ranker.read_weights(past.users, past.vectors)[0, ..., :length])
        links_mhl = w_mhl.float().cpu().numpy()
        shares_mn = w_mhl.mean(1).double().cpu().numpy() @ reads_ln.astype(np.float64)
    # Of equal shares the newest events come first.
    order = np.lexsort((np.arange(length), shares_mn.sum(0)))
    positions = np.sort(order[max(length - effects, 0) :])
    values_pm = torch.cat([values(part, shown) for part in past.without(positions)])
    effects_mn = np.full((len(items), length), np.nan)
    effects_mn[:, positions] = (value_m - values_pm[:-1]).T.double().cpu().numpy()
    if reads_ln is None:
        shares_mn = np.nan_to_num(np.abs(effects_mn)) + 1e-30
    shares_mn = shares_mn / shares_mn.sum(1, keepdims=True)
    of_features = _of_features(shown, features, lambda some: value_m - values(past.users, some)[0])
    ages = past.users.age[0].cpu().numpy()
    anchored: Sequence[tuple[AnchoredEffect, ...]] = [()] * len(items)
    if ranker.anchors is not None and keys is not None:
        users = ranker.completed(past.users)
        anchored = anchored_effects(
            ranker,
            users,
            ranker.encode_users(users, past.vectors),
            terms,
            keys,
            counted,
            weights_k,
            ranker.added_by(shown),
            items,
            names,
            past.times,
            past.outcomes(),
            clock=past.clock,
        )
    found = []
    for row, item in enumerate(items):
        events = tuple(
            EventShare(
                position,
                past.items[position],
                int(past.times[position]),
                float(ages[position]),
                float(shares_mn[row, position]),
                float(effects_mn[row, position]),
            )
            for position in range(length)
        )
        found.append(
            Explanation(
                item,
                float(value_m[row]),
                float(values_pm[-1, row]),
                events,
                None if links_mhl is None else links_mhl[row],
                reads_ln,
                of_features[row],
                anchored[row],
            )
        )
    return found


def _of_features(
    shown: Impressions | None,
    features: Sequence[str],
    effects: Callable[[Impressions], Tensor],
) -> Mapping[int, tuple[FeatureEffect, ...]]:
    """Of each item, the effects of its known impression features; ``effects`` returns those [M] of
    what some features lack."""
    found: defaultdict[int, tuple[FeatureEffect, ...]] = defaultdict(tuple)
    if shown is None:
        return found
    for at, feature in enumerate(features):
        others = torch.arange(len(features)) != at
        effect_m = effects(shown.where(others.to(shown.tokens.device)))
        for row in (shown.tokens[:, at] > 0).nonzero()[:, 0].tolist():
            found[row] += (FeatureEffect(feature, float(effect_m[row])),)
    return found


def _reads(weights_hln: Tensor) -> NDArray[np.float32]:
    """Absolute weights summed over heads, scaled to one per link; equal where all are zero."""
    sizes_ln = weights_hln.float().abs().sum(0)
    total_l1 = sizes_ln.sum(1, keepdim=True)
    even = 1.0 / max(sizes_ln.shape[1], 1)
    scaled_ln = torch.where(total_l1 > 0, sizes_ln / total_l1.clamp(min=1e-30), even)
    reads: NDArray[np.float32] = scaled_ln.cpu().numpy()
    return reads
