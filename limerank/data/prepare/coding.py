"""Rows of events, checked and coded: batches of rows become columns of integers and floats."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import categories, category, numbers
from limerank.data.coverage import presence
from limerank.data.labels import types
from limerank.data.prepare.checks import Good, as_float32, label_columns, request_keys, times_of
from limerank.data.prepare.findings import Findings
from limerank.data.prepare.ids import Ids, Mask
from limerank.data.prepare.opening import OpenSources
from limerank.data.prepare.partition import Array, shuffle, unshuffle
from limerank.data.spec import EventSource, Feature
from limerank.errors import DataError

NO_SPLIT = 255
"""Of events whose source has no column of splits."""
KNOWN_BITS = np.uint64(32)
"""The key of a user that is known, or comes after those, is its code times 2**32."""


class RowCoder:
    """Turns batches of rows into the columns that are spooled.

    Attributes:
        users, items: the codes of ids.
        features: those of the values of each categorical event feature.
        dtypes: the columns of events: user, item, time, label_NAME, feature_NAME, and, where
            needed, ratio_NAME, source, request and split.
        hashed: whether keys of request ids are hashes of text.
        item_range: the least and the greatest code of an item.
        reading: the name of the file or frame that is read, for examples.
        findings: what is read, and what is wrong with it.
    """

    def __init__(self, sources: OpenSources, findings: Findings) -> None:
        spec = sources.spec
        self._spec, self.findings = spec, findings
        self._requests_given = any(source.request is not None for source in spec.events)
        self.reading, self.hashed = "", False
        earlier = sources.earlier
        self._known = earlier is not None
        self.item_range = [np.iinfo(np.int64).max, np.iinfo(np.int64).min]
        if earlier is None:
            self.users, self.items = (Ids(not integral) for integral in reversed(sources.integral))
        else:
            of_items, of_users = earlier.integers
            self.items = Ids(True, known=earlier.items, integers=of_items)
            self.users = Ids(True, known=earlier.users, integers=of_users)
            self.item_range = [0, max(len(earlier.items) - 1, 0)]
        typed = {label.column for label in spec.labels if label.typed}
        self.features: dict[str, Ids] = {}
        for feature in spec.event_features:
            if feature.kind == "categorical":
                table = None if earlier is None else earlier.categories(feature)
                self.features[feature.name] = Ids(
                    sources.feature_is_text[feature.name],
                    types if feature.column in typed else categories,
                    None if table is None else table["value"],
                )
        dtypes: dict[str, Any] = {"user": np.uint64, "time": np.int64}
        dtypes["item"] = sources.dtype_of(self.items, [source.item for source in spec.events])
        if len(spec.events) > 1:
            dtypes["source"] = np.uint8
        if self._requests_given:
            dtypes["request"] = np.uint64
        if spec.split.column is not None:
            dtypes["split"] = np.uint8
        for label in spec.labels:
            dtypes[f"label_{label.name}"] = np.uint8 if label.kind == "binary" else np.float32
            if label.of is not None:
                dtypes[f"ratio_{label.name}"] = np.float32
        for feature in spec.event_features:
            if feature.kind == "numeric":
                dtypes[f"feature_{feature.name}"] = np.float32
            else:
                dtypes[f"feature_{feature.name}"] = sources.dtype_of(
                    self.features[feature.name],
                    [
                        feature.column if feature in spec.features_of(source) else None
                        for source in spec.events
                    ],
                )
        self.dtypes = dtypes

    def user_keys(self, codes: Array) -> NDArray[np.uint64]:
        """Keys of users, by whose order a dataset is sorted; known users come first."""
        return codes.astype(np.uint64) << KNOWN_BITS if self._known else shuffle(codes)

    def user_codes(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The codes of users that have these keys; the inverse of :meth:`user_keys`."""
        return (keys >> KNOWN_BITS).astype(np.int64) if self._known else unshuffle(keys)

    def events(
        self, frame: pl.DataFrame, users: Array, known: Mask, source: EventSource, number: int
    ) -> dict[str, Array]:
        """The columns of a batch's good rows; the others are counted by reason."""
        n = len(frame)
        self.findings.rows += n
        good = Good(n, self.findings.bad, self.findings.examples, self.reading)
        good.check(known, "missing user id")
        items, known = self.items.codes(frame[source.item])
        good.check(known, "missing item id")
        given = frame[source.time or source.order or ""]
        times, known = times_of(given, source)
        good.check(known, "missing or unparsable time", given)
        columns: dict[str, Array] = {"user": self.user_keys(users), "item": items, "time": times}
        if "source" in self.dtypes:
            columns["source"] = np.full(n, number, np.uint8)
        if self._requests_given:
            columns["request"] = np.zeros(n, np.uint64)
            if source.request is not None:
                columns["request"], hashed = request_keys(frame[source.request])
                self.hashed = self.hashed or hashed
        if "split" in self.dtypes:
            columns["split"] = self._splits(frame, source, good)
        counted: set[str] = set()
        for label in self._spec.labels:
            values = self._column(frame, source, label.column or source.user)
            if label.typed and label.column not in counted:
                counted.add(label.column)
                self.findings.add_types(label.column, values)
            length = None if label.of is None else self._column(frame, source, label.of)
            columns |= label_columns(label, values, length, good)
        given_features = self._spec.features_of(source)
        for feature in self._spec.event_features:
            if feature not in given_features:
                missing = np.nan if feature.kind == "numeric" else self.missing(feature)
                dtype = self.dtypes[f"feature_{feature.name}"]
                columns[f"feature_{feature.name}"] = np.full(n, missing, dtype)
                continue
            self.findings.feature_rows[feature.name] += n
            values = self._column(frame, source, feature.column)
            if feature.kind == "numeric":
                columns[f"feature_{feature.name}"] = as_float32(numbers(values))
                self._note_numbers(feature, values, columns[f"feature_{feature.name}"])
            else:
                codes = self._feature_codes(feature, values)
                columns[f"feature_{feature.name}"] = codes
                found = int(np.count_nonzero(codes != self.missing(feature)))
                self.findings.present[feature.name] += found
                self.findings.parsed[feature.name] += found
        if good.mask is not None:
            columns = {name: array[good.mask] for name, array in columns.items()}
        self._widen(columns["item"])
        return columns

    def lists(
        self, frame: pl.DataFrame, users: Array, known: Mask, source: EventSource, number: int
    ) -> dict[str, Array]:
        """The good rows of a batch whose rows are lists of items."""
        n = len(frame)
        self.findings.rows += n
        good = Good(n, self.findings.bad, self.findings.examples, self.reading)
        good.check(known, "missing user id")
        given = frame[source.time or source.order or ""]
        times, known = times_of(given, source)
        good.check(known, "missing or unparsable time", given)
        lists = frame[source.item]
        if isinstance(lists.dtype, pl.Array):
            lists = lists.arr.to_list()
        elif not isinstance(lists.dtype, pl.List):
            _refuse_brackets(lists)
            lists = lists.cast(pl.String).str.strip_chars().str.split(source.list_split)
        lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
        flat = lists.filter(pl.Series(lengths > 0)).explode()
        self.findings.note("missing item ids within lists", flat.null_count())
        items, known = self.items.codes(flat)
        row = np.repeat(np.arange(n), lengths)
        if known is not None:
            items, row = items[known], row[known]
            lengths = np.bincount(row, minlength=n)
        keep = lengths > 0 if good.mask is None else good.mask & (lengths > 0)
        values = items[keep[row]]
        self._widen(values)
        return {
            "user": self.user_keys(users)[keep],
            "time": times[keep],
            "source": np.full(int(keep.sum()), number, np.uint8),
            "length": lengths[keep],
            "values": values,
        }

    def constants(self, source: EventSource) -> dict[str, Any]:
        """The constant values of the events of a source of lists, by spooled column."""
        values: dict[str, Any] = {}
        column = self._spec.split.column
        if column is not None:
            text = category(source.constant.get(column))
            values["split"] = self._spec.split.spellings.get(text or "", NO_SPLIT)
        unseen = Good(1, Counter())  # the description was checked when it was built
        for label in self._spec.labels:
            given = pl.Series(label.column, [source.constant.get(label.column)])
            length = None if label.of is None else pl.Series(label.of, [None])
            columns = label_columns(label, given, length, unseen)
            values |= {name: array[0] for name, array in columns.items()}
        for feature in self._spec.event_features:
            given = pl.Series(feature.column, [source.constant.get(feature.column)])
            values[f"feature_{feature.name}"] = (
                as_float32(numbers(given))[0]
                if feature.kind == "numeric"
                else self._feature_codes(feature, given)[0]
            )
        return values

    def _splits(self, frame: pl.DataFrame, source: EventSource, good: Good) -> Array:
        """The numbers of the splits in the column for them, ``NO_SPLIT`` for sources without it."""
        if not self._spec.has_split(source):
            return np.full(len(frame), NO_SPLIT, np.uint8)
        values = categories(self._column(frame, source, self._spec.split.column or ""))
        good.check(values.is_not_null().to_numpy(), "missing split", values)
        codes = values.replace_strict(
            self._spec.split.spellings, default=NO_SPLIT, return_dtype=pl.UInt8
        )
        unknown = values.filter(codes == NO_SPLIT).drop_nulls()
        if len(unknown):
            self.findings.add_splits(unknown, self._spec.split)
        return codes.to_numpy()

    def missing(self, feature: Feature) -> int:
        """The code of a missing value of a categorical event feature."""
        if self.features[feature.name].text:
            return 0
        return int(np.iinfo(self.dtypes[f"feature_{feature.name}"]).min)

    def _column(self, frame: pl.DataFrame, source: EventSource, name: str) -> pl.Series:
        if name in source.constant:
            return pl.Series(name, [source.constant[name]]).new_from_index(0, len(frame))
        return frame[name]

    def _widen(self, items: Array) -> None:
        if len(items):
            stretch(self.item_range, items)

    def _feature_codes(self, feature: Feature, values: pl.Series) -> Array:
        """Codes of a categorical event feature: text numbers from 1 (0: missing), or integers."""
        ids = self.features[feature.name]
        if ids.text:
            return _plus_one(ids.of_text(values))
        integers = values.cast(pl.Int64)
        if integers.null_count():
            integers = integers.fill_null(self.missing(feature))
        return integers.to_numpy()

    def _note_numbers(self, feature: Feature, values: pl.Series, found: Array) -> None:
        """Count the values of a numeric event feature, and those that are numbers."""
        readable = np.isfinite(found)
        count = int(np.count_nonzero(readable))
        self.findings.parsed[feature.name] += count
        if values.dtype != pl.String or count == len(values):
            self.findings.present[feature.name] += count
            return
        given, readable = presence(values)
        self.findings.present[feature.name] += int(given.sum())
        unread = given & ~readable
        if feature.name not in self.findings.unread and unread.any():
            self.findings.unread[feature.name] = str(values[int(np.flatnonzero(unread)[0])])


def _refuse_brackets(lists: pl.Series) -> None:
    """Raise a DataError where lists are written as in Python or JSON: splitting by a separator
    does not remove their brackets."""
    text = lists.cast(pl.String).drop_nulls().head(1000).str.strip_chars()
    text = text.filter(text != "")
    if len(text) and bool(text.str.contains(r"^(\[.*\]|\(.*\))$").all()):
        raise DataError(
            f"column {lists.name!r} has lists in brackets, such as {text[0]!r:.60}; write the "
            "items alone with list_split between them, or lists in Parquet or JSON lines"
        )


def _plus_one(codes: pl.Series) -> NDArray[np.uint32]:
    if codes.null_count():
        return (codes + 1).fill_null(0).to_numpy()
    return codes.to_numpy() + np.uint32(1)


def stretch(bounds: list[int], values: Array) -> None:
    """Widen ``bounds``, the least and the greatest value, to include ``values``."""
    bounds[0] = min(bounds[0], int(values.min()))
    bounds[1] = max(bounds[1], int(values.max()))
