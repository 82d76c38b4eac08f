"""What ranking for one user returns: ranked items, and the request that they were ranked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from limerank.ranking.explain import Explanation
from limerank.ranking.request import plain
from limerank.results import TableResult, aligned


@dataclass(frozen=True)
class Ranked:
    """One item of a ranking.

    Attributes:
        id: external id.
        row: its row in the index.
        value: the ranking value, a weighted sum of the tasks' logits.
        scores: the prediction of each task: a probability, or expected seconds.
        explanation: of the value, for the first items where it was asked for.
    """

    id: Any
    row: int
    value: float
    scores: dict[str, float]
    explanation: Explanation | None = field(default=None, repr=False)

    def because(self, most: int = 3) -> list[Any]:
        """Ids of the history's items that raised this item's value most."""
        if self.explanation is None:
            return []
        return [event.item for event in self.explanation.reasons(most)]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; the explanation as its reasons."""
        found = {"id": plain(self.id), "value": self.value, "scores": self.scores}
        if self.explanation is not None:
            found["because"] = [
                {
                    "item": plain(event.item),
                    "age": event.age,
                    "share": event.share,
                    "effect": event.effect,
                }
                for event in self.explanation.reasons()
            ]
        return found


@dataclass(frozen=True, repr=False)
class Ranking(TableResult, Sequence[Ranked]):
    """Ranked items, best first, and the request that they were ranked for.

    As a table it has the columns of a file that
    :func:`~limerank.ranking.bulk.rank_all` writes: ``user``, ``rank`` (from 1), ``item``,
    ``value`` and one per task; and ``because``, lists of item ids, where items are explained.

    Attributes:
        items: the items.
        user: external id of the user, None where there is none.
        known: whether the dataset contains that user.
        events: events of the history that the model read.
        candidates: number of candidates, seen items included.
        milliseconds: time of each stage.
        skipped: number of candidates that the index cannot rank; None where they are an error.
    """

    items: tuple[Ranked, ...]
    user: Any
    known: bool
    events: int
    candidates: int
    milliseconds: dict[str, float] = field(default_factory=dict, compare=False)
    skipped: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: Any) -> Any:
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
        tasks = list(self.items[0].scores) if self.items else []
        found: dict[str, list[Any]] = {
            "user": [plain(self.user)] * len(self.items),
            "rank": list(range(1, len(self.items) + 1)),
            "item": [plain(item.id) for item in self.items],
            "value": [item.value for item in self.items],
            **{task: [item.scores[task] for item in self.items] for task in tasks},
        }
        if self._explained:
            found["because"] = [
                None if item.explanation is None else [plain(id) for id in item.because()]
                for item in self.items
            ]
        return found

    def text(self) -> str:
        lines = [self.caption()]
        if self.skipped:
            lines.append(f"  {self.skipped:,} candidates were skipped: the index cannot rank them")
        if not self.items:
            return "\n".join([*lines, "  nothing is left to rank"])
        tasks = list(self.items[0].scores)
        rows = [["", "item", *tasks, *(["because of"] if self._explained else [])]]
        for position, item in enumerate(self.items, 1):
            row = [str(position), str(item.id), *(f"{item.scores[task]:.4f}" for task in tasks)]
            if self._explained:
                reasons = [] if item.explanation is None else item.explanation.reasons()
                row.append(", ".join(f"{event.item} ({event.effect:+.2f})" for event in reasons))
            rows.append(row)
        align = "><" + ">" * len(tasks) + "<" * self._explained
        return "\n".join([*lines, *aligned(rows, align, (4, 0, *[10] * len(tasks)))])

    def caption(self) -> str:
        user = "an unknown user" if self.user is None else f"user {self.user}"
        if self.user is not None and not self.known:
            user = f"unknown user {self.user}"
        milliseconds = sum(self.milliseconds.values())
        return (
            f"{user}, {self.events:,} events: the best of {self.candidates:,} items "
            f"({milliseconds:.1f} ms)"
        )

    @property
    def _explained(self) -> bool:
        return any(item.explanation is not None for item in self.items)
