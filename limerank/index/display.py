"""What is shown of the items of an index: texts of some columns of the item table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHECKED = 10_000
"""Rows that a search looks at closely, at most."""
ADDRESS = re.compile(r"\w+://")
"""How the text of a link begins."""


class Display:
    """Texts by row of an index.

    Args:
        columns: of the item table, in the order of the description.
        values: a JSON array of the texts of each row, one after another, u8.
        ends: where each array ends, i64 [n].

    Raises:
        ValueError: the arrays do not fit together.
    """

    def __init__(
        self, columns: Sequence[str], values: NDArray[np.uint8], ends: NDArray[np.int64]
    ) -> None:
        self.columns = tuple(map(str, columns))
        self._values, self._ends = values, ends
        last = int(ends[-1]) if len(ends) else 0
        if values.ndim != 1 or ends.ndim != 1 or last != len(values):
            raise ValueError(f"what is shown ends at {last} of {len(values)} bytes")

    def of(self, rows: Sequence[int] | NDArray[Any]) -> list[dict[str, str]]:
        """Of each row: column -> text, without columns that are empty; {} for row -1."""
        found = []
        for row, text in zip(rows, self.texts(rows), strict=True):
            held = zip(self.columns, json.loads(text) if row >= 0 else (), strict=row >= 0)
            found.append({name: value for name, value in held if value})
        return found

    def titles(self, rows: Sequence[int] | NDArray[Any]) -> list[str]:
        """The text of each row's first column; empty where it has none, and for row -1."""
        if not self.columns:
            return [""] * len(rows)
        return [
            json.loads(text)[0] if row >= 0 else ""
            for row, text in zip(rows, self.texts(rows), strict=True)
        ]

    def search(self, text: str, limit: int) -> list[int]:
        """Rows one of whose texts contains a text, in any letter case, ascending. Addresses of
        pictures and pages do not count.

        Args:
            text: to search.
            limit: how many rows, at most; :data:`CHECKED` candidates are looked at.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        count = len(self._ends)
        starts = np.concatenate([np.zeros(min(count, 1), np.int64), self._ends])
        parts = [pa.py_buffer(np.ascontiguousarray(part)) for part in (starts, self._values)]
        arrays = pa.LargeStringArray.from_buffers(count, *parts)
        pattern = json.dumps(text, ensure_ascii=False)[1:-1]
        matching = pc.match_substring(arrays, pattern, ignore_case=True)
        rows = np.flatnonzero(matching.to_numpy(zero_copy_only=False))[:CHECKED]
        low, found = text.lower(), []
        for row, held in zip(rows.tolist(), self.texts(rows), strict=True):
            texts = (one for one in json.loads(held) if not ADDRESS.match(one))
            if any(low in one.lower() for one in texts):
                found.append(row)
                if len(found) == limit:
                    break
        return found

    def texts(self, rows: Sequence[int] | NDArray[Any]) -> list[str]:
        """The JSON array of each row."""
        flat = self._values.data
        at = [(int(self._ends[row - 1]) if row else 0, int(self._ends[row])) for row in rows]
        return [str(flat[start:end], "utf-8") for start, end in at]


def displayed_columns(manifest: Mapping[str, Any]) -> list[str]:
    """The columns that the description of a run's dataset shows; ``manifest``: the dataset's."""
    items = manifest["spec"].get("items") or {}
    return list(items.get("display", ()))
