"""What ranking for one user returns: ranked items, and the request that they were ranked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from limerank.progress import table
from limerank.ranking.explain import Explanation
from limerank.ranking.request import plain


@dataclass(frozen=True)
class Ranked:
    """One item of a ranking.

    Attributes:
        id: external id.
        row: its row in the index.
        value: the ranking value, a weighted sum of the tasks' logits.
        scores: what the model says of each task: a probability, or expected seconds.
        explanation: why, for the first items where it was asked for.
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


@dataclass(frozen=True)
class Ranking(Sequence[Ranked]):
    """Ranked items, best first, and what they were ranked by.

    Attributes:
        items: the items.
        user: the external id that was asked for.
        known: whether the dataset knows that user.
        events: events of the history that the model saw.
        candidates: items that were ranked, before seen ones were left out.
        milliseconds: time of each stage.
        skipped: candidates that the index cannot rank; None where such are refused.
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
            "items": [
                {
                    "id": plain(item.id),
                    "value": item.value,
                    "scores": item.scores,
                    **({} if item.explanation is None else {"because": _because(item.explanation)}),
                }
                for item in self.items
            ],
            "milliseconds": self.milliseconds,
        }


def _because(explanation: Explanation) -> list[dict[str, Any]]:
    return [
        {"item": plain(event.item), "age": event.age, "share": event.share, "effect": event.effect}
        for event in explanation.reasons()
    ]


def ranking_text(ranking: Ranking) -> str:
    """A ranking, to read: one line per item."""
    who = "a user nobody knows" if not ranking.known else f"user {ranking.user}"
    times = sum(ranking.milliseconds.values())
    lines = [
        f"{who}, {ranking.events:,} events: the best of {ranking.candidates:,} items "
        f"({times:.1f} ms)"
    ]
    if ranking.skipped:
        lines.append(f"  {ranking.skipped:,} candidates were skipped: the index cannot rank them")
    if not ranking.items:
        return "\n".join([*lines, "  nothing is left to rank"])
    tasks = list(ranking.items[0].scores)
    reasons = any(item.explanation is not None for item in ranking.items)
    rows = [["", "item", *tasks, *(["because of"] if reasons else [])]]
    for position, item in enumerate(ranking.items, 1):
        row = [str(position), str(item.id), *(f"{item.scores[task]:.4f}" for task in tasks)]
        if reasons:
            because = [] if item.explanation is None else item.explanation.reasons()
            row.append(", ".join(f"{event.item} ({event.effect:+.2f})" for event in because))
        rows.append(row)
    align = "><" + ">" * len(tasks) + "<" * reasons
    return "\n".join([*lines, *table(rows, align, (4, 0, *[10] * len(tasks)))])
