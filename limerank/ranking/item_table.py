"""Raw features of items, for filters, search and answers.

They come from the item table (a file in the layout that the run's dataset description names) and
from live items, which take precedence. Without a file only live items have features. Tables are
immutable: live items make another table, which shares the file's part with the previous one.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from limerank.data.canonical import (
    category_list,
    external_id,
    id_texts,
    json_value,
    number,
    numbers,
)
from limerank.data.coverage import TableCoverage, cover_features
from limerank.data.description import load_spec
from limerank.data.encoding import Encoding, read_vocabulary, values_of
from limerank.data.sources import find_files, in_one_file, read_table
from limerank.data.spec import Feature, Spec, Table
from limerank.errors import DataError, SpecError, StorageError
from limerank.index import Index
from limerank.ranking.conditions import Condition, Wanted, text_of, wanted
from limerank.runs.model import Trained
from limerank.validation import validate

log = logging.getLogger("limerank.ranking")
ALLOWED, ALLOWED_BYTES = 64, 64 << 20
"""Filters whose results are cached: how many, and their bytes together, at most. One filter always
is."""

SHOWN = 1 << 16
"""Rows of a file whose features are cached in their JSON form, at most."""

Rows = NDArray[np.int64]
Columns = Mapping[str, Any]
Filter = tuple[tuple[Feature, Wanted], ...]
"""Conditions in their one form."""
NO_VALUE: frozenset[str | None] = frozenset({None})


class ItemTable:
    """Columns of the item table by external id; immutable.

    Args:
        trained: the run, whose description names the columns.
        path: the table (CSV, TSV or Parquet); None: only live items have features.
        data: a dataset; without a path, the item table is read that its description names, where
            that exists.

    Raises:
        DataError: the file cannot be read, or a column of the description is missing.
        SpecError: a table is given, and the run's data had none.
    """

    def __init__(self, trained: Trained, path: Path | None, data: Path | None = None) -> None:
        spec = validate(Spec, trained.manifest["spec"], str(trained.path / "encoding.json"))
        self.layout = spec.items
        if self.layout is None and path is not None:
            raise SpecError(f"the data of {trained.path} had no item table; {path} cannot be read")
        self.path = path
        self._file: _ItemFile | None = None
        if self.layout is not None and path is not None:
            table, base = in_one_file(self.layout, path), path.absolute().parent
            self._file = _ItemFile(self.layout, table, base, str(path))
        elif self.layout is not None and data is not None:
            table_of_data = _described(data)
            if table_of_data is not None:
                name = f"the item table of {data}"
                self._file = _ItemFile(self.layout, table_of_data, data, name)
        self._live: dict[int | str, Columns | None] = {}

    def coverage(self, trained: Trained, index: Index) -> TableCoverage | None:
        """How the file fits an index; None: there is no file."""
        if self._file is None:
            return None
        encoding = trained.manifest["encoding"]["items"]
        names = [one["name"] for one in encoding["features"] if one["kind"] == "categorical"]
        vocabularies = {name: read_vocabulary(trained.path, f"item_{name}") for name in names}
        return self._file.coverage(Encoding(encoding, vocabularies), index)

    def with_items(self, items: Mapping[int | str, Columns | None]) -> ItemTable:
        """The table with live items over it: id -> columns, or None where the item was removed."""
        if not items:
            return self
        table = object.__new__(ItemTable)
        table.layout, table.path, table._file = self.layout, self.path, self._file
        table._live = self._live | {_key(id): columns for id, columns in items.items()}
        return table

    @property
    def live(self) -> Mapping[int | str, Columns | None]:
        """The live items, by id."""
        return self._live

    @property
    def names(self) -> list[str]:
        """Features by name."""
        return [] if self.layout is None else [one.name for one in self.layout.features]

    def features(self, ids: Sequence[Any]) -> list[dict[str, Any]]:
        """The raw features of each item; empty for an unknown item."""
        if self.layout is None:
            return [{} for _ in ids]
        columns = [(one.name, one.column) for one in self.layout.features]
        found: list[dict[str, Any]] = [{} for _ in ids]
        positions: list[int] = []
        rows: list[int] = []
        for position, id in enumerate(ids):
            key = _key(id)
            live = self._live.get(key)
            if live is not None:
                found[position] = {name: json_value(live.get(column)) for name, column in columns}
            elif self._file is not None and (row := self._file.rows.get(str(key))) is not None:
                positions.append(position)
                rows.append(row)
        if self._file is not None and rows:
            for position, features in zip(positions, self._file.features(rows), strict=True):
                found[position] = features
        return found

    def wanted(self, given: Mapping[str, Condition]) -> Filter:
        """Conditions in their one form, see :func:`limerank.ranking.conditions.wanted`.

        Raises:
            SpecError: a feature is unknown or cannot fulfil a condition, or no features are
                available.
            DataError: a feature cannot have such a value.
        """
        self.expect_features()
        assert self.layout is not None
        return wanted(self.layout.features, given)

    def expect_features(self) -> None:
        """SpecError where no features of items are available."""
        if self.layout is None:
            raise SpecError(
                "no item features are available: the run's data had no item table, so rules cannot "
                "name features"
            )
        if self._file is None and not self._live:
            raise SpecError(
                "no item features are available: give the item table (limerank serve --items FILE, "
                "limerank rank --items FILE, Recommender(items=FILE))"
            )

    def rows_of_file(self, index: Index) -> Rows:
        """The row of an index of each row of the file, i64; -1 where it lacks the item."""
        return index.ids.find([] if self._file is None else self._file.ids())

    def allowed(self, index: Index, of: Filter, rows: Rows) -> NDArray[np.bool_]:
        """Which rows of an index fulfil all conditions, bool [n]; ``rows``: of
        :meth:`rows_of_file`."""
        allowed = np.zeros(len(index), dtype=bool)
        if self._file is not None:
            fulfilling = np.ones(len(self._file), dtype=bool)
            for feature, condition in of:
                fulfilling &= self._file.fulfilling(feature, condition)
            found = rows[fulfilling]
            allowed[found[found >= 0]] = True
        rows = index.ids.find(list(self._live))
        for row, columns in zip(rows.tolist(), self._live.values(), strict=True):
            if row >= 0:
                allowed[row] = columns is not None and all(
                    condition.holds(*_values(feature, columns.get(feature.column)))
                    for feature, condition in of
                )
        return allowed

    def values(self, feature: Feature, ids: Sequence[Any]) -> list[frozenset[str]]:
        """The values of a categorical feature of each item; none for an unknown item."""
        found = []
        for features in self.features(ids):
            texts, _ = _values(feature, features.get(feature.name))
            found.append(frozenset(text for text in texts if text is not None))
        return found

    def search(self, text: str, limit: int) -> list[str]:
        """Ids of known items whose id or features contain a text, in any letter case."""
        low = text.lower()
        found: list[str] = []
        for id, columns in self._live.items():
            if len(found) >= limit:
                break
            if columns is not None and _holds(low, str(id), columns):
                found.append(str(id))
        if self._file is not None and len(found) < limit:
            found += self._file.search(low, limit)
        return list(dict.fromkeys(found))[:limit]


class Filters:
    """Filters over one table and one index, with a cache of the latest ones. Table and index are
    immutable, so cached results stay correct. Safe in several threads.

    Attributes:
        items: the table.
    """

    def __init__(self, items: ItemTable, index: Index) -> None:
        self.items, self._index = items, index
        self._cached: OrderedDict[Any, NDArray[np.bool_]] = OrderedDict()
        self._most = max(1, min(ALLOWED, ALLOWED_BYTES // max(1, len(index))))
        self._lock = threading.Lock()

    @cached_property
    def _rows(self) -> Rows:
        return self.items.rows_of_file(self._index)

    def allowed(self, given: Mapping[str, Condition]) -> NDArray[np.bool_]:
        """Which rows of the index fulfil all conditions, bool [n], not to be written to; see
        :meth:`ItemTable.wanted`."""
        key = self.items.wanted(given)
        with self._lock:
            found = self._cached.get(key)
            if found is not None:
                self._cached.move_to_end(key)
                return found
        found = self.items.allowed(self._index, key, self._rows)
        with self._lock:
            self._cached[key] = found
            while len(self._cached) > self._most:
                self._cached.popitem(last=False)
        return found


class _ItemFile:
    """The item table of a file. A feature is prepared for filters when it is first used."""

    def __init__(self, layout: Table, table: Table, base: Path, name: str) -> None:
        self.layout = layout
        try:
            self._frame, bad = read_table(table, base, layout.read)
            texts = id_texts(self._frame[layout.id]).to_list()
        except (OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError) as error:
            raise DataError(f"{name} cannot be read as an item table: {error}") from None
        if bad:
            log.warning("%s: %d lines could not be parsed; their items are unknown", name, bad)
        self.rows = {id: row for row, id in enumerate(texts) if id is not None}
        """Row of each item, by its id's text."""
        names = dict.fromkeys(feature.column for feature in layout.features)
        self._columns = self._frame.select(list(names))
        self._shown: dict[int, dict[str, Any]] = {}
        self._values: dict[str, _Values | NDArray[np.float64]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._frame)

    def coverage(self, encoding: Encoding, index: Index) -> TableCoverage:
        """How the rows fit the items of an index, and the run's vocabularies."""
        ids = list(self.rows)
        positions = np.array(list(self.rows.values()), np.int64)
        found = index.ids.find(ids)
        used = found >= 0
        matched = np.zeros(len(index), bool)
        matched[found[used]] = True
        matched[index.removed] = True
        lacking = np.flatnonzero(~matched)[:1]
        matched[index.removed] = False
        rows = positions[used] if used.any() else positions
        return TableCoverage(
            "item",
            index.items,
            int(matched.sum()),
            len(ids),
            int(used.sum()),
            str(index.ids[lacking][0]) if len(lacking) else None,
            next((id for id, there in zip(ids, used.tolist(), strict=True) if not there), None),
            cover_features(self._frame[rows], self.layout.features, encoding),
            "the index",
        )

    def ids(self) -> list[Any]:
        """External ids of all rows."""
        return self._frame[self.layout.id].to_list()

    def features(self, rows: list[int]) -> list[dict[str, Any]]:
        """The features of rows as JSON values, with a cache, since rankings repeat the same
        items."""
        if not self.layout.features:
            return [{} for _ in rows]
        shown = self._shown
        found = {row: shown[row] for row in rows if row in shown}
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        if missing:
            names = self._columns.columns
            for row, values in zip(missing, self._columns[missing].rows(), strict=True):
                decoded = dict(zip(names, map(json_value, values), strict=True))
                found[row] = {one.name: decoded[one.column] for one in self.layout.features}
            if len(shown) + len(missing) > SHOWN:
                shown = self._shown = {}
            for row in missing[:SHOWN]:
                shown[row] = found[row]
        return [found[row] for row in rows]

    def fulfilling(self, feature: Feature, condition: Wanted) -> NDArray[np.bool_]:
        """Which rows fulfil a condition on a feature, bool [rows]."""
        with self._lock:
            if feature.name not in self._values:
                self._values[feature.name] = (
                    numbers(self._frame[feature.column])
                    if feature.kind == "numeric"
                    else _Values(values_of(self._frame, feature), len(self))
                )
            held = self._values[feature.name]
        found = np.ones(len(self), dtype=bool)
        if condition.any is not None:
            found &= _having(held, condition.any)
        for value in condition.all:
            found &= _having(held, frozenset({value}))
        if condition.none:
            found &= ~_having(held, condition.none)
        if condition.ranged:
            assert isinstance(held, np.ndarray)
            low, high = condition.low, condition.high
            found &= (held >= (-np.inf if low is None else low)) & (
                held <= (np.inf if high is None else high)
            )
        return found

    def search(self, low: str, limit: int) -> list[str]:
        """Ids of rows whose id or texts contain a text."""
        texts = [
            pl.col(name)
            .cast(pl.String, strict=False)
            .str.to_lowercase()
            .str.contains(low, literal=True)
            for name, kind in self._frame.schema.items()
            if kind == pl.String or name == self.layout.id
        ]
        some = self._frame.filter(pl.any_horizontal(texts)).head(limit)
        return [text for text in some[self.layout.id].cast(pl.String).to_list() if text is not None]


def _having(held: _Values | NDArray[np.float64], wanted: frozenset[str | None]) -> Any:
    """Which rows have one of some values, bool [rows]."""
    if isinstance(held, _Values):
        return held.having(wanted)
    found = np.isin(held, [float(value) for value in wanted if value is not None])
    return found | np.isnan(held) if None in wanted else found


class _Values:
    """The rows of each value of a categorical feature; ``long`` has the columns row and value."""

    def __init__(self, long: pl.DataFrame, count: int) -> None:
        texts = long["value"].unique(maintain_order=True)
        codes = pl.DataFrame([texts, pl.Series("code", np.arange(len(texts)))])
        code = long.join(codes, on="value", how="left", maintain_order="left")["code"].to_numpy()
        order = np.argsort(code, kind="stable")
        self._codes = dict(zip(texts.to_list(), range(len(texts)), strict=True))
        self._rows = long["row"].to_numpy()[order]
        self._starts = np.searchsorted(code[order], np.arange(len(texts) + 1))
        self._count = count

    def having(self, wanted: frozenset[str | None]) -> NDArray[np.bool_]:
        found = np.zeros(self._count, dtype=bool)
        if None in wanted:
            found[:] = True
            found[self._rows] = False
        for code in (self._codes[text] for text in wanted if text in self._codes):
            found[self._rows[self._starts[code] : self._starts[code + 1]]] = True
        return found


def _described(data: Path) -> Table | None:
    """The item table that the description of a dataset names; None where it is not there."""
    try:
        table = load_spec(data / "spec.toml").items
        if table is None or not table.files:
            return None
        find_files(table, data)
    except (SpecError, DataError, StorageError):
        return None
    return table


def _key(id: Any) -> int | str:
    """An item's id in its one form; text that is not an id stays as it is."""
    try:
        return external_id("item", id)
    except DataError:
        return str(id)


def _values(feature: Feature, value: Any) -> tuple[frozenset[str | None], float]:
    """All values of a feature of an item, {None} where it has none, and its number or NaN."""
    try:
        if feature.kind == "numeric":
            return frozenset({text_of(feature, value)}), number(value)
        return frozenset(category_list(value, feature.split)) or NO_VALUE, math.nan
    except DataError:  # stored by a version that accepted such values
        return NO_VALUE, math.nan


def _holds(low: str, id: str, columns: Columns) -> bool:
    values = [id, *(value for value in columns.values() if isinstance(value, str))]
    return any(low in value.lower() for value in values)
