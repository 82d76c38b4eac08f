"""Whether a table and a log fit: how many ids match, and how many values are present and known.

An id or a price in another notation (``SKU-7`` and ``7``, ``$3.50``) is not an error by itself:
each value is valid, but nothing matches. So every command that reads a table for a log or a run
reports which share of it was used, and warns where the share is near 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from limerank.data.canonical import numbers
from limerank.data.encoding import Encoding, values_of
from limerank.data.spec import Feature

NEAR_ZERO = 0.05
"""Smaller shares of matching ids, or of rows with a value, are warned of."""
MOSTLY = 0.5
"""A smaller share of numbers among the values of a numeric column is warned of."""
AT_ONCE = 1 << 20
"""Rows that are examined at once."""
MISSING_WORDS = (
    *("null", "NULL", "Null", "(null)", "None", "NONE", "nil", "undefined", "\\N"),
    *("NaN", "nan", "NAN", "NaT", "<NA>", "NA", "N/A", "n/a", "#N/A"),
)
"""Common spellings of a missing value."""
CODE, CODES = "NA", "^[A-Z]{2,5}$"
"""Namibia or North America, where the other values are such codes as well."""


def missing_words(values: pl.Series) -> pl.Series:
    """A mask of the texts that seem to mean a missing value."""
    words = values.is_in(MISSING_WORDS).fill_null(False)
    code = words & (values == CODE).fill_null(False)
    if code.any():
        others = values.filter(~words).drop_nulls()
        if 2 * int(others.str.contains(CODES).sum()) > len(others):
            words &= ~code
    return words


@dataclass(frozen=True)
class FeatureCoverage:
    """How many values of a feature are present, parsed and known.

    Attributes:
        name, column, kind: as in the description.
        rows: rows that were examined.
        present: rows with a value; ``parsed``: with one that could be read; ``known``: with one
            that has a code (numbers and vectors: that could be read).
        unread: a value that is not a number; ``unknown``: a category without a code.
        missing_words: how many values are words such as ``NULL``, and ``word``: one of them.
    """

    name: str
    column: str
    kind: str
    rows: int
    present: int
    parsed: int
    known: int
    unread: str | None = None
    unknown: str | None = None
    missing_words: int = 0
    word: str | None = None

    def text(self) -> str:
        """Name and share, in a few words."""
        if self.rows == 0:
            return f"{self.name} -"
        text = f"{self.name} {percent(self.known, self.rows)}"
        if self.present > self.parsed:
            text += f" ({self.present - self.parsed:,} not numbers, such as {self.unread!r})"
        return text

    def warnings(self, what: str) -> list[str]:
        """Warnings about the feature; ``what``: "item", "user" or "event"."""
        found = []
        name = f"{what} feature {self.name}"
        if self.rows and self.present < NEAR_ZERO * self.rows:
            found.append(
                f"{name}: {self.present:,} of {self.rows:,} rows have a value in the column "
                f"{self.column!r}; is it the right one?"
            )
        elif self.parsed < MOSTLY * self.present:
            found.append(
                f"{name}: {self.present - self.parsed:,} of {self.present:,} values are not "
                f"numbers, such as {self.unread!r}, and count as missing; write plain numbers"
            )
        elif self.known < NEAR_ZERO * self.present:
            found.append(
                f"{name}: {self.known:,} of {self.present:,} rows have a value that training "
                f"knows; unknown are such as {self.unknown!r}"
            )
        if self.missing_words:
            found.append(
                f"{name}: {self.missing_words:,} of {self.rows:,} values are words such as "
                f"{self.word!r}; if they mean missing values, list them in null_values"
            )
        return found


@dataclass(frozen=True)
class TableCoverage:
    """How a table and a log fit.

    Attributes:
        what: "item" or "user".
        ids: distinct ids of the log; ``matched``: of these, how many have a row of the table.
        rows: rows of the table with an id; ``used``: of these, how many the log's ids use.
        log_example: an id of the log without a row; ``table_example``: one of the table that the
            log does not have.
        features: of the rows that are used (of all, where no row is used).
        log: what the ids are compared with, for messages.
    """

    what: str
    ids: int
    matched: int
    rows: int
    used: int
    log_example: str | None
    table_example: str | None
    features: tuple[FeatureCoverage, ...]
    log: str = "the log"

    def to_dict(self) -> dict[str, Any]:
        """All fields, for a manifest."""
        return asdict(self)

    def lines(self) -> list[str]:
        """One or two lines for the summary."""
        others = self.rows - self.used
        text = (
            f"{self.what} table: {self.matched:,} of {self.ids:,} {self.what}s of {self.log} "
            f"have a row ({percent(self.matched, self.ids)})"
        )
        if others:
            text += f"; {others:,} of {self.rows:,} rows are {self.what}s that it does not name"
        lines = [text]
        if self.features:
            shares = ", ".join(feature.text() for feature in self.features)
            lines.append(f"{self.what} features, rows with a known value: {shares}")
        return lines

    def warnings(self, partial: bool = False) -> list[str]:
        """Shares that are near 0, with an example of each side.

        Args:
            partial: the table has a part of the ids on purpose, such as new items only: the warning
                is given only where its ids have another form than those of the log.
        """
        found = []
        few = self.matched < NEAR_ZERO * self.ids
        if partial:
            few = self.used == 0 and _form(self.log_example) != _form(self.table_example)
        if self.ids and few:
            examples = [
                f"{side} has such as {example!r}"
                for side, example in (
                    (self.log, self.log_example),
                    ("the table", self.table_example),
                )
                if example is not None
            ]
            found.append(
                f"the {self.what} table has a row for {self.matched:,} of {self.ids:,} {self.what}s"
                f" of {self.log}: {', '.join(examples)}; do both use the same notation, and is it "
                "the right column?"
            )
        if self.matched or not self.ids:
            for feature in self.features:
                found += feature.warnings(self.what)
        return found


def _form(id: str | None) -> tuple[bool, str] | None:
    """The form of an id: whether it is all digits, and the other characters in it."""
    return None if id is None else (id.isdigit(), re.sub(r"\w+", "", id))


def cover_table(
    what: str,
    log_ids: pl.Series,
    table_ids: pl.Series,
    frame: pl.DataFrame,
    features: Sequence[Feature],
    encoding: Encoding,
    log: str = "the log",
) -> TableCoverage:
    """Compare a table with the ids of a log (or of a run, an index: ``log`` names it).

    Args:
        what: "item" or "user".
        log_ids, table_ids: canonical ids (:mod:`limerank.data.canonical`), distinct; of one type,
            or compared as text. Null: the row has no id.
        frame: the table's rows, in the order of ``table_ids``.
        features, encoding: the features read, and their vocabularies and scales.
    """
    if log_ids.dtype != table_ids.dtype:
        log_ids, table_ids = log_ids.cast(pl.String), table_ids.cast(pl.String)
    given = table_ids.drop_nulls()
    in_log = table_ids.is_in(log_ids.implode()).fill_null(False)
    in_table = log_ids.is_in(given.implode())
    used = int(in_log.sum())
    return TableCoverage(
        what,
        len(log_ids),
        int(in_table.sum()),
        len(given),
        used,
        _first(log_ids.filter(~in_table)),
        _first(table_ids.filter(~in_log).drop_nulls()),
        cover_features(frame.filter(in_log) if used else frame, features, encoding),
        log,
    )


def cover_features(
    frame: pl.DataFrame, features: Sequence[Feature], encoding: Encoding
) -> tuple[FeatureCoverage, ...]:
    """The coverage of each feature of a table's rows."""
    return tuple(
        _cover_feature(frame, feature, encoding.vocabularies.get(feature.name))
        for feature in features
    )


def _cover_feature(
    frame: pl.DataFrame, feature: Feature, vocabulary: pl.DataFrame | None
) -> FeatureCoverage:
    present = parsed = known = words = 0
    unread = unknown = word = None
    for at in range(0, len(frame), AT_ONCE):
        part = frame[at : at + AT_ONCE]
        column = part[feature.column]
        if feature.kind == "categorical":
            assert vocabulary is not None
            values = values_of(part, feature)
            has_code = values["value"].is_in(vocabulary["value"].implode())
            present += values["row"].n_unique()
            parsed += values["row"].n_unique()
            known += values["row"].filter(has_code).n_unique()
            unknown = unknown or _first(values["value"].filter(~has_code))
            strange = values["value"].filter(missing_words(values["value"]))
            words += len(strange)
            word = word or _first(strange)
        elif feature.kind == "numeric":
            given, readable = presence(column)
            present += int(given.sum())
            parsed += int(readable.sum())
            unread = unread or _first(column.filter(pl.Series(given & ~readable)))
        else:
            count = int(column.is_not_null().sum())
            present, parsed = present + count, parsed + count
    if feature.kind != "categorical":
        known = parsed
    return FeatureCoverage(
        feature.name,
        feature.column,
        feature.kind,
        len(frame),
        present,
        parsed,
        known,
        unread,
        unknown,
        words,
        word,
    )


def presence(column: pl.Series) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Two masks of a column of numbers: rows with a value, and rows whose value could be read."""
    readable = np.isfinite(numbers(column))
    if column.dtype == pl.String:
        text = column.str.strip_chars().str.to_lowercase()
        given = ~(text.is_null() | text.is_in(["", "nan"]))
        return given.to_numpy(), readable
    return readable, readable


def percent(part: int, total: int) -> str:
    """A share as text; only exact shares are shown as 0 % and 100 %."""
    if total == 0:
        return "-"
    share = 100 * part / total
    if 0 < part < total:
        share = min(max(share, 0.1), 99.9)
        return f"{share:.1f} %" if share < 1 or share > 99 else f"{share:.0f} %"
    return f"{share:.0f} %"


def _first(values: pl.Series) -> str | None:
    return None if len(values) == 0 else str(values[0])
