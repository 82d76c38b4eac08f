"""What reading a log finds: rows, bad rows by reason, examples and remarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from limerank.data.canonical import categories
from limerank.data.labels import Label
from limerank.data.protocol import SPLIT_NAMES, Split
from limerank.data.sources import Reader, Selection
from limerank.data.spec import EventSource
from limerank.errors import DataError, did_you_mean

MOST_SPLITS = 50
"""Unknown values of a column of splits, after which reading stops."""
DUPLICATE = "duplicate row"
"""Reason of rows that repeat an earlier one."""
SHOWN = 10
"""Of these values in a message."""
MOST_TYPES = 1000
"""Types of events, above which a column must be another one."""


class Findings:
    """Counts and examples of what was read.

    Attributes:
        rows: rows read, and records that could not be.
        bad: bad rows by reason; each row counts for one.
        noted: other counts that the summary shows.
        examples: of reasons, where the first such row is and what it contains.
        remarks: warnings about files and frames, such as a header that repeats a name.
        unit_hints: of times that seem to have another unit than the one given.
        feature_rows: of each event feature, rows that were read.
        present, parsed, unread: of each event feature, how many of these rows have a value, how
            many one that could be read, and a value that could not.
        splits: values of the column of splits that name none.
        types: of each column of event types, rows by value.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.bad: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.remarks: list[str] = []
        self.unit_hints: list[str] = []
        self.feature_rows: Counter[str] = Counter()
        self.present: Counter[str] = Counter()
        self.parsed: Counter[str] = Counter()
        self.unread: dict[str, str] = {}
        self.splits: Counter[str] = Counter()
        self.types: dict[str, Counter[str]] = {}

    def include(self, summary: Mapping[str, Any]) -> None:
        """Add what reading an earlier part of the log found, by the summary of its dataset."""
        self.rows += summary["rows"]
        noted = {**summary["noted"]}
        for reason, count in summary["dropped"].items():
            if reason == DUPLICATE:
                noted[reason] = count
            else:
                self.bad[reason] += count
        self.noted.update(noted)
        for reason, example in summary.get("examples", {}).items():
            self.examples.setdefault(reason, example)
        for column, counts in summary.get("types", {}).items():
            self.types.setdefault(column, Counter()).update(counts)
        for feature in summary.get("event_features", ()):
            name = feature["name"]
            self.feature_rows[name] += feature["rows"]
            self.present[name] += feature["present"]
            self.parsed[name] += feature["parsed"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for :meth:`add`."""
        return dict(vars(self))

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what reading the next file found, from its :meth:`to_dict`.

        Raises:
            DataError: a column of event types has too many values.
        """
        self.rows += other["rows"]
        for name in ("bad", "noted", "feature_rows", "present", "parsed", "splits"):
            getattr(self, name).update(other[name])
        for reason, example in other["examples"].items():
            self.examples.setdefault(reason, example)
        for feature, value in other["unread"].items():
            self.unread.setdefault(feature, value)
        self.remarks += other["remarks"]
        self.unit_hints += other["unit_hints"]
        for column, counts in other["types"].items():
            self.types.setdefault(column, Counter()).update(counts)
            self._check_types(column)

    def note(self, what: str, count: int) -> None:
        """Add to a count of ``noted``."""
        if count:
            self.noted[what] += count

    def remark_events(self, reader: Reader, before: int) -> None:
        """Take note of a source of events that has been read; ``before``: rows before it."""
        self.bad["unparsable line"] += reader.rows.bad_lines
        self.rows += reader.rows.bad_lines
        self._remark(reader, "unparsable line", self.rows - before)

    def remark_table(self, reader: Reader, what: str, rows: int) -> None:
        """Take note of a source of the item or the user table that has been read.

        Args:
            what: "item table" or "user table".
            rows: how many rows it had.
        """
        self.note(f"{what}: unparsable lines", reader.rows.bad_lines)
        self._remark(reader, f"{what}: unparsable lines", rows + reader.rows.bad_lines)

    def check_where(
        self, source: EventSource, values: Sequence[Mapping[str, Counter[str]]], rows: int
    ) -> None:
        """Take note of the values of ``where`` that no row of a source has.

        Args:
            values: of each of its files, rows by value of each column of ``where``.
            rows: how many rows were selected.

        Raises:
            DataError: none was.
        """
        total = Selection(source)
        for of_file in values:
            for column, counts in of_file.items():
                total.values[column].update(counts)
        absent = total.absent()
        if total.where and rows == 0:
            named = " and ".join(f"{one} = {', '.join(total.where[one])}" for one in total.where)
            raise DataError(
                f"{source.shown_name}: no row has {named} (where); "
                f"{'; '.join(absent) or 'no row has all of them'}"
            )
        self.remarks += [f"{source.shown_name}: {text}" for text in absent]

    def _remark(self, reader: Reader, bad: str, rows: int) -> None:
        self.remarks += reader.rows.remarks
        chosen = reader.selection
        self.note(f"row without an element of {chosen.each}", chosen.empty)
        self.note("row left out by where", chosen.left_out)
        if rows + chosen.empty + chosen.left_out == 0:
            self.remarks.append(f"{reader.name} has no rows")
        if reader.rows.bad_example is not None:
            self.examples.setdefault(bad, reader.rows.bad_example)
        self.note("record over several lines", reader.rows.several_lines)

    def add_splits(self, values: pl.Series, split: Split) -> None:
        """Count values of the column of splits that are not known.

        Raises:
            DataError: there are so many that it must be another column.
        """
        for value, count in values.value_counts().iter_rows():
            self.splits[value] += count
        if len(self.splits) > MOST_SPLITS:
            self.check_splits(split)

    def add_types(self, column: str, values: pl.Series) -> None:
        """Count the values of a column of event types.

        Raises:
            DataError: there are so many that it must be another column.
        """
        counts = self.types.setdefault(column, Counter())
        found = values.alias("value").drop_nulls().value_counts(name="rows")
        for value, count in zip(categories(found["value"]), found["rows"], strict=True):
            if value is not None:
                counts[value] += count
        self._check_types(column)

    def _check_types(self, column: str) -> None:
        counts = self.types[column]
        if len(counts) > MOST_TYPES:
            raise DataError(
                f"column {column!r} has more than {MOST_TYPES:,} values, such as "
                f"{_listed(counts, 3)}; expected types of events: is it the right column?"
            )

    def check_types(self, labels: Iterable[Label]) -> None:
        """Raise a DataError where no event has the values that a label names, or where one of them
        seems to be misspelled; the others are noted."""
        for label in labels:
            counts = self.types.get(label.column, Counter())
            if label.typed and not label.compares and len(counts) > 1:
                self.remarks.append(
                    f"label {label.name}: every event is a positive, whatever its {label.column}: "
                    f"{_listed(counts, SHOWN)}; name those that are to be predicted in equals or "
                    "any_of"
                )
            if not label.compares:
                continue
            known = {value.lower() for value in counts}
            named = label.values or tuple(label.weights)
            absent = [value for value in named if value.lower() not in known]
            if not absent:
                continue
            if not counts:
                empty = f"{self.rows:,} rows were read" if self.rows else "the files have no rows"
                raise DataError(
                    f"label {label.name}: no event has a value in the column {label.column!r}; "
                    f"{empty}"
                )
            others = [value for value in counts if value.lower() not in map(str.lower, named)]
            hint = did_you_mean(absent[0], others)
            text = (
                f"label {label.name}: no event has {label.column} = {absent[0]!r}; values found: "
                f"{_listed(counts, SHOWN)}{hint}"
            )
            if hint or len(absent) == len(named):
                raise DataError(text)
            self.remarks.append(text)

    def counts_of_types(self) -> dict[str, dict[str, int]]:
        """Of each column of types, rows by value; those that differ by case are added up under the
        most frequent spelling, of equally frequent ones that with the most lower case."""

        def ordered(counts: Counter[str]) -> list[tuple[str, int]]:
            return sorted(counts.items(), key=lambda one: (-one[1], one[0].swapcase()))

        found: dict[str, dict[str, int]] = {}
        for column, counts in self.types.items():
            forms: dict[str, str] = {}
            sums: Counter[str] = Counter()
            for value, count in ordered(counts):
                sums[forms.setdefault(value.lower(), value)] += count
            found[column] = dict(ordered(sums))
        return found

    def note_unread(self, label: Label, readers: Iterable[Reader]) -> None:
        """Warn of a column that has the name of a label which reads none."""
        for reader in readers:
            if label.of_every_event and not label.column and label.name in reader.columns:
                self.remarks.append(
                    f"{reader.name} has a column {label.name!r}, and label {label.name} does not "
                    "read it: every event is a positive; if its value decides, write equals = 1 "
                    "(or another value)"
                )
                return

    def check_splits(self, split: Split) -> None:
        """Raise a DataError where the column of splits has values that are not known."""
        if not self.splits:
            return
        some = [text for text, _ in self.splits.most_common(3)]
        example = ", ".join(f'"{text}" = "{_likely_split(text)}"' for text in some)
        advice = "is it the right column?"
        if len(self.splits) <= MOST_SPLITS:
            advice = f"give their meaning in [split], such as values = {{ {example} }}"
        raise DataError(
            f"split.column {split.column!r} has values other than "
            f"{', '.join(split.spellings)}: {_listed(self.splits, SHOWN)}; {advice}"
        )

    def check_share(self, most: float) -> None:
        """Raise a DataError where more than the share ``most`` of the rows is bad, or all are."""
        self.bad = +self.bad
        bad = sum(self.bad.values())
        table = ""
        for reason, count in self.bad.most_common():
            table += f"\n  {count:>12,}  {reason}"
            if reason in self.examples:
                table += f" ({self.examples[reason]})"
            table += _advice(reason, reason in self.examples)
        if self.rows and bad / self.rows > most:
            raise DataError(
                f"{bad:,} of {self.rows:,} rows ({100 * bad / self.rows:.1f} %) are bad, more than "
                f"checks.max_bad_share = {most} allows:{table}\n"
                "correct the log or its description, or raise the share"
            )
        if self.rows == bad:
            raise DataError(f"the log has no usable events: {self.rows:,} rows read{table}")


def _advice(reason: str, seen: bool) -> str:
    """What to do about bad rows; ``seen``: whether an example has a value."""
    if reason.startswith("missing label") and seen:
        return (
            "; a label is a number, or true and false: for words name those that count, in equals "
            "or any_of"
        )
    if reason == "missing user id":
        return (
            ": if these are users who are not logged in, name a column of devices or sessions as "
            "user, or raise checks.max_bad_share to leave them out"
        )
    return ""


def _listed(counts: Counter[str], most: int) -> str:
    """The most frequent values with their numbers of rows, for messages."""
    found = [f"{text!r} ({n:,} row{'s' * (n > 1)})" for text, n in counts.most_common(most)]
    more = f" and {len(counts) - most} more" if len(counts) > most else ""
    return ", ".join(found) + more if found else "none"


def _likely_split(text: str) -> str:
    """The split that a spelling probably means."""
    begins = {"tr": 0, "v": 1, "d": 1, "e": 1, "te": 2, "h": 2}
    for begin, number in begins.items():
        if text.lower().startswith(begin):
            return SPLIT_NAMES[number]
    return SPLIT_NAMES[0]
