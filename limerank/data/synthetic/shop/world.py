"""The parameters of a simulated shop, its calendar, and the numbers that its users follow."""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from limerank.data.canonical import DAY_MS
from limerank.validation import Frozen

STEPS_PER_DAY = 4
STEP_MS = DAY_MS // STEPS_PER_DAY
"""A user has at most one session in a step, and the catalogue stands still within it."""
MOST_DAYS = 3650

INTENTS = ("interest", "complement", "return", "repeat", "popular")
INTEREST, COMPLEMENT, RETURN, REPEAT, POPULAR = range(len(INTENTS))
VIEWS = np.array([5.5, 4.0, 2.5, 1.6, 3.5])
"""Mean number of views of a session, by intent; the number is geometric."""
TO_CART = np.array([0.09, 0.18, 0.2, 0.6, 0.05])
"""Probability that a view of an item of mean appeal puts it into the cart, by intent."""
TO_PURCHASE = np.array([0.4, 0.5, 0.5, 0.85, 0.35])
"""Probability that what was put into the cart is bought, by intent."""
WANDER = 0.07
"""Share of the views of any session that follow popularity, whatever its intent."""
EVENTS_PER_SESSION = 5.6
"""Mean number of views, carts and purchases of a session, about: it follows from the above."""


class ShopWorld(Frozen):
    """The parameters of :func:`~limerank.data.synthetic.shop.simulate_shop`."""

    users: int = Field(ge=1, le=1 << 24)
    items: int = Field(ge=64, le=1 << 24)
    events: int = Field(ge=1)
    days: int = Field(ge=1, le=MOST_DAYS)
    seed: int = Field(ge=0)
    end_ms: int = Field(ge=MOST_DAYS * DAY_MS, le=1 << 42)

    @model_validator(mode="after")
    def _check(self) -> ShopWorld:
        most = int(self.users * self.days * EVENTS_PER_SESSION)
        if self.events > most:
            raise ValueError(
                f"{self.events:,} events of {self.users:,} users in {self.days} days are more than "
                f"a session per user and day; ask for at most {most:,}, for more users or more days"
            )
        return self

    @property
    def steps(self) -> int:
        return self.days * STEPS_PER_DAY

    @property
    def start_ms(self) -> int:
        """When the log begins, in milliseconds since 1970."""
        return self.end_ms - self.days * DAY_MS
