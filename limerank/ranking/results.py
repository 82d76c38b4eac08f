"""What ranking for one user returns: ranked items, and the request that they were ranked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from limerank.models.config import ITEM
from limerank.models.neighbours import NEIGHBOUR
from limerank.ranking.explain import TITLE, Explanation, named
from limerank.ranking.request import plain
from limerank.results import TableResult, aligned, printable

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Ranked:
    """One item of a ranking.

    Attributes:
        id: external id.
        row: its row in the index.
        value: the ranking value, a weighted sum of the tasks' logits, after boosts.
        scores: the prediction of each task: a probability, or expected seconds.
        explanation: of the value, for the first items where it was asked for.
        display: columns of the item table that are shown -> text, such as a title.
        boost: what boosts added to the value.
        pinned: whether a pin gave it its position.
    """

    id: Any
    row: int
    value: float
    scores: dict[str, float] = field(hash=False)
    explanation: Explanation | None = field(default=None, repr=False)
    display: dict[str, str] = field(default_factory=dict, hash=False)
    boost: float = 0.0
    pinned: bool = False

    def because(self, most: int = 3) -> list[Any]:
        """Ids of the history's items that raised this item's value most."""
        if self.explanation is None:
            return []
        return [event.item for event in self.explanation.reasons(most)]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; the explanation as its reasons."""
        found = {"id": plain(self.id), "value": self.value, "scores": self.scores}
        if self.boost:
            found["boost"] = self.boost
        if self.pinned:
            found["pinned"] = True
        if self.display:
            found["display"] = self.display
        if self.explanation is not None:
            found["because"] = [
                {
                    "item": plain(event.item),
                    **self.explanation.titled(event.item),
                    "age": event.age,
                    "share": event.share,
                    "effect": event.effect,
                }
                for event in self.explanation.reasons()
            ]
            anchored = self.explanation.matches()
            if anchored:
                found["anchored"] = [{**asdict(one), "value": plain(one.value)} for one in anchored]
        return found


@dataclass(frozen=True, repr=False)
class Ranking(TableResult, Sequence[Ranked]):
    """Ranked items, best first, and the request that they were ranked for.

    As a table it has these columns, whatever it contains, so that tables of several rankings of a
    recommender can be joined:

    - ``user``: text; null where there is no user;
    - ``rank``: Int64, from 1;
    - ``item``: Int64 where all ids of the index are integers, else text;
    - ``value`` and one column per task: Float64;
    - ``because``: lists of item ids as text; null where an item is not explained.

    A slice of a ranking is a ranking of those items, with ranks from 1. Rankings are equal where
    all but their times are.

    Attributes:
        items: the items.
        user: external id of the user, None where there is none.
        known: whether the dataset contains that user.
        events: events of the history that the model read.
        candidates: number of candidates, seen items included.
        milliseconds: time of each stage.
        skipped: number of candidates that the index cannot rank; None where they are an error.
        tasks: names of the model's tasks; those of the first item when not given.
        integer_ids: whether all ids of the index are integers.
    """

    items: tuple[Ranked, ...]
    user: Any
    known: bool
    events: int
    candidates: int
    milliseconds: dict[str, float] = field(default_factory=dict, compare=False)
    skipped: int | None = None
    tasks: tuple[str, ...] = ()
    integer_ids: bool = False

    def __post_init__(self) -> None:
        if self.items and not self.tasks:
            object.__setattr__(self, "tasks", tuple(self.items[0].scores))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return replace(self, items=self.items[position])
        return self.items[position]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; explanations as their reasons."""
        return {
            "user": plain(self.user),
            "known": self.known,
            "events": self.events,
            "candidates": self.candidates,
            **({} if self.skipped is None else {"skipped": self.skipped}),
            "items": [item.to_dict() for item in self.items],
            "milliseconds": self.milliseconds,
        }

    def columns(self) -> dict[str, list[Any]]:
        user = None if self.user is None else str(self.user)
        item_type = int if self.integer_ids else str
        return {
            "user": [user] * len(self.items),
            "rank": list(range(1, len(self.items) + 1)),
            "item": [item_type(item.id) for item in self.items],
            "value": [item.value for item in self.items],
            **{task: [item.scores[task] for item in self.items] for task in self.tasks},
            "because": [
                None if item.explanation is None else [str(id) for id in item.because()]
                for item in self.items
            ],
        }

    def to_polars(self) -> pl.DataFrame:
        """The table as a polars frame; its columns and their types do not depend on contents."""
        import polars as pl

        types = {
            "user": pl.String(),
            "rank": pl.Int64(),
            "item": pl.Int64() if self.integer_ids else pl.String(),
            "value": pl.Float64(),
            **dict.fromkeys(self.tasks, pl.Float64()),
            "because": pl.List(pl.String()),
        }
        return pl.DataFrame(self.columns(), schema=types)

    def _shown_columns(self) -> dict[str, list[Any]]:
        columns = self.columns()
        if not self._explained:
            del columns["because"]
        return columns

    def text(self) -> str:
        lines = [self.caption()]
        if self.skipped:
            one = self.skipped == 1
            what = "1 candidate was" if one else f"{self.skipped:,} candidates were"
            them = "it" if one else "them"
            lines.append(f"  {what} skipped: the index cannot rank {them}")
        if not self.items:
            return "\n".join([*lines, "  nothing is left to rank"])
        tasks = self.tasks
        # Items lack the columns that are empty; the first one of the description is the title.
        titles = max((list(item.display) for item in self.items), key=len)[:1]
        rows = [["", "item", *titles, *tasks, *(["because of"] if self._explained else [])]]
        for position, item in enumerate(self.items, 1):
            row = [str(position), str(item.id)]
            row += [printable(item.display.get(name, ""))[:TITLE] for name in titles]
            row += [f"{item.scores[task]:.4f}" for task in tasks]
            if self._explained:
                row.append("" if item.explanation is None else _in_short(item.explanation))
            rows.append(row)
        align = "><" + "<" * len(titles) + ">" * len(tasks) + "<" * self._explained
        widths = (4, 0, *[0] * len(titles), *[10] * len(tasks))
        return "\n".join([*lines, *aligned(rows, align, widths)])

    def caption(self) -> str:
        user = "an unknown user" if self.user is None else printable(f"user {self.user}")
        if self.user is not None and not self.known:
            user = printable(f"unknown user {self.user}")
        milliseconds = sum(self.milliseconds.values())
        return (
            f"{user}, {self.events:,} events: the best of {self.candidates:,} items "
            f"({milliseconds:.1f} ms)"
        )

    @property
    def _explained(self) -> bool:
        return any(item.explanation is not None for item in self.items)


def _in_short(explanation: Explanation) -> str:
    """The events and the anchored links that raised a value most, such as "17 (+0.41), 8 (+0.02);
    this item 3 times (+0.35), genre Drama 12 times (+0.10)"."""
    events = [
        f"{named(event.item, explanation.titles)} ({event.effect:+.2f})"
        for event in explanation.reasons()
    ]
    anchored = []
    for one in explanation.matches(2):
        value = named(one.value, explanation.titles) if one.kind == NEIGHBOUR else one.value
        name = "this item" if one.kind == ITEM else printable(f"{one.kind} {value}")
        times = "once" if one.events == 1 else f"{one.events:,} times"
        anchored.append(f"{name} {times} ({one.effect:+.2f})")
    return "; ".join(", ".join(part) for part in (events, anchored) if part)
