"""Lists for the eye: what some users did, what a run and item-kNN list for them, by title and
category, and which of these items the user chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset
from limerank.data.encoding import read_vocabulary
from limerank.evaluation.list_metrics import peer
from limerank.evaluation.lists import (
    ListRequests,
    Seen,
    draw_requests,
    rank_lists,
    ranking_task,
    seen_by_default,
)
from limerank.models import Ranker

USERS = 4
ITEMS = 10
"""Items of a list, and latest events of a history."""
DRAWN = 200
"""Requests of which the shown ones are chosen, by the length of their histories."""
FEATURES, VALUES = 2, 3
"""Categorical features of an item that are shown, and values of each, at most."""
PEER = "item-knn"


@dataclass(frozen=True)
class Line:
    """An item of a history or a list.

    Attributes:
        title: its first column of ``display``, its id where it has none.
        detail: its id, where the title is another text, and values of its features.
        note: outcomes of an event; "seen before" of an item of a list.
        chosen: whether it is a positive of the request.
    """

    title: str
    detail: str
    note: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class UserLists:
    """One request: its user, the number of events of its history, and columns of lines."""

    user: str
    events: int
    columns: Mapping[str, Sequence[Line]]


class ItemTexts:
    """Titles and features of the items of a dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset.own
        self._features = [
            one
            for one in self._dataset.encoding["items"]["features"]
            if one["kind"] == "categorical"
        ][:FEATURES]
        self._values: dict[str, dict[int, str]] = {}

    def line(self, row: int, note: str = "", chosen: bool = False) -> Line:
        """The line of an item row."""
        shown, id = self._dataset.displayed(row), str(self._dataset.item_ids[row])
        title = next(iter(shown.values()), id)
        parts = [id] if title != id else []
        tokens = self._dataset.items.take(np.array([row])).tokens.tolist()
        for feature in self._features:
            codes = [token - feature["start"] for token in tokens]
            values = [self._value(feature["name"], code) for code in codes if code > 0]
            parts += [value for value in values if value is not None][:VALUES]
        return Line(title, ", ".join(parts), note, chosen)

    def _value(self, feature: str, code: int) -> str | None:
        if feature not in self._values:
            table = read_vocabulary(self._dataset.path, f"item_{feature}")
            pairs = zip(table["code"].to_list(), table["value"].to_list(), strict=True)
            self._values[feature] = dict(pairs)
        return self._values[feature].get(code)


def user_lists(
    name: str, ranker: Ranker, dataset: Dataset, *, history: int | None = None
) -> list[UserLists]:
    """Histories and lists of a few users of the test split, from short to long histories; none
    where no request has both a history and a positive.

    Args:
        name: what the run is called.
        ranker: its model.
        dataset: whose users are shown.
        history: events of a history, at most; as many as the dataset holds when not given.
    """
    label = ranker.shape.tasks[ranking_task(ranker.shape.tasks, dataset)].name
    seen = seen_by_default(dataset)
    drawn = draw_requests(dataset, dataset.requests_of("test"), label, seen, DRAWN)
    requests = _some(dataset, drawn, label, seen)
    if not len(requests):
        return []
    rankers = {name: ranker}
    if ranker.config.model != PEER:
        rankers[PEER] = peer(dataset, PEER)
    lists = {
        of: rank_lists(one, dataset, requests, ITEMS, history=history)
        for of, one in rankers.items()
    }
    texts, found = ItemTexts(dataset), []
    for position, request in enumerate(requests.rows.tolist()):
        relevant = requests.relevant[requests.offsets[position] : requests.offsets[position + 1]]
        columns: dict[str, list[Line]] = {
            "history, newest first": _history(dataset, request, texts)
        }
        for of, one in lists.items():
            columns[of] = [
                texts.line(row, "seen before" if repeated else "", row in relevant)
                for row, repeated in zip(
                    one.top[position].tolist(), one.repeated[position].tolist(), strict=True
                )
                if row >= 0
            ]
        columns["chosen next"] = [texts.line(row, chosen=True) for row in relevant[:ITEMS].tolist()]
        user = dataset.user_ids[dataset.requests["user"][request]]
        events = int(dataset.history_lengths(np.array([request]), 1 << 62)[0])
        found.append(UserLists(str(user), events, columns))
    return found


def _some(dataset: Dataset, drawn: ListRequests, label: str, seen: Seen) -> ListRequests:
    """A few of the requests, of different users, by the length of their histories."""
    lengths = dataset.history_lengths(drawn.rows, 1 << 62)
    rows = drawn.rows[lengths > 0]
    first = np.unique(dataset.requests["user"][rows], return_index=True)[1]
    rows, lengths = rows[first], lengths[lengths > 0][first]
    ordered = rows[np.argsort(lengths, kind="stable")]
    at = np.unique(np.linspace(0.1, 0.9, USERS) * (len(ordered) - 1)).astype(np.int64)
    chosen: NDArray[np.int64] = np.sort(ordered[np.unique(at)]) if len(ordered) else ordered
    return draw_requests(dataset, chosen, label, seen)


def _history(dataset: Dataset, request: int, texts: ItemTexts) -> list[Line]:
    """The latest events before a request, newest first."""
    held = dataset.requests
    end = int(held["history_end"][request])
    rows: Any = np.arange(max(int(held["history_start"][request]), end - ITEMS), end)[::-1]
    if dataset.retained is not None:
        rows = dataset.retained[rows]
    labels = [one["name"] for one in dataset.encoding["labels"] if one["kind"] != "duration"]
    return [
        texts.line(
            int(dataset.events["item"][row]),
            ", ".join(name for name in labels if dataset.events[f"label_{name}"][row] > 0),
        )
        for row in rows
    ]
