"""Users and items that training never sees, for measuring cold starts.

The log alone decides, so that the same log and shares always give the same ones: users by a hash of
their id, items by the time of their first event, the newest first.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

MIX = np.uint64(0xD6E8FEB86659FD93)
OTHER_MIX = np.uint64(0xBF58476D1CE4E5B9)


def held_out_users(seeds: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which users are held out, about ``share`` of them, by their seeds."""
    mixed = (seeds ^ (seeds >> np.uint64(32))) * MIX
    mixed = (mixed ^ (mixed >> np.uint64(32))) * MIX
    held: NDArray[np.bool_] = (mixed >> np.uint64(40)) < share * 2.0**24
    return held


def uniform(seeds: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each user, by its seed: evenly spread, and independent of
    :func:`held_out_users`."""
    mixed = (seeds ^ (seeds >> np.uint64(29))) * OTHER_MIX
    mixed = (mixed ^ (mixed >> np.uint64(31))) * OTHER_MIX
    return (mixed >> np.uint64(40)).astype(np.float64) / 2.0**24


class FirstSeen:
    """The time of each item's first event, over blocks of events."""

    def __init__(self) -> None:
        self._frames: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, items: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        """Events: the codes of their items and their times."""
        frame = pl.DataFrame({"item": items, "time": times})
        self._frames.append(_first(frame))
        self._rows += len(self._frames[-1])
        if len(self._frames) > 8 and self._rows > 3 * len(self._frames[0]):
            self._merge()

    def _merge(self) -> None:
        self._frames = [_first(pl.concat(self._frames))]
        self._rows = len(self._frames[0])

    def newest(self, share: float) -> NDArray[np.int64]:
        """Codes of the ``share`` of items that appeared last; of one instant, the higher codes."""
        self._merge()
        ordered = self._frames[0].sort(["time", "item"])
        codes: NDArray[np.int64] = ordered["item"].to_numpy()
        return codes[len(codes) - int(share * len(codes)) :]


def _first(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.group_by("item").agg(pl.col("time").min())
