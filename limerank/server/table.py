"""What is known of items beside what the model made of them: to filter by, to look for, to show.

The item table of the run's own layout, as a file, and over it the items that were put live.
Without a file only the live ones are known.
"""

from __future__ import annotations

import glob
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.errors import SpecError, UnknownError
from limerank.index import Index
from limerank.schema import Spec, validate
from limerank.sources import read_table
from limerank.trained import Trained

ALLOWED = 64
"""Filters whose items are kept, for the next request with the same one."""


class ItemTable:
    """Columns of the item table by external id.

    Args:
        trained: the run, whose description names the columns.
        path: the table (CSV, TSV or Parquet); None: nothing is known but of live items.

    Raises:
        DataError: a column of the description is missing.
        SpecError: a table is given, and the run's data had none.
    """

    def __init__(self, trained: Trained, path: Path | None) -> None:
        spec = validate(Spec, trained.manifest["spec"], str(trained.path / "encoding.json"))
        self.layout = spec.items
        if self.layout is None and path is not None:
            raise SpecError(f"the data of {trained.path} had no item table; {path} cannot be read")
        self._path = path
        self._live: dict[int | str, Mapping[str, Any] | None] = {}
        self._allowed: dict[Any, NDArray[np.bool_]] = {}
        self._lock = threading.Lock()
        if path is not None:
            self._rows  # noqa: B018  # now, and not with the first request

    @property
    def names(self) -> list[str]:
        """Features by name."""
        return [] if self.layout is None else [one.name for one in self.layout.features]

    @cached_property
    def _frame(self) -> pl.DataFrame | None:
        if self._path is None or self.layout is None:
            return None
        parquet = self._path.name.lower().endswith((".parquet", ".pq"))
        own: dict[str, Any] = {"format": None, "columns": ()} if parquet else {"format": None}
        layout = self.layout.model_copy(update={**own, "files": (glob.escape(self._path.name),)})
        frame, _ = read_table(layout, self._path.resolve().parent, layout.read)
        return frame

    @cached_property
    def _rows(self) -> dict[str, int]:
        if self._frame is None or self.layout is None:
            return {}
        ids = self._frame[self.layout.id].cast(pl.String).to_list()
        return {id: row for row, id in enumerate(ids)}

    def put(self, items: Mapping[int | str, Mapping[str, Any] | None]) -> None:
        """Live items: id -> columns, or None where the item was removed."""
        with self._lock:
            self._live |= items
            self._allowed.clear()

    def features(self, ids: Sequence[Any]) -> list[dict[str, Any]]:
        """The features of each item, as the table has them; empty where nothing is known."""
        if self.layout is None:
            return [{} for _ in ids]
        columns = [(one.name, one.column) for one in self.layout.features]
        found: list[dict[str, Any]] = []
        for id in ids:
            row = self._live.get(id)
            if row is not None:
                found.append({name: row.get(column) for name, column in columns})
                continue
            place = self._rows.get(str(id))
            if place is None or self._frame is None:
                found.append({})
            else:
                values = self._frame.row(place, named=True)
                found.append({name: values[column] for name, column in columns})
        return found

    def allowed(self, index: Index, wanted: Mapping[str, Sequence[Any]]) -> NDArray[np.bool_]:
        """Which rows of an index every feature of a filter allows, bool [n]."""
        unknown = [name for name in wanted if name not in self.names]
        if unknown:
            raise UnknownError(
                f"no item feature is called {', '.join(map(repr, unknown))}; there are "
                f"{', '.join(self.names) or 'none'}"
            )
        if self.layout is None or (self._frame is None and not self._live):
            raise SpecError(
                "nothing is known of items to filter by: serve with --items FILE, the item table"
            )
        key = (
            str(index.path),
            index.version,
            *sorted((k, tuple(map(str, v))) for k, v in wanted.items()),
        )
        with self._lock:
            if key in self._allowed:
                return self._allowed[key]
        allowed = np.zeros(len(index), dtype=bool)
        features = {one.name: one for one in self.layout.features}
        texts = {name: {_text(value) for value in values} for name, values in wanted.items()}

        def passes(value: Any, name: str) -> bool:
            split = features[name].split
            parts: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
            if split and value is not None:
                parts = list(str(value).split(split))
            return any(_text(part) in texts[name] for part in parts)

        if self._frame is not None:
            frame = self._frame
            keep = np.ones(len(frame), dtype=bool)
            for name in wanted:
                values = frame[features[name].column].to_list()
                known: dict[Any, bool] = {}
                keep &= np.fromiter(
                    (
                        known[value]
                        if isinstance(value, (str, int, float)) and value in known
                        else known.setdefault(value, passes(value, name))
                        if isinstance(value, (str, int, float))
                        else passes(value, name)
                        for value in values
                    ),
                    dtype=bool,
                    count=len(values),
                )
            ids = frame[self.layout.id].filter(pl.Series(keep)).to_list()
            rows = index.ids.find(ids)
            allowed[rows[rows >= 0]] = True
        for id, row in list(self._live.items()):
            (place,) = index.ids.find([id])
            if place >= 0:
                allowed[place] = row is not None and all(
                    passes(row.get(features[name].column), name) for name in wanted
                )
        with self._lock:
            if len(self._allowed) >= ALLOWED:
                self._allowed.pop(next(iter(self._allowed)))
            self._allowed[key] = allowed
        return allowed

    def search(self, text: str, limit: int) -> list[str]:
        """Ids of known items that begin with a text, or of which a feature does."""
        low, found = text.lower(), []
        for id, row in self._live.items():
            if row is not None and self._begins(low, str(id), row):
                found.append(str(id))
        if self._frame is not None and self.layout is not None and len(found) < limit:
            texts = [
                pl.col(name)
                .cast(pl.String, strict=False)
                .str.to_lowercase()
                .str.contains(low, literal=True)
                for name, kind in self._frame.schema.items()
                if kind == pl.String or name == self.layout.id
            ]
            some = self._frame.filter(pl.any_horizontal(texts)).head(limit)
            found += some[self.layout.id].cast(pl.String).to_list()
        return list(dict.fromkeys(found))[:limit]

    def _begins(self, low: str, id: str, row: Mapping[str, Any]) -> bool:
        values = [id, *(value for value in row.values() if isinstance(value, str))]
        return any(low in value.lower() for value in values)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
