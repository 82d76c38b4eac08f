"""The users of the online test in simulation: who comes, and what they click on.

Items, users, their interests and how these change are those of ``limerank.data.synthetic``. The
probability that user u clicks on item i at position p is

    P(click) = EXAMINED^(p - 1) * sigmoid(b + b_u + b_tab + appeal_i + interest_ui)

with ``click_chances`` of that module for the second factor: the first is the probability that the
user looks at the position at all. Clicks are the only label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from limerank.data.canonical import DAY_MS
from limerank.data.synthetic.impressions import HOURS, TAB_SHARES, click_chances, event_blocks
from limerank.data.synthetic.population import SimulatedItems, SimulatedUsers
from limerank.data.synthetic.world import MOVE_MS, MOVES_PER_DAY, START_MS, World

LENGTH = 10
"""Items of a ranking that a user is shown."""
EXAMINED = 0.9
"""Of the users who look at a position, the share that looks at the next one."""
FEED = """\
name = "abtest"

[[events]]
files = ["logs/*.parquet"]
time = "time"
time_unit = "ms"
request = "request"

[[labels]]
name = "click"
kind = "binary"

[[event_features]]
name = "tab"
kind = "categorical"
when = "context"

[[event_features]]
name = "position"
kind = "numeric"
when = "impression"
bias = true

[items]
files = ["items.parquet"]
id = "item_id"
features = [
    {{ name = "author", kind = "categorical" }},
    {{ name = "category", kind = "categorical" }},
    {{ name = "tags", kind = "categorical" }},
    {{ name = "duration", kind = "numeric", column = "duration_ms", transform = "log1p" }},
]

[users]
files = ["users.parquet"]
id = "user_id"
features = [
    {{ name = "age_band", kind = "categorical" }},
    {{ name = "device", kind = "categorical" }},
]

[split]
validation = "12h"
test = "1d"

[history]
length = {history}
"""
"""The description of the log."""
COLUMNS = ("item_id", "author", "category", "tags", "duration_ms")
"""Of the item table, those that the description reads."""


@dataclass(frozen=True)
class Size:
    """How large a test is.

    Attributes:
        users, items, topics: of the simulation; some of both arrive during the test.
        before, days: days of the log before the test, and of the test.
        requests: a day.
        history: events that any arm may use, at most.
        width, epochs: of all trained models.
        asked: users for whom configurations are measured.
        histories, candidates: the configurations that are tried.
    """

    users: int = 2000
    items: int = 30_000
    topics: int = 240
    before: int = 14
    days: int = 14
    requests: int = 1000
    history: int = 64
    width: int = 32
    epochs: int = 3
    asked: int = 120
    histories: tuple[int, ...] = (16, 32, 64)
    candidates: tuple[int, ...] = (50, 100, 200, 500)


@dataclass(frozen=True)
class Visit:
    """A request: the number of the user, counted from 0, the time in milliseconds, and the tab."""

    user: int
    time: int
    tab: int


class Population:
    """Items and users at one point in time; :meth:`move` brings them to a later one.

    Args:
        size: of the test.
        seed: the same size and seed give the same items, users, requests and interests.
    """

    def __init__(self, size: Size, seed: int) -> None:
        self.size, self.seed = size, seed
        self.world = World(
            users=size.users, items=size.items, days=size.before + size.days, seed=seed,
            events=size.requests * LENGTH * (size.before + size.days), topics=size.topics,
            interests=3, mistakes=2, drift=20.0, history=size.history,
        )  # fmt: skip
        streams = np.random.SeedSequence(seed).spawn(3)
        self.items = SimulatedItems(self.world, np.random.default_rng(streams[0]))
        self._items_table = self.items.table()
        shares = self.items.topic_shares
        self.users = SimulatedUsers(self.world, shares, np.random.default_rng(streams[1]))
        self._users_table = self.users.table()
        self._of_log = np.random.default_rng(streams[2])
        self._at = -1

    def move(self, move: int) -> None:
        """Bring all to the move of this number; there are four a day."""
        for one in range(self._at + 1, move + 1):
            self.items.move(one)
            self.users.move(one)
        self._at = max(self._at, move)

    def write_tables(self, folder: Path, move: int) -> None:
        """Write ``items.parquet``, with the items that were uploaded up to a move, and
        ``users.parquet``."""
        live = int(np.searchsorted(self.items.upload_move, move, side="right"))
        pq.write_table(self._items_table.slice(0, live).select(COLUMNS), folder / "items.parquet")
        pq.write_table(self._users_table, folder / "users.parquet")

    def uploads(self, move: int) -> list[dict[str, Any]]:
        """The items that are uploaded at a move, with their columns."""
        low, high = np.searchsorted(self.items.upload_move, [move, move + 1])
        found: list[dict[str, Any]] = (
            self._items_table.slice(low, high - low).select(COLUMNS).to_pylist()
        )
        return found

    def write_log(self, folder: Path) -> int:
        """Write the log of the days before the test, which the policy of the simulation chose, in
        the columns of ``limerank export``; returns its impressions. For a new population."""
        end = START_MS + self.size.before * DAY_MS
        blocks = event_blocks(self.world, self.items, self.users, self._of_log)
        tables, rng = [], np.random.default_rng([self.seed, 1])
        for block in blocks:
            if block["time_ms"][0] >= end:
                break
            request = block["request_id"]
            first = np.searchsorted(request, request)
            position = np.arange(len(request)) - first + 1
            chance = block["click_probability"] * EXAMINED ** (position - 1)
            tables.append(
                pl.DataFrame(
                    {
                        "user_id": block["user_id"],
                        "item_id": block["item_id"],
                        "time": block["time_ms"],
                        "source": "shown",
                        "request": request,
                        "position": position,
                        "tab": tab_names(block["tab"]),
                        "click": (rng.random(len(request)) < chance).astype(np.int8),
                    }
                ).filter(pl.col("time") < end)
            )
        log = pl.concat(tables)
        (folder / "logs").mkdir(exist_ok=True)
        log.write_parquet(folder / "logs" / "before.parquet")
        return log.height

    def visits(self, move: int) -> list[Visit]:
        """The requests of a move, by time."""
        rng = np.random.default_rng([self.seed, 2, move])
        mass = HOURS.reshape(MOVES_PER_DAY, -1).sum(axis=1)
        n = round(self.size.requests * mass[move % MOVES_PER_DAY] / mass.sum())
        arrival = rng.random(n) * self.users.activity_sum[-1]
        users = np.searchsorted(self.users.activity_sum, arrival, side="right")
        users = np.minimum(users, self.users.here - 1)
        times = START_MS + move * MOVE_MS + np.sort(rng.integers(0, MOVE_MS, n))
        tabs = np.searchsorted(np.cumsum(TAB_SHARES)[:-1], rng.random(n), side="right")
        return [
            Visit(*one) for one in zip(users.tolist(), times.tolist(), tabs.tolist(), strict=True)
        ]

    def chances(self, user: int, ids: NDArray[np.int64], tab: int = 0) -> NDArray[np.float64]:
        """The probability that a user who looks at items clicks on them, f64 [n].

        Args:
            user: counted from 0.
            ids: of the items, i64 [n].
        """
        n = len(ids)
        found = click_chances(
            self.items,
            self.users,
            np.full(n, user, dtype=np.int64),
            (ids - 1).astype(np.int32),
            np.full(n, tab, dtype=np.int64),
        )[2]
        return found.astype(np.float64)

    def expected(self, user: int, ids: NDArray[np.int64], tab: int = 0) -> NDArray[np.float64]:
        """The probability of a click on each item of a ranking, best first, f64 [n]."""
        seen: NDArray[np.float64] = self.chances(user, ids, tab) * EXAMINED ** np.arange(len(ids))
        return seen


def tab_names(tabs: NDArray[Any]) -> list[str]:
    """Tabs as the log has them."""
    return [f"tab-{tab}" for tab in tabs.tolist()]


def moves_of(size: Size, day: int) -> Iterator[int]:
    """The moves of a day of the test, counted from 0."""
    first = (size.before + day) * MOVES_PER_DAY
    return iter(range(first, first + MOVES_PER_DAY))


def begin_of(size: Size, day: int) -> int:
    """When a day of the test begins, in milliseconds since 1970."""
    return START_MS + (size.before + day) * DAY_MS
