"""Why an item stands where it stands: events -> links -> items.

Two answers, and neither is an estimate of what the model did:

- **Shares**: of what a LIME item receives from the links, ``o_t = sum over links of W[t] LP``,
  the part that each event has in it. ``share_j = sum_l w[l] a[l, j]``, where ``w[l]`` is the item's
  weight of link l, averaged over heads. Links weigh events by SiLU, with either sign (LIME-XOR:
  events that links have written to before): ``a[l, j]`` is the size of the link's weight of event
  j, over heads, scaled to one per link: a picture of where links look. Shares sum to one.
- **Effects**: by how much the ranking value would be lower had the event never happened. Exact by
  definition: the state is computed again without the event and the item is scored again; the
  request's context (its hour, the gap since the newest event) stays what it was. A negative effect:
  the event spoke against the item. Effects of a ranker without links are computed alike, and its
  shares are the sizes of the effects.

Effects do not add up to the whole effect of the history, since events repeat each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Users
from limerank.models import Ranker


@dataclass(frozen=True)
class EventShare:
    """What one event of the history did for an item.

    Attributes:
        place: its place in the history, 0 the oldest.
        item: external id of its item.
        time: milliseconds since 1970, or its order where the log has no clock.
        age: days (events) before the newest event of the history.
        share: of what the item receives from the history; shares sum to one.
        effect: the ranking value with the event minus the value without it; NaN where it was not
            asked for.
    """

    position: int
    item: Any
    time: int
    age: float
    share: float
    effect: float


@dataclass(frozen=True)
class Explanation:
    """Why one item got its ranking value.

    Attributes:
        item: external id.
        value: the ranking value: the weighted sum of the tasks' logits.
        without_history: what it would be with an empty history.
        events: every event of the history, oldest first.
        links: the item's weights of the links, f32 [H, l]; None for models without links.
        reads: how much the links weigh the events, f32 [l, N], rows sum to one; None likewise.
    """

    item: Any
    value: float
    without_history: float
    events: tuple[EventShare, ...]
    links: NDArray[np.float32] | None
    reads: NDArray[np.float32] | None

    def reasons(self, most: int = 3) -> list[EventShare]:
        """The events that raised the value, the strongest first."""
        helped = [event for event in self.events if event.effect > 0]
        return sorted(helped, key=lambda event: (-event.effect, event.position))[:most]


@dataclass(frozen=True)
class Past:
    """One user's history as the model sees it, and how to take events away from it.

    Attributes:
        users: the request, B = 1.
        vectors: the item vectors that it refers to, [U, d].
        items: external ids of the history's items, oldest first.
        times: times of its events.
        without: given places [P], the same request with histories that lack one event each and,
            last, with an empty one: P + 1 requests, in batches that refer to the same vectors.
    """

    users: Users
    vectors: Tensor
    items: Sequence[Any]
    times: NDArray[np.int64]
    without: Callable[[NDArray[np.int64]], Iterable[Users]]


@torch.inference_mode()
def explain(
    ranker: Ranker,
    past: Past,
    items: Sequence[Any],
    vectors_md: Tensor,
    weights: NDArray[np.float32],
    *,
    effects: int = 512,
) -> list[Explanation]:
    """Explain the ranking values of M items for one user.

    Args:
        ranker: the model.
        past: the user's history.
        items: external ids of the items, M of them.
        vectors_md: their item vectors.
        weights: of the tasks' logits in the ranking value, [K].
        effects: compute the effects of at most so many events, those with the greatest shares.
    """
    length = int(past.users.lengths[0])
    terms = ranker.encode_items(vectors_md)
    weights_k = torch.from_numpy(np.asarray(weights, dtype=np.float32)).to(vectors_md.device)
    value_m = ranker.score(ranker.encode_users(past.users, past.vectors), terms)[0] @ weights_k
    links_mhl: NDArray[np.float32] | None = None
    reads_ln: NDArray[np.float32] | None = None
    shares_mn = np.full((len(items), length), 1.0 / max(length, 1))
    if ranker.explains:
        w_mhl = ranker.link_weights(terms)
        reads_ln = _reads(ranker.read_weights(past.users, past.vectors)[0, ..., :length])
        links_mhl = w_mhl.float().cpu().numpy()
        shares_mn = w_mhl.mean(1).double().cpu().numpy() @ reads_ln.astype(np.float64)
    # Of equal shares the newest events are taken.
    order = np.lexsort((np.arange(length), shares_mn.sum(0)))
    positions = np.sort(order[max(length - effects, 0) :])
    parts = past.without(positions)
    values_pm = torch.cat(
        [ranker.score(ranker.encode_users(part, past.vectors), terms) @ weights_k for part in parts]
    )
    effects_mn = np.full((len(items), length), np.nan)
    effects_mn[:, positions] = (value_m - values_pm[:-1]).T.double().cpu().numpy()
    if reads_ln is None:
        shares_mn = np.nan_to_num(np.abs(effects_mn)) + 1e-30
    shares_mn = shares_mn / shares_mn.sum(1, keepdims=True)
    ages = past.users.age[0].cpu().numpy()
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
            )
        )
    return found


def _reads(weights_hln: Tensor) -> NDArray[np.float32]:
    """Sizes of weights over heads, scaled to one per link; even where all are zero."""
    sizes_ln = weights_hln.float().abs().sum(0)
    total_l1 = sizes_ln.sum(1, keepdim=True)
    even = 1.0 / max(sizes_ln.shape[1], 1)
    scaled_ln = torch.where(total_l1 > 0, sizes_ln / total_l1.clamp(min=1e-30), even)
    reads: NDArray[np.float32] = scaled_ln.cpu().numpy()
    return reads
