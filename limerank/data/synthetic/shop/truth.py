"""What a simulated shop knows: the probability of every purchase, in a closed form.

Of a session with intent z and aim a, each view is of item i with probability

    q(i) = WANDER popular(i) + (1 - WANDER) aim(i),

and ends in a purchase of it with probability p(i) = q(i) cart(i, z) purchase(z), independently of
the other views. The number of views is geometric with mean m(z), so that the session contains a
purchase of i with probability

    f(i | z, a) = 1 - E[(1 - p)^views] = p / (1 / m + (1 - 1 / m) p),

and before the session begins, with the user's interests and memory known,

    P(i) = sum over the aims a of P(a) f(i | z(a), a).

No ranking has a higher expected hit rate than that by P. Shapes: n sessions, I items.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from limerank.data.synthetic.shop.customers import Customers
from limerank.data.synthetic.shop.products import KINDS, Products
from limerank.data.synthetic.shop.sessions import ITEM, Aims, cart_chance
from limerank.data.synthetic.shop.world import INTENTS, TO_PURCHASE, VIEWS, WANDER

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

LIST = 50
"""Length of the lists that are stored: the best K items are among them for K up to some 20, where
items that the user has seen are left out."""
DEPTH = 10
"""Of the stored figures, HR@10 and NDCG@10."""
CELLS = 400_000_000
"""Sessions times items for which probabilities are computed, at most, about."""


def purchase_chances(products: Products, customers: Customers, user: Ints, known: Aims) -> Values:
    """P(the next session contains a purchase of the item), f64 [n, I].

    Args:
        products, customers: as they are when the sessions begin.
        user: of each session, i64 [n].
        known: the aims of these sessions.
    """
    n, items = len(user), len(products.weight)
    everything = np.arange(items)
    by_intent = np.stack(
        [known.chance[:, known.intent == z].sum(axis=1) for z in range(len(INTENTS))], axis=1
    )
    popular = np.stack(
        [_chance(products, z, everything, WANDER * products.weight) for z in range(len(INTENTS))]
    )
    found: Values = by_intent @ popular
    for kind in range(ITEM, len(KINDS)):
        columns = np.flatnonzero(known.kind == kind)
        row, column = np.nonzero(known.chance[:, columns] > 0)
        column = columns[column]
        if not len(row):
            continue
        group = known.group[row, column]
        if kind == ITEM:
            item, of, share = group, np.arange(len(group)), np.ones(len(group))
        else:
            pool = products.pools[kind]
            item, of = pool.members(group)
            share = products.weight[item] / pool.total(group)[of]
        row, column = row[of], column[of]
        intent = known.intent[column]
        wander = WANDER * products.weight[item]
        more = _chance(products, intent, item, wander + (1 - WANDER) * share)
        more = known.chance[row, column] * (more - popular[intent, item])
        found += np.bincount(row * items + item, more, n * items).reshape(n, items)
    owned = customers.owned[user]
    row, at = np.nonzero((owned >= 0) & (products.cycle[owned] == 0))
    found[row, owned[row, at]] = 0.0
    return found


def _chance(products: Products, intent: Any, item: Ints, view: Values) -> Values:
    """f, where a view is of the item with probability ``view``."""
    p = view * cart_chance(products, intent, item) * TO_PURCHASE[intent]
    return p / (1.0 / VIEWS[intent] + (1.0 - 1.0 / VIEWS[intent]) * p)


@dataclass
class Truth:
    """Collects the probabilities of the purchases that a simulation draws.

    Attributes:
        share: of the sessions with a purchase that the simulation adds.
        session, item, probability, rank: of each purchase, lists of arrays; the rank is that in
            the catalogue by P, from 1.
        listed: sessions of the lists, lists of arrays [n].
        best, best_probability: their items and P in descending order, lists of arrays [n, LIST].
    """

    share: float
    session: list[Ints] = field(default_factory=list)
    item: list[Ints] = field(default_factory=list)
    probability: list[Values] = field(default_factory=list)
    rank: list[Ints] = field(default_factory=list)
    listed: list[Ints] = field(default_factory=list)
    best: list[Ints] = field(default_factory=list)
    best_probability: list[Values] = field(default_factory=list)

    def add(self, chances: Values, session: Ints, row: Ints, item: Ints) -> None:
        """Add sessions.

        Args:
            chances: P, f64 [n, I].
            session: number of each session, i64 [n].
            row, item: the purchases: position in ``session``, and what was bought.
        """
        p = chances[row, item]
        better = (chances[row] > p[:, None]).sum(axis=1)
        equal = (chances[row] == p[:, None]) & (np.arange(chances.shape[1]) < item[:, None])
        self.session.append(session[row])
        self.item.append(item)
        self.probability.append(p)
        self.rank.append(1 + better + equal.sum(axis=1))
        most = min(LIST, chances.shape[1])
        some = np.argpartition(-chances, most - 1, axis=1)[:, :most]
        values = np.take_along_axis(chances, some, axis=1)
        order = np.lexsort((some, -values), axis=1)
        self.listed.append(session)
        self.best.append(np.take_along_axis(some, order, axis=1))
        self.best_probability.append(np.take_along_axis(values, order, axis=1))


def joined(parts: Iterable[Any], empty: tuple[int, ...] = (0,)) -> Any:
    """The arrays as one; zeros of the shape ``empty`` where there are none."""
    found = list(parts)
    return np.concatenate(found) if found else np.zeros(empty, dtype=np.int64)


def known_best(columns: dict[str, Any], truth: Truth, depth: int) -> dict[str, Any]:
    """HR and NDCG of the true probabilities: the best that a ranking can expect.

    Args:
        columns: the events in order of time.
        truth: of their sessions, or of some of them.
        depth: of the lists.

    Returns:
        ``all`` sessions and the ``last`` session with a purchase of each user -> ``purchases``,
        ``hr@K`` and ``ndcg@K`` of all items, and ``new_purchases``, ``new_hr@K`` and ``new_ndcg@K``
        of the items that the user had not seen before the session.
    """
    session, item = joined(truth.session), joined(truth.item)
    listed = joined(truth.listed)
    lists = joined(truth.best, (0, LIST))
    items = 1 + max(int(columns["item"].max(initial=0)), int(lists.max(initial=0)))
    first_event = np.unique(columns["session"], return_index=True)[1]
    user_of = columns["user"][first_event]
    # A pair of user and item is new to the session that holds its first event.
    pair, at = np.unique(columns["user"] * items + columns["item"], return_index=True)
    first_session = columns["session"][at]

    def new(of: Ints, what: Ints) -> npt.NDArray[np.bool_]:
        wanted = user_of[of] * items + what
        position = np.minimum(np.searchsorted(pair, wanted), max(len(pair) - 1, 0))
        if not len(pair):
            return np.ones(wanted.shape, dtype=np.bool_)
        return (pair[position] != wanted) | (first_session[position] >= of)

    unseen = new(listed[:, None], lists)
    row = np.searchsorted(listed, session)
    hit = lists[row] == item[:, None]
    rank_of_new = np.where(hit & unseen[row], np.cumsum(unseen, axis=1)[row], 0).sum(axis=1)
    ranks = joined(truth.rank)
    is_new = new(session, item)
    last = np.zeros(int(user_of.max(initial=-1)) + 1, dtype=np.int64) - 1
    bought = columns["event"] == columns["event"].max(initial=0)
    np.maximum.at(last, columns["user"][bought], columns["session"][bought])
    is_last = last[user_of[session]] == session
    found = {}
    for name, some in (("all", np.ones(len(session), dtype=np.bool_)), ("last", is_last)):
        fresh = some & is_new
        found[name] = {
            "purchases": int(some.sum()),
            **_figures(ranks[some], depth),
            "new_purchases": int(fresh.sum()),
            **{f"new_{k}": v for k, v in _figures(rank_of_new[fresh], depth).items()},
        }
    return found


def _figures(rank: Ints, depth: int) -> dict[str, float | None]:
    """HR and NDCG of lists with one relevant item each, by its rank; 0: not in the list."""
    hit = (rank >= 1) & (rank <= depth)
    gain = np.where(hit, 1.0 / np.log2(1.0 + np.maximum(rank, 1)), 0.0)
    known = len(rank) > 0
    return {
        f"hr@{depth}": float(hit.mean()) if known else None,
        f"ndcg@{depth}": float(gain.mean()) if known else None,
    }
