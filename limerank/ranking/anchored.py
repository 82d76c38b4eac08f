"""What the anchored links of an item add to its ranking value: "this very item: 3 events, the
newest 2 minutes before the end of the history".

The *effect* of an anchored link is the ranking value minus its value without this link (its z set
to zero, limerank.models.anchors), and everything else as it is. It is exact. An effect of an event
contains this, since without the event the anchored links are others, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import ItemKeys, Users
from limerank.data.encoding import read_vocabulary, read_vocabulary_ids
from limerank.data.features import anchors_of
from limerank.kernels.ragged import ragged
from limerank.models import Ranker
from limerank.models.config import ITEM
from limerank.models.neighbours import NEIGHBOUR
from limerank.runs.model import Trained

UNITS = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))


@dataclass(frozen=True)
class AnchoredEffect:
    """What one anchored link adds to an item's ranking value.

    Attributes:
        kind: "item", the name of the feature, or "neighbour" for an item that goes with it
            (limerank.models.neighbours).
        value: external id of the item or neighbour, or the feature's value.
        events: events of the history with this item or value, 1 or more.
        outcomes: names of outcomes (binary labels that are 1, values of categorical event features)
            -> how many of these events had them.
        ago: events of the history since the newest of them.
        age: days (events, where the log has no clock) from it to the newest event of the history.
        time: its time, milliseconds since 1970, or its order where the log has no clock.
        effect: the ranking value minus the value without this anchored link.
        text: the same in words.
    """

    kind: str
    value: Any
    events: int
    outcomes: dict[str, int] = field(hash=False)
    ago: int
    age: float
    time: int
    effect: float
    text: str


class AnchorNames:
    """Names of the keys of a run: features, and their values.

    Args:
        trained: the run.
    """

    def __init__(self, trained: Trained) -> None:
        self._folder = trained.path
        self._features = anchors_of(trained.manifest["encoding"])
        self._values: dict[str, dict[int, str]] = {}

    @cached_property
    def _items(self) -> list[Any]:
        """External ids by row of the id table, from row 1."""
        return read_vocabulary_ids(self._folder, "items").to_list()

    def of(self, token: int) -> tuple[str, Any]:
        """The feature and the value of a row of the items' content table; of the key of a neighbour
        :data:`NEIGHBOUR` and its external id.

        Raises:
            FormatError: the run's vocabulary is missing or damaged.
        """
        if token < 0:
            return NEIGHBOUR, self._items[-token - 1]
        for name, (start, size) in self._features.items():
            if start <= token < start + size:
                if name not in self._values:
                    table = read_vocabulary(self._folder, f"item_{name}")
                    self._values[name] = dict(table.select("code", "value").iter_rows())
                return name, self._values[name].get(token - start, "")
        raise ValueError(f"row {token} of the content table is no value of an anchored feature")


def anchored_effects(
    ranker: Ranker,
    users: Users,
    state: Any,
    terms: Any,
    keys: ItemKeys,
    counted: Tensor | None,
    weights_k: Tensor,
    besides: Tensor | None,
    items: Sequence[Any],
    names: AnchorNames | None,
    times: NDArray[np.int64],
    outcomes: Sequence[Sequence[str]],
    *,
    clock: bool,
) -> list[tuple[AnchoredEffect, ...]]:
    """The anchored links of M items, for each item those with the largest effects first.

    Args:
        ranker: a model with anchored links.
        users: one request.
        state: its state.
        terms: of the items, [M, ...].
        keys: of the items.
        counted: counters of the items, as for ``Ranker.extra``.
        weights_k: of the tasks' logits in the ranking value, f32 [K].
        besides: what is added to the items' first-layer sums besides anchored links, [1, M, s].
        items: external ids of the items.
        names: of values; None: values are rows of the content table.
        times: of the history's events.
        outcomes: names of each event's outcomes; empty where there are none.
        clock: whether times are milliseconds since 1970.
    """
    links, count = ranker.anchors, len(items)
    assert links is not None and users.keys is not None
    at = torch.arange(count, device=keys.keys.device)
    extra = added(ranker.extra(state, keys, at, counted=counted), besides)
    assert extra is not None
    value_m = ranker.score(state, terms, extra)[0] @ weights_k
    held = state.anchored.keys
    spot = torch.repeat_interleave(keys.offsets.diff())
    link = torch.searchsorted(held, keys.keys).clamp(max=max(len(held) - 1, 0))
    hit = held[link] == keys.keys if len(held) else torch.zeros_like(spot, dtype=torch.bool)
    hit &= keys.shares != 0
    spot, link, share = spot[hit], link[hit], keys.shares[hit]
    of_links = ranker.from_anchors(state.anchored.links[link] * share[:, None])
    # The first link of every item at once, then the second, and so on.
    order = torch.arange(len(spot), device=spot.device) - torch.searchsorted(spot, spot)
    effects = torch.zeros(len(spot), device=spot.device)
    for turn in range(int(order.max()) + 1 if len(spot) else 0):
        some = order == turn
        without = extra.clone()
        without[0, spot[some]] -= of_links[some]
        without_m = ranker.score(state, terms, without)[0] @ weights_k
        effects[some] = value_m[spot[some]] - without_m[spot[some]]

    length = int(users.lengths[0])
    item_n = users.items[0, :length]
    where, event = ragged(users.keys.offsets[item_n], users.keys.offsets.diff()[item_n])
    own = (users.keys.keys[where] >= 0) | (users.keys.shares[where] == 0)
    key_of, event_of = users.keys.keys[where[own]].cpu().numpy(), event[own].cpu().numpy()
    ages = users.age[0].cpu().numpy()
    found: list[list[AnchoredEffect]] = [[] for _ in items]
    for item, key, effect in zip(
        spot.tolist(), state.anchored.keys[link].tolist(), effects.tolist(), strict=True
    ):
        events = np.unique(event_of[key_of == key])
        newest = int(events[-1])
        counts = Counter(name for one in events if len(outcomes) for name in outcomes[int(one)])
        of_key: tuple[str, Any] = ITEM, items[item]
        if key < links.item_tokens:
            of_key = ("", key) if names is None else names.of(key)
        age, ago = float(ages[newest]), length - 1 - newest
        found[item].append(
            AnchoredEffect(
                *of_key,
                len(events),
                dict(counts.most_common()),
                ago,
                age,
                int(times[newest]),
                effect,
                in_words(len(events), counts, ago, age, clock=clock),
            )
        )
    return [tuple(sorted(of_item, key=lambda one: -abs(one.effect))) for of_item in found]


def added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two additions to first-layer sums, either of which may be nothing."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def in_words(events: int, outcomes: Counter[str], ago: int, age: float, *, clock: bool) -> str:
    """Such as "3 events (click 2), the newest 2 minutes before the end of the history"."""
    parts = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    text = f"{_counted(events, 'event')}{f' ({parts})' if parts else ''}"
    if not ago:
        return f"{text}, {'the newest is' if events > 1 else 'it is'} the last of the history"
    span = _counted(ago, "event")
    if clock:
        seconds = age * 86_400
        size, unit = next((one for one in UNITS if seconds >= one[0]), UNITS[-1])
        span = _counted(round(seconds / size), unit)
    return f"{text}, {'the newest ' if events > 1 else ''}{span} before the end of the history"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
