"""Similar items: the items of an index that are most like a given one.

>>> recommender.similar(204, k=5)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.errors import check_integer
from limerank.ranking.alike import Alike, nearest
from limerank.ranking.explain import TITLE
from limerank.ranking.request import plain
from limerank.results import TableResult, aligned, printable


@dataclass(frozen=True)
class Similar:
    """One item that is similar to another.

    Attributes:
        id: external id.
        row: its row in the index.
        similarity: from -1 to 1; see :mod:`limerank.ranking.alike`.
        display: columns of the item table that are shown -> text, such as a title.
    """

    id: Any
    row: int
    similarity: float
    display: dict[str, str] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        found = {"id": plain(self.id), "similarity": self.similarity}
        return {**found, "display": self.display} if self.display else found


@dataclass(frozen=True, repr=False)
class SimilarItems(TableResult, Sequence[Similar]):
    """The items most similar to one, best first. A slice is one as well.

    Attributes:
        item: external id of the item that they are similar to.
        items: the items.
        candidates: number of items that were compared.
        display: of the item itself.
    """

    item: Any
    items: tuple[Similar, ...]
    candidates: int
    display: dict[str, str] = field(default_factory=dict, hash=False)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return replace(self, items=self.items[position])
        return self.items[position]

    def to_dict(self) -> dict[str, Any]:
        return {
            "item": plain(self.item),
            **({"display": self.display} if self.display else {}),
            "candidates": self.candidates,
            "items": [one.to_dict() for one in self.items],
        }

    def columns(self) -> dict[str, list[Any]]:
        return {
            "rank": list(range(1, len(self.items) + 1)),
            "item": [plain(one.id) for one in self.items],
            "similarity": [one.similarity for one in self.items],
        }

    def text(self) -> str:
        own = f"item {self.item}"
        if self.display:
            own += f", {next(iter(self.display.values()))[:TITLE]}"
        lines = [printable(f"{own}: the most similar of {self.candidates:,} items")]
        if not self.items:
            return "\n".join([*lines, "  no item is similar"])
        titles = max((list(one.display) for one in self.items), key=len)[:1]
        rows = [["", "item", *titles, "similarity"]]
        for position, one in enumerate(self.items, 1):
            shown = [printable(one.display.get(name, ""))[:TITLE] for name in titles]
            rows.append([str(position), str(one.id), *shown, f"{one.similarity:.3f}"])
        return "\n".join([*lines, *aligned(rows, "><" + "<" * len(titles) + ">", (4,))])


def similar_items(
    of: Alike,
    item: Any,
    k: int = 10,
    *,
    allow: NDArray[np.bool_] | None = None,
    exclude: Iterable[Any] = (),
) -> SimilarItems:
    """The items of an index that are most similar to one of its items.

    Removed items, and those that occur in histories only, are not among them; the item itself may
    be one of these.

    Args:
        of: compares the items, see :func:`limerank.ranking.alike.alike`.
        item: an external id.
        k: how many, at most.
        allow: which items of the index may be among them, bool [n].
        exclude: external ids to leave out; those that the index lacks are ignored.

    Raises:
        UnknownError: the index lacks the item.
        SpecError: k is not an integer of 1 or more.
    """
    check_integer("k", k, 1)
    index = of.index
    row = index.row_of(item)
    excluded = index.ids.find(list(exclude))
    found = nearest(of, row, k, allow=allow, exclude=excluded[excluded >= 0])
    rows = found.rows.tolist()
    shown = index.display
    own, *others = [{}] * (len(rows) + 1) if shown is None else shown.of([row, *rows])
    ids = map(plain, index.ids[found.rows].tolist())
    items = map(Similar, ids, rows, found.similarities.tolist(), others)
    compared = len(index) - len(index.hidden) - int(row not in index.hidden)
    return SimilarItems(plain(index.ids[row]), tuple(items), compared, own)
