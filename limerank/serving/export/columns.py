"""Columns of an exported log, and its files: Parquet, CSV and JSON lines.

The columns are known when all rows are: which labels and features the events have. So rows are
first written to a temporary file, and then to the log, in batches; memory does not grow with the
log.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from limerank.errors import SpecError, did_you_mean
from limerank.serving.export.rows import Row

BATCH = 8192
"""Rows that are converted at once."""
FIXED: Mapping[str, pa.DataType] = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "time": pa.int64(),
    "source": pa.string(),
    "request": pa.string(),
    "arm": pa.string(),
    "position": pa.int32(),
    "value": pa.float64(),
    "team": pa.string(),
    "outcomes": pa.int32(),
}
"""Columns of every exported log."""


@dataclass
class Columns:
    """The labels and features that rows have, and the columns of these.

    Attributes:
        labels: label -> whether all its values are 0 or 1.
        ratios: duration labels with ratios.
        features: feature -> "int", "float" or "text".
    """

    labels: dict[str, bool] = field(default_factory=dict)
    ratios: set[str] = field(default_factory=set)
    features: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Take note of a row's names and types."""
        for name, number in row.labels.items():
            self.labels[name] = self.labels.get(name, True) and number in (0, 1)
        self.ratios.update(row.ratios)
        for name, value in row.features.items():
            kind = "text" if isinstance(value, str) else type(value).__name__
            before = self.features.get(name, kind)
            self.features[name] = kind if kind == before else _common(kind, before)

    def expect(self, labels: Mapping[str, bool], features: Mapping[str, str]) -> None:
        """Add the labels and features of a description that no row has."""
        self.labels |= {name: of for name, of in labels.items() if name not in self.labels}
        self.features |= {name: of for name, of in features.items() if name not in self.features}

    def names(self) -> dict[tuple[str, str], str]:
        """(part, name) -> column. A name that another column has gets its part in front."""
        taken, found = set(FIXED), {}
        parts = [("label", name) for name in sorted(self.labels)]
        parts += [("ratio", name) for name in sorted(self.ratios)]
        parts += [("feature", name) for name in sorted(self.features)]
        for part, name in parts:
            column = name if part != "ratio" else f"ratio_{name}"
            while column in taken:
                column = f"{part}_{column}"
            taken.add(column)
            found[part, name] = column
        return found

    def schema(self) -> pa.Schema:
        """The columns with their types."""
        types = {"int": pa.int64(), "float": pa.float64(), "text": pa.string()}
        columns = dict(FIXED)
        for (part, name), column in self.names().items():
            columns[column] = types[self.features[name]] if part == "feature" else pa.float64()
        return pa.schema(list(columns.items()))


def _common(one: str, other: str) -> str:
    return "text" if "text" in (one, other) else "float"


class Spool:
    """Rows in a temporary file, and the columns that they have."""

    def __init__(self, file: IO[str], zero_labels: bool) -> None:
        self._file, self._zero = file, zero_labels
        self.columns, self.count = Columns(), 0

    def write(self, row: Row) -> None:
        self.columns.add(row)
        self.count += 1
        fixed = (row.user, row.item, row.time, row.source, row.ranking, row.arm, row.position,
                 row.value, row.team, row.outcomes)  # fmt: skip
        json.dump((fixed, row.labels, row.ratios, row.features), self._file, ensure_ascii=True)
        self._file.write("\n")

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """The rows as mappings of column to value, some at a time."""
        names = self.columns.names()
        labels = [(name, names["label", name]) for name in self.columns.labels]
        ratios = [(name, names["ratio", name]) for name in self.columns.ratios]
        read: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "text": _text}
        kinds = {
            name: (names["feature", name], read[kind])
            for name, kind in self.columns.features.items()
        }
        self._file.seek(0)
        while lines := list(islice(self._file, BATCH)):
            rows = []
            for line in lines:
                fixed, has, shares, features = json.loads(line)
                row = dict(zip(FIXED, fixed, strict=True))
                row["user_id"], row["item_id"] = str(row["user_id"]), str(row["item_id"])
                missing = 0.0 if row["source"] == "shown" and self._zero else None
                row |= {column: has.get(name, missing) for name, column in labels}
                row |= {column: shares.get(name) for name, column in ratios}
                for name, (column, kind) in kinds.items():
                    value = features.get(name)
                    row[column] = None if value is None else kind(value)
                rows.append(row)
            yield rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parquet(path: Path, spool: Spool) -> None:
    schema = spool.columns.schema()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in spool.batches():
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _csv(path: Path, spool: Spool) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, spool.columns.schema().names)
        writer.writeheader()
        for rows in spool.batches():
            writer.writerows(rows)


def _jsonl(path: Path, spool: Spool) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for rows in spool.batches():
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


WRITERS: Mapping[str, Callable[[Path, Spool], None]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _jsonl,
}
"""Ending of a log's name -> what writes it."""


def writer_of(path: Path) -> Callable[[Path, Spool], None]:
    """What writes a log of this name.

    Raises:
        SpecError: its ending is not known.
    """
    ending = path.suffix.lower()
    if ending in WRITERS:
        return WRITERS[ending]
    raise SpecError(
        f"{path.name} ends in {ending or 'nothing'!r}, expected one of {', '.join(WRITERS)}"
        f"{did_you_mean(ending, WRITERS)}"
    )


@contextmanager
def spooled(folder: Path, rows: Iterable[Row], *, zero_labels: bool) -> Iterator[Spool]:
    """Rows in a temporary file without a name, which ends with the process.

    Args:
        folder: the disk of this folder has room for the rows.
        rows: the rows.
        zero_labels: whether a label that a shown item's events lack is 0.
    """
    with TemporaryFile("w+", encoding="utf-8", dir=folder) as file:
        spool = Spool(file, zero_labels)
        for row in rows:
            spool.write(row)
        yield spool
