"""What reading a log finds: rows, bad rows by reason, examples and remarks."""

from __future__ import annotations

from collections import Counter

from limerank.data.sources import Reader
from limerank.errors import DataError


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

    def _remark(self, reader: Reader, bad: str, rows: int) -> None:
        self.remarks += reader.rows.remarks
        if rows == 0:
            self.remarks.append(f"{reader.name} has no rows")
        if reader.rows.bad_example is not None:
            self.examples.setdefault(bad, reader.rows.bad_example)
        self.note("record over several lines", reader.rows.several_lines)

    def check_share(self, most: float) -> None:
        """Raise a DataError where more than the share ``most`` of the rows is bad, or all are."""
        self.bad = +self.bad
        bad = sum(self.bad.values())
        table = ""
        for reason, count in self.bad.most_common():
            table += f"\n  {count:>12,}  {reason}"
            if reason in self.examples:
                table += f" ({self.examples[reason]})"
        if self.rows and bad / self.rows > most:
            raise DataError(
                f"{bad:,} of {self.rows:,} rows ({100 * bad / self.rows:.1f} %) are bad, more than "
                f"checks.max_bad_share = {most} allows:{table}\n"
                "correct the log or its description, or raise the share"
            )
        if self.rows == bad:
            raise DataError(f"the log has no usable events: {self.rows:,} rows read{table}")
