"""The parameters of a simulation, and its calendar."""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from limerank.data.canonical import DAY_MS
from limerank.validation import Frozen

START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC, when every simulation begins."""
MOVES_PER_DAY = 4
MOVE_MS = DAY_MS // MOVES_PER_DAY
TRAIN, VALIDATION = 0.8, 0.1
"""Shares of the days, in that order; the rest is the test window."""


class World(Frozen):
    """The parameters of :func:`~limerank.data.synthetic.simulate`."""

    users: int = Field(ge=1, le=1 << 31)
    items: int = Field(ge=64, le=1 << 31)
    events: int = Field(ge=1)
    days: int = Field(ge=1, le=3650)
    seed: int = Field(ge=0)
    topics: int = Field(le=32_000)
    interests: int = Field(ge=1, le=32)
    mistakes: int = Field(ge=0, le=32)
    drift: float = Field(gt=0)
    history: int = Field(ge=1, le=1 << 20)

    @model_validator(mode="after")
    def _check(self) -> World:
        held = self.interests + self.mistakes
        if self.topics < 2 * held:
            raise ValueError(
                f"topics is {self.topics}; with {held} interests and mistakes per user "
                f"it must be at least {2 * held}"
            )
        most = 100_000_000 * self.days
        if self.events > most:
            raise ValueError(
                f"{self.events:,} events do not fit into {self.days} days of distinct request "
                f"times; ask for at most {most:,}, or for more days"
            )
        return self


def cut_ms(world: World, share: float) -> int:
    """The time after so large a share of the days, in milliseconds since 1970."""
    return START_MS + round(world.days * DAY_MS * share)


def iso_text(ms: int) -> str:
    """A time in milliseconds since 1970 as ISO 8601, in UTC."""
    return str(np.datetime64(ms // 1000, "s")) + "Z"
