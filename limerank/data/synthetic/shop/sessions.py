"""The sessions of a simulated shop: aims, views, carts and purchases.

A session has one *aim*: a brand, a style, a price level or all of a category that the user likes;
what goes with something bought or noticed; an item noticed before; a consumable that is due; or
nothing in particular. Given the aim, its views are independent of each other, so the probability
that it ends with a purchase of an item has a closed form
(:mod:`limerank.data.synthetic.shop.truth`).
Shapes: n sessions, A aims, v views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from limerank.data.synthetic.shop.customers import INTERESTS, NOTICED, Customers
from limerank.data.synthetic.shop.products import (
    ALL,
    BRAND,
    BRANDS,
    CATEGORY,
    SET,
    STYLE,
    STYLES,
    TIER,
    TIERS,
    Products,
)
from limerank.data.synthetic.shop.world import (
    COMPLEMENT,
    INTEREST,
    POPULAR,
    REPEAT,
    RETURN,
    TO_CART,
    TO_PURCHASE,
    VIEWS,
    WANDER,
)

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

ITEM = -1
"""Kind of an aim at one item; its group is the item. Other kinds are those of pools."""
OF_INTEREST = {BRAND: 0.35, STYLE: 0.3, TIER: 0.15, CATEGORY: 0.2}
"""What a session looks for within the category of an interest."""
SAME_AGAIN = 0.75
"""Share of the repeats that aim at the very same item; the others at its brand."""


@dataclass(frozen=True)
class Aims:
    """What the next session of some users may aim at.

    Attributes:
        chance: probability of each aim, f64 [n, A]; rows sum to 1.
        intent: of each aim, i64 [A].
        kind: of each aim, i64 [A]: ``ITEM``, or which pools.
        group: a group of these pools, or an item, i64 [n, A].
    """

    chance: Values
    intent: Ints
    kind: Ints
    group: Ints

    def of(self, rows: Ints) -> Aims:
        """The aims of these sessions."""
        return replace(self, chance=self.chance[rows], group=self.group[rows])


def aims(products: Products, customers: Customers, user: Ints, step: int) -> Aims:
    """The aims of sessions of these users that begin at this step."""
    parts: list[tuple[int, int, Values, Ints]] = []
    intents = customers.intents(user, step)
    category = customers.category[user]
    groups = {
        BRAND: category * BRANDS + customers.brand[user],
        STYLE: category * len(STYLES) + customers.style[user],
        TIER: category * TIERS + customers.tier[user],
        CATEGORY: category,
    }
    share = intents[:, [INTEREST]] * INTERESTS
    for kind, part in OF_INTEREST.items():
        some = products.pools[kind].total(groups[kind]) > 0
        parts.append((INTEREST, kind, np.where(some, part * share, 0.0), groups[kind]))
        if kind != CATEGORY:  # nothing of it is on sale
            parts.append((INTEREST, CATEGORY, np.where(some, 0.0, part * share), category))

    def shared(intent: int, weights: Values) -> Values:
        total = weights.sum(axis=1, keepdims=True)
        return intents[:, [intent]] * weights / np.where(total > 0, total, 1.0)

    owned, noticed = np.maximum(customers.owned[user], 0), np.maximum(customers.noticed[user], 0)
    complement = shared(COMPLEMENT, customers.complement_weights(user, step))
    returned = shared(RETURN, customers.return_weights(user, step))
    repeat = shared(REPEAT, customers.due_weights(user, step))
    same_brand = products.category[owned] * BRANDS + products.brand[owned]
    parts += [
        (COMPLEMENT, SET, complement, products.set[np.concatenate([owned, noticed], axis=1)]),
        (RETURN, ITEM, returned, noticed),
        (REPEAT, ITEM, SAME_AGAIN * repeat, owned),
        (REPEAT, BRAND, (1 - SAME_AGAIN) * repeat, same_brand),
        (POPULAR, ALL, intents[:, [POPULAR]], np.zeros((len(user), 1), dtype=np.int64)),
    ]
    widths = [part[3].shape[1] for part in parts]
    return Aims(
        chance=np.concatenate([part[2] for part in parts], axis=1),
        intent=np.repeat([part[0] for part in parts], widths),
        kind=np.repeat([part[1] for part in parts], widths),
        group=np.concatenate([part[3] for part in parts], axis=1),
    )


def cart_chance(products: Products, intent: Ints, item: Ints) -> Values:
    """P(a view puts the item into the cart), where the user does not own it."""
    return np.minimum(TO_CART[intent] * products.appeal[item], 0.95)


@dataclass(frozen=True)
class Views:
    """The views of some sessions, in order of session and time.

    Attributes:
        session: of each view, i64 [v], ascending.
        item: i64 [v].
        carted, bought: whether the item was put into the cart, and bought at the end, bool [v]. An
            item is bought at most once in a session.
    """

    session: Ints
    item: Ints
    carted: Flags
    bought: Flags


def draw_views(
    products: Products, customers: Customers, user: Ints, found: Aims, rng: np.random.Generator
) -> Views:
    """What users look at, put into the cart and buy; one session of each of these users."""
    up_to = np.cumsum(found.chance, axis=1)
    drawn = rng.random((len(user), 1)) * up_to[:, -1:]
    aim = np.minimum((up_to <= drawn).sum(axis=1), up_to.shape[1] - 1)
    rows = np.arange(len(user))
    intent, kind, group = found.intent[aim], found.kind[aim], found.group[rows, aim]
    session = np.repeat(rows, rng.geometric(1.0 / VIEWS[intent]))
    item = group[session]
    kind_v = np.where(rng.random(len(session)) < WANDER, ALL, kind[session])
    for pools in np.unique(kind_v[kind_v != ITEM]):
        some = np.flatnonzero(kind_v == pools)
        of = np.where(pools == ALL, 0, item[some])
        item[some] = products.pools[pools].draw(of, rng)
    intent_v = intent[session]
    chance = cart_chance(products, intent_v, item)
    chance[customers.owns(user[session], item)] = 0.0
    carted = rng.random(len(session)) < chance
    bought = carted & (rng.random(len(session)) < TO_PURCHASE[intent_v])
    at = np.flatnonzero(bought)
    first = np.unique(session[at] * len(products.weight) + item[at], return_index=True)[1]
    once = np.zeros(len(session), dtype=np.bool_)
    once[at[first]] = True
    return Views(session, item, carted, once)


def remember(customers: Customers, user: Ints, views: Views, strength: float, step: int) -> None:
    """Update the state of users by their sessions.

    Args:
        customers: changed.
        user: of each session, distinct.
        views: of these sessions.
        strength: of what was put into the cart; 1 of what was looked at.
        step: the present.
    """
    count = np.bincount(views.session, minlength=len(user))
    last = np.cumsum(count) - 1
    for back in range(min(NOTICED, int(count.max(initial=0))) - 1, -1, -1):
        some = np.flatnonzero(count > back)
        at = last[some] - back
        weight = np.where(views.carted[at], strength, 1.0)
        customers.notice(user[some], views.item[at], weight, step)
    bought = np.flatnonzero(views.bought)
    while len(bought):
        session, first = np.unique(views.session[bought], return_index=True)
        customers.own(user[session], views.item[bought[first]], step)
        bought = np.delete(bought, first)
