"""Operations of a history as plain values, and how they are drawn from a seed.

An :class:`Operation` contains all that it needs, so that a history can be printed, run again, and
made shorter by leaving operations out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from limerank.serving.state import Mode
from simulation.stores import FAULTS
from simulation.world import ITEMS, LIVE, UNKNOWN

USERS = (1, 2, 3)
STRANGER = 77
"""A user who never gets an event."""
RANKINGS = ("main.r1", "b.r2", "r3", "main.r4")
COUNTRIES = ("c0", "c1", "c2")
MINUTE, DAY = 60_000, 86_400_000
MOST_OPERATIONS = 24
StoreKind = Literal["sqlite", "valkey"]


@dataclass(frozen=True)
class Setting:
    """What a history runs on.

    Attributes:
        store: the kind of store.
        mode: of the user states.
        servers: how many.
        shared: whether all servers serve the same index folders, or a copy each.
        most, most_exposures: bounds of the store.
        arms: name -> run and share, at the start of each server.
        skew: what the clock of each server is ahead, in milliseconds.
        scorer: of the servers: by number ("model"), or by bytes ("auto"), which answers brief
            requests without leaving the event loop.
        turns: decides which task continues.
    """

    store: StoreKind
    mode: Mode
    servers: int
    shared: bool
    most: int | None
    most_exposures: int
    arms: dict[str, tuple[int, float]]
    skew: tuple[int, ...]
    scorer: Literal["model", "auto"]
    turns: int


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        kind: a name of :data:`KINDS`.
        server: the server that gets it.
        values: its own values.
        faults: number of a round trip to the store -> what goes wrong with it.
        overlaps: how many turns other operations have after it began, before the next one begins;
            None: the next one waits for its end.
    """

    kind: str
    server: int
    values: dict[str, Any] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    overlaps: int | None = None

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in self.values.items()]
        if self.faults:
            parts.append(f"faults={self.faults}")
        after = "" if self.overlaps is None else f", and the next after {self.overlaps} turns"
        return f"{self.kind} at server {self.server}: {', '.join(parts) or '-'}{after}"


@dataclass(frozen=True)
class History:
    """Operations and what they run on."""

    seed: int
    setting: Setting
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {asdict(self.setting)}"]
        lines += [f"{at:3} {one}" for at, one in enumerate(self.operations)]
        return "\n".join(lines)


Draw = Callable[["Drawing"], dict[str, Any]]


class Drawing:
    """Draws the operations of one seed."""

    def __init__(self, seed: int) -> None:
        self.draws = random.Random(seed)
        self.seed, self.clock, self.events = seed, 0, list[dict[str, Any]]()

    def history(self) -> History:
        """The history of the seed."""
        draws = self.draws
        servers = draws.choice((1, 2, 2))
        arms = {"main": (0, 1.0)}
        if draws.random() < 0.4:
            arms = {"main": (0, 0.5), "b": (1, 0.5)}
        setting = Setting(
            store=draws.choice(("sqlite", "valkey")),
            mode=draws.choice(("streaming", "window")),
            servers=servers,
            shared=draws.random() < 0.7,
            most=draws.choice((None, None, 5)),
            most_exposures=draws.choice((2, 1000)),
            arms=arms,
            skew=tuple(draws.choice((0, 0, 5_000, -5_000)) for _ in range(servers)),
            scorer=draws.choice(("model", "auto")),
            turns=draws.randrange(1 << 32),
        )
        faulty = draws.choice((0.0, 0.1, 0.3))
        overlapping = draws.choice((0.0, 0.3, 0.8))
        # Each seed has some kinds more often than others, and lacks some.
        kinds = list(KINDS)
        weights = [weight * draws.choice((0, 1, 1, 4)) for weight, _ in KINDS.values()]
        weights[kinds.index("append")] += 1
        weights[kinds.index("rank")] += 1
        operations = []
        for _ in range(draws.randrange(4, MOST_OPERATIONS + 1)):
            (kind,) = draws.choices(kinds, weights)
            if kind == "tick":
                operations.append(Operation("tick", 0, KINDS[kind][1](self)))
                continue
            faults = {}
            while draws.random() < faulty:
                faults[draws.randrange(4)] = draws.choice(FAULTS)
            overlaps = draws.randrange(8) if draws.random() < overlapping else None
            server = draws.randrange(servers)
            values = KINDS[kind][1](self)
            operations.append(Operation(kind, server, values, faults, overlaps))
        return History(self.seed, setting, tuple(operations))

    def append(self) -> dict[str, Any]:
        draws, events = self.draws, []
        user = draws.choice(USERS)
        for _ in range(draws.choice((1, 1, 2, 3, 9))):
            if self.events and draws.random() < 0.15:
                events.append(draws.choice(self.events))  # sent before
                continue
            event: dict[str, Any] = {
                "user": user if draws.random() < 0.8 else draws.choice(USERS),
                "item": draws.choice((*range(ITEMS), *LIVE, UNKNOWN)),
                "time": self.clock
                + draws.choice((0, 0, 1000, 1000, 2000, -1000, -MINUTE, -DAY, 10_000)),
                "labels": {"click": draws.randrange(2)},
            }
            if draws.random() < 0.5:
                event["id"] = f"e{len(self.events)}"
            self.events.append(event)
            events.append(event)
        return {"events": events, "again": draws.random() < 0.7}

    def rank(self) -> dict[str, Any]:
        draws = self.draws
        user = draws.choice((*USERS, *USERS, *USERS, STRANGER, None))
        asked = {"user": user, "exclude_seen": draws.random() < 0.7}
        if draws.random() < 0.15:
            asked["time"] = self.clock + draws.choice((-DAY, -MINUTE, -500, 0, MINUTE))
        elif user is not None and draws.random() < 0.2:
            asked["log"] = True
        return asked

    def shown(self) -> dict[str, Any]:
        draws = self.draws
        return {
            "user": draws.choice(USERS),
            "ranking": draws.choice(RANKINGS),
            "items": draws.sample(range(ITEMS), 3),
            "time": self.clock + draws.choice((0, 1000, -1000)),
        }

    def explain(self) -> dict[str, Any]:
        return {"user": self.draws.choice(USERS), "items": self.draws.sample((0, 1, 2, 4), 2)}

    def compact(self) -> dict[str, Any]:
        return {"run": self.draws.randrange(2)}

    def features(self) -> dict[str, Any]:
        return {"user": self.draws.choice(USERS), "country": self.draws.choice(COUNTRIES)}

    def of_user(self) -> dict[str, Any]:
        return {"user": self.draws.choice(USERS)}

    def put_items(self) -> dict[str, Any]:
        draws = self.draws
        ids = draws.sample(LIVE, draws.choice((1, 1, 2)))
        return {"items": {id: draws.choice((1, 2)) for id in ids}}

    def remove_item(self) -> dict[str, Any]:
        return {"item": self.draws.choice(LIVE)}

    def reload(self) -> dict[str, Any]:
        return {"arm": self.draws.choice(("main", "b")), "run": self.draws.randrange(2)}

    def configure(self) -> dict[str, Any]:
        draws = self.draws
        arms = {"main": (draws.randrange(2), draws.choice((0.5, 0.9)))}
        if draws.random() < 0.7:
            arms["b"] = (draws.randrange(2), draws.choice((0.5, 0.1)))
        return {"arms": arms}

    def tick(self) -> dict[str, Any]:
        milliseconds = self.draws.choice((1000, 20_000, MINUTE, 3_600_000, 3 * DAY))
        self.clock += milliseconds
        return {"milliseconds": milliseconds}

    def nothing(self) -> dict[str, Any]:
        return {}


KINDS: dict[str, tuple[float, Draw]] = {
    "append": (6.0, Drawing.append),
    "rank": (6.0, Drawing.rank),
    "explain": (0.5, Drawing.explain),
    "shown": (1.5, Drawing.shown),
    "features": (0.8, Drawing.features),
    "forget": (1.0, Drawing.of_user),
    "user": (0.8, Drawing.of_user),
    "put_items": (1.0, Drawing.put_items),
    "remove_item": (0.6, Drawing.remove_item),
    "compact": (0.4, Drawing.compact),
    "follow": (1.0, Drawing.nothing),
    "reload": (0.4, Drawing.reload),
    "configure": (0.3, Drawing.configure),
    "rebuild": (0.5, Drawing.of_user),
    "restart": (0.5, Drawing.nothing),
    "restart_store": (0.4, Drawing.nothing),
    "tick": (1.5, Drawing.tick),
    "count": (1.0, Drawing.nothing),
}
"""Kinds of operations: how often they are drawn, and how their values are drawn."""


def draw(seed: int) -> History:
    """The history of a seed; the same seed always gives the same history."""
    return Drawing(seed).history()
