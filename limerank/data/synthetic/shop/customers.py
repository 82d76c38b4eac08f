"""The users of a simulated shop: what they like, and what they remember of their sessions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from limerank.data.synthetic.shop.products import CATEGORY, Products
from limerank.data.synthetic.shop.world import (
    COMPLEMENT,
    EVENTS_PER_SESSION,
    INTENTS,
    INTEREST,
    POPULAR,
    REPEAT,
    RETURN,
    STEPS_PER_DAY,
    ShopWorld,
)

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

FIRST_USERS = 0.6
"""Share that has registered when the log begins."""
ACTIVITY_SPREAD = 1.0
INTERESTS = np.array([0.65, 0.2, 0.15])
"""How often a user looks for each of a few categories; in each for a brand and a style."""
INTEREST_DAYS, STYLE_DAYS = 40.0, 150.0
"""Mean lives of an interest and of a user's taste in styles."""
SATISFIED = 0.5
"""Probability that an interest ends when something of its category that lasts is bought."""
OWN_STYLE = 0.7
"""Share of the interests that have the user's own style."""
NOTICED, OWNED = 8, 16
"""Items that a user remembers: looked at but not bought, and bought."""
ALSO = 0.25
"""Strength of the wish for a complement of something that was looked at, of that for a complement
of a purchase."""
CART_STRENGTH = 4.0
"""An item in the cart is remembered as if it had been looked at so often."""
RETURN_DAYS, COMPLEMENT_DAYS = 4.0, 12.0
"""In this time the wish to return, and the wish for a complement, decline to 1/e."""
DUE_SPREAD = 0.25
"""Standard deviation of the time until the next purchase of a consumable, in cycles."""


class Customers:
    """The users and their state; ``-1`` in ``noticed`` and ``owned`` is an empty position.

    Attributes:
        category, brand, style, tier: of the interests, i64 [U, 3].
        noticed: items looked at and not bought, i64 [U, NOTICED]; ``strength`` f64 of the same
            shape, ``noticed_at`` its step, f64.
        owned: items bought, i64 [U, OWNED]; ``owned_at`` its step, f64.
    """

    def __init__(self, world: ShopWorld, products: Products, rng: np.random.Generator) -> None:
        n = world.users
        self._products, self._rng = products, rng
        first = rng.random(n) < FIRST_USERS
        self.arrival = np.where(first, 0, rng.integers(0, world.steps, n))
        activity = rng.lognormal(0.0, ACTIVITY_SPREAD, n)
        mean = np.sum(activity * (world.steps - self.arrival))
        # Expected sessions per step; one at most, hence the bound.
        self.rate = np.minimum(activity * world.events / EVENTS_PER_SESSION / mean, 0.8)
        self.own_tier = np.searchsorted([-0.5, 0.6], rng.standard_normal(n))
        self.own_style = self._any_style(n)
        shape = (n, len(INTERESTS))
        self.category, self.brand, self.style, self.tier = (
            np.zeros(shape, dtype=np.int64) for _ in range(4)
        )
        self.ends, self.style_ends = np.zeros(shape), np.zeros(n)
        user, slot = np.divmod(np.arange(n * len(INTERESTS)), len(INTERESTS))
        self._renew(user, slot, 0.0)
        # At the beginning interests are in the middle of their lives.
        self.ends *= rng.random(shape)
        self.style_ends = rng.exponential(STYLE_DAYS * STEPS_PER_DAY, n)
        self.noticed = np.full((n, NOTICED), -1)
        self.strength, self.noticed_at = np.zeros((n, NOTICED)), np.zeros((n, NOTICED))
        self.owned, self.owned_at = np.full((n, OWNED), -1), np.zeros((n, OWNED))
        self._next_noticed, self._next_owned = (np.zeros(n, dtype=np.int64) for _ in range(2))

    def _any_style(self, n: int) -> Ints:
        return self._products.style[self._products.pools[0].draw(np.zeros(n, np.int64), self._rng)]

    def _renew(self, user: Ints, slot: Ints, step: float) -> None:
        """New interests: what is bought by many is liked by many."""
        products, rng = self._products, self._rng
        everything = np.zeros(len(user), dtype=np.int64)
        category = products.category[products.pools[0].draw(everything, rng)]
        within = products.pools[CATEGORY]
        self.category[user, slot] = category
        self.brand[user, slot] = products.brand[within.draw(category, rng)]
        other = products.style[within.draw(category, rng)]
        own = rng.random(len(user)) < OWN_STYLE
        self.style[user, slot] = np.where(own, self.own_style[user], other)
        self.tier[user, slot] = self.own_tier[user]
        life = rng.exponential(INTEREST_DAYS * STEPS_PER_DAY, len(user))
        self.ends[user, slot] = step + np.maximum(life, STEPS_PER_DAY)

    def move(self, step: int) -> None:
        """Replace the interests and tastes that have ended."""
        ended = np.flatnonzero(self.style_ends <= step)
        self.own_style[ended] = self._any_style(len(ended))
        self.style_ends[ended] = step + self._rng.exponential(
            STYLE_DAYS * STEPS_PER_DAY, len(ended)
        )
        user, slot = np.nonzero(self.ends <= step)
        self._renew(user, slot, float(step))

    def return_weights(self, user: Ints, step: int) -> Values:
        """How strongly users wish to return to what they noticed, [n, NOTICED]."""
        age = (step - self.noticed_at[user]) / STEPS_PER_DAY
        wish = self.strength[user] * np.exp(-age / RETURN_DAYS)
        return np.where(self.noticed[user] >= 0, wish, 0.0)

    def complement_weights(self, user: Ints, step: int) -> Values:
        """How strongly users wish for what goes with items that they bought and that they noticed,
        [n, OWNED + NOTICED]."""
        age = (step - self.owned_at[user]) / STEPS_PER_DAY
        bought = np.where(self.owned[user] >= 0, np.exp(-age / COMPLEMENT_DAYS), 0.0)
        return np.concatenate([bought, ALSO * self.return_weights(user, step)], axis=1)

    def due_weights(self, user: Ints, step: int) -> Values:
        """How much consumables are due, [n, OWNED]: 1 after a cycle, and 0 for what lasts."""
        items = self.owned[user]
        cycle = self._products.cycle[items]
        known = (items >= 0) & (cycle > 0)
        age = (step - self.owned_at[user]) / STEPS_PER_DAY
        off = age / np.where(known, cycle, 1.0) - 1.0
        return np.where(known, np.exp(-0.5 * (off / DUE_SPREAD) ** 2), 0.0)

    def intents(self, user: Ints, step: int) -> Values:
        """P(intent of a session that begins now), [n, intents]."""
        found = np.zeros((len(user), len(INTENTS)))
        found[:, INTEREST] = 1.0
        found[:, POPULAR] = 0.1
        for intent, weights, most, half in (
            (COMPLEMENT, self.complement_weights(user, step), 1.2, 0.8),
            (RETURN, self.return_weights(user, step), 0.2, 3.0),
            (REPEAT, self.due_weights(user, step), 0.5, 0.8),
        ):
            total = weights.sum(axis=1)
            found[:, intent] = most * total / (total + half)
        return found / found.sum(axis=1, keepdims=True)

    def owns(self, user: Ints, item: Ints) -> npt.NDArray[np.bool_]:
        """Whether each user has bought the item, and it lasts: it is not bought again."""
        lasts = self._products.cycle[item] == 0
        return lasts & (self.owned[user] == item[:, None]).any(axis=1)

    def notice(self, user: Ints, item: Ints, strength: Values, step: int) -> None:
        """Remember an item for each of these users, who are distinct."""
        at = self._next_noticed[user] % NOTICED
        self.noticed[user, at] = item
        self.strength[user, at] = strength
        self.noticed_at[user, at] = step
        self._next_noticed[user] += 1

    def own(self, user: Ints, item: Ints, step: int) -> None:
        """Remember a purchase for each of these users, who are distinct."""
        self.noticed[user] = np.where(self.noticed[user] == item[:, None], -1, self.noticed[user])
        self.owned[user] = np.where(self.owned[user] == item[:, None], -1, self.owned[user])
        at = self._next_owned[user] % OWNED
        self.owned[user, at] = item
        self.owned_at[user, at] = step
        self._next_owned[user] += 1
        same = self.category[user] == self._products.category[item][:, None]
        same &= (self._products.cycle[item] == 0)[:, None]
        row, slot = np.nonzero(same & (self._rng.random(same.shape) < SATISFIED))
        self.ends[user[row], slot] = step
