"""Items to encode: those of a dataset, of a table in a file, or given as mappings.

Each of them becomes a :class:`SourceItems`: external ids, and the inputs of the item tower. Items
that training has seen are encoded with what it learned of them, other items by their content
alone.
"""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from limerank.data.batch import Items
from limerank.data.canonical import id_integers, id_texts
from limerank.data.counters import Hourly, ItemCounters
from limerank.data.coverage import TableCoverage, cover_table
from limerank.data.display import texts
from limerank.data.encoding import (
    Encoding,
    candidates,
    encode,
    frame_of,
    read_vocabulary,
    read_vocabulary_ids,
)
from limerank.data.features import FeatureTable
from limerank.data.sources import in_one_file, read_table
from limerank.data.spec import Spec, Table
from limerank.errors import DataError, FormatError, SpecError
from limerank.index.format import Counted
from limerank.runs.model import Trained
from limerank.validation import validate

ENCODED_AT_ONCE = 1 << 20
"""Rows of a table."""

ItemSource = str | os.PathLike[str] | pl.DataFrame | Mapping[str, Any] | Iterable[Mapping[str, Any]]
"""A file in the layout of the run's item table (CSV, TSV or Parquet), a polars frame with its
columns, or items as mappings of these columns to values."""


@dataclass(frozen=True)
class SourceItems:
    """Items to encode.

    Attributes:
        ids: external ids of all rows.
        codes: rows of the model's embedding table of ids, 0 for items that training has not seen.
        content: the other inputs of the item tower.
        candidate: whether rankings may contain them.
        rows: the rows that are wanted.
        coverage: how a table in a file fits the run; None where items came from elsewhere.
        display: what is shown of each row: column -> texts; empty where nothing is.
        counted: counters of all rows, f32 [n, F]; None: those of the model.
        hourly: what these count; None where that is not known.
        until: which impressions they contain; None where that is not known.
    """

    ids: NDArray[Any]
    codes: NDArray[np.int64]
    content: FeatureTable
    candidate: NDArray[np.bool_]
    rows: NDArray[np.int64]
    coverage: TableCoverage | None = None
    display: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counted: NDArray[np.float32] | None = None
    hourly: Hourly | None = None
    until: Counted | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def displayed(self, names: Sequence[str]) -> list[str]:
        """What is shown of the wanted rows: a JSON array of the texts of these columns, each."""
        columns = [self.display.get(name) for name in names]
        return [
            json.dumps(["" if of is None else of[row] for of in columns], ensure_ascii=False)
            for row in self.rows.tolist()
        ]

    @property
    def wanted(self) -> NDArray[Any]:
        """External ids of the wanted rows."""
        return self.ids[self.rows]

    def with_counters(self, counters: ItemCounters, rows: NDArray[np.integer]) -> SourceItems:
        """With counters.

        Args:
            counters: of a log, at its end.
            rows: of the items in it, [n]; a row that it lacks was never shown.
        """
        return replace(
            self,
            counted=counters.latest(rows),
            hourly=counters.recent(rows),
            until=Counted(counters.after, counters.end, counters.mean),
        )

    def items(self, positions: NDArray[np.int64] | slice) -> Items:
        """The inputs of the item tower for some of the wanted rows."""
        rows = self.rows[positions]
        return Items(
            ids=torch.from_numpy(self.codes[rows]),
            content=self.content.take(rows),
            counted=None if self.counted is None else torch.from_numpy(self.counted[rows]),
        )

    def chunks(self, size: int, first: int = 0) -> Iterator[Items]:
        """Yield the wanted rows from ``first`` on, ``size`` at a time."""
        for at in range(first, len(self), size):
            yield self.items(slice(at, at + size))

    def checksum(self) -> int:
        """CRC-32 of all contents: equal for equal items in the same order."""
        content = self.content
        found = 0
        ids = self.ids
        if ids.dtype.kind not in "iu":
            ids = np.frombuffer("\0".join(map(str, ids)).encode(), dtype=np.uint8)
        arrays = [ids, self.codes, self.candidate, self.rows]
        if self.counted is not None:
            arrays.append(self.counted)
        for name, values in self.display.items():
            found = zlib.crc32("\0".join([name, *values]).encode(), found)
        for part in (*arrays, content.tokens, content.weights, content.offsets, content.numeric):
            found = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, found)
        return found


@dataclass(frozen=True)
class SourceTable:
    """A table of items that is read and not encoded yet.

    Attributes:
        ids: external ids of all rows.
    """

    ids: NDArray[Any]
    _layout: _ItemTable
    _frame: pl.DataFrame
    _series: pl.Series
    _in_file: bool

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: slice | NDArray[np.int64]) -> SourceItems:
        """Encode some of its rows; all of them are wanted."""
        return self._layout.encoded(self._frame[rows], self._series[rows])

    def items(self) -> SourceItems:
        """Encode all of its rows, and find how a table in a file fits the run."""
        found = self.take(slice(None))
        return replace(found, coverage=self.coverage()) if self._in_file else found

    def coverage(self) -> TableCoverage:
        """How the table fits the run."""
        of = self._layout
        ids = pl.Series("id", self.ids, dtype=of.known.dtype)
        features = of.layout.features
        return cover_table("item", of.known, ids, self._frame, features, of.encoding, "the run")


def of_source(run: Trained, source: ItemSource) -> SourceItems:
    """The items of a file, or those given as mappings.

    Raises:
        DataError: a column is missing, or an item has no id.
        SpecError: the run's data had no item table.
    """
    return read_source(run, source).items()


def read_source(run: Trained, source: ItemSource) -> SourceTable:
    """The table of :func:`of_source`, before its rows are encoded."""
    spec = validate(Spec, run.manifest["spec"], str(run.path / "encoding.json"))
    if spec.items is None:
        raise SpecError(
            f"the dataset of {run.path} has no item table, so items have no content; index the "
            "dataset itself"
        )
    encoding = run.manifest["encoding"]
    categorical = tuple(
        feature.name for feature in spec.items.features if feature.kind == "categorical"
    )
    known, vocabularies = _learned(
        run.path, run.fingerprint, categorical, encoding["trained_items"]
    )
    table = _ItemTable(spec.items, Encoding(encoding["items"], vocabularies), known)
    if isinstance(source, (str, os.PathLike)):
        return table.of_file(Path(source))
    if isinstance(source, pl.DataFrame):
        source = source.to_dicts()
    items: list[Any] = [source] if isinstance(source, Mapping) else list(source)
    wrong = next((item for item in items if not isinstance(item, Mapping)), None)
    if wrong is not None:
        raise DataError(
            f"an item is {wrong!r:.80}, expected a mapping of columns to values; items are given "
            "as a file, a polars frame, a mapping or a list of mappings"
        )
    return table.of_mappings(items)


@dataclass(frozen=True)
class _ItemTable:
    """The item table of a run: its layout, and the encoding of its rows."""

    layout: Table
    encoding: Encoding
    known: pl.Series
    """Ids of the items of training, in the order of the model's id table."""

    def of_file(self, path: Path) -> SourceTable:
        layout = in_one_file(self.layout, path)
        frame, bad = read_table(layout, path.absolute().parent, layout.read)
        if bad:
            raise DataError(f"{path}: {bad} lines could not be parsed")
        return self._read(frame, str(path), True)

    def of_mappings(self, items: list[Mapping[str, Any]]) -> SourceTable:
        needed = self.layout.needed
        for item in items:
            if not isinstance(item, Mapping):
                raise DataError(
                    f"an item is {item!r:.80}, expected a mapping of the item table's columns: "
                    f"{', '.join(needed)}"
                )
            missing = [name for name in needed if name not in item]
            if missing:
                raise DataError(
                    f"an item has no {', '.join(map(repr, missing))} but {', '.join(item)}; give "
                    "each column of the item table, None where its value is unknown"
                )
        return self._read(frame_of(self.layout, items), "the items given", False)

    def _read(self, frame: pl.DataFrame, source: str, in_file: bool) -> SourceTable:
        ids = _item_ids(frame[self.layout.id], self.known.dtype == pl.String, source)
        return SourceTable(ids.to_numpy(), self, frame, ids, in_file)

    def encoded(self, frame: pl.DataFrame, ids: pl.Series) -> SourceItems:
        """Encode rows of the table, whose ids are given."""
        positions = np.arange(1, len(self.known) + 1)
        known = pl.DataFrame([self.known, pl.Series("code", positions, dtype=pl.Int64)])
        wanted = pl.DataFrame([ids.alias("id")])
        known = known.join(wanted, on="id", how="semi")
        codes = wanted.join(known, on="id", how="left", maintain_order="left")["code"]
        return SourceItems(
            ids.to_numpy(),
            codes.fill_null(0).to_numpy(),
            self._content(frame, ids),
            candidates(frame, self.layout),
            np.arange(len(ids), dtype=np.int64),
            display=texts(frame, self.layout.display).to_dict(as_series=False),
        )

    def _content(self, frame: pl.DataFrame, ids: pl.Series) -> FeatureTable:
        """Encode a part at a time: encoding needs ten times the memory of its result."""
        parts = [
            encode(
                frame[at : at + ENCODED_AT_ONCE],
                self.layout.features,
                self.encoding,
                ids[at : at + ENCODED_AT_ONCE],
            )
            for at in range(0, max(len(frame), 1), ENCODED_AT_ONCE)
        ]
        ends = np.cumsum([part.offsets[-1] for part in parts])
        offsets = [
            part.offsets[1:] + end - part.offsets[-1] for part, end in zip(parts, ends, strict=True)
        ]
        return FeatureTable(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.weights for part in parts]),
            np.concatenate([np.zeros(1, np.int64), *offsets]),
            np.concatenate([part.numeric for part in parts]),
        )


@functools.lru_cache(maxsize=4)
def _learned(
    path: Path, fingerprint: str, features: tuple[str, ...], trained: int
) -> tuple[pl.Series, dict[str, pl.DataFrame]]:
    """A run's ids of trained items and its vocabularies, cached for items that come one by one."""
    known = read_vocabulary_ids(path, "items")[:trained]
    if len(known) != trained or known.null_count():
        raise FormatError(f"{path / 'vocab' / 'items.parquet'} is damaged; restore the run")
    if known.dtype == pl.String:  # a run from before ids were normalised
        known = id_texts(known)
    vocabularies = {name: read_vocabulary(path, f"item_{name}") for name in features}
    return known, vocabularies


def _item_ids(values: pl.Series, text: bool, source: str) -> pl.Series:
    """The id column of a table in the type of the run's ids."""
    try:
        ids = id_texts(values) if text else id_integers(values)[0]
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    missing = ids.is_null()
    if missing.any():
        wrong = id_texts(values.filter(missing)).drop_nulls()
        if len(wrong) and not text:
            raise DataError(
                f"{source}: the item id {wrong[0]!r} is no integer, as the run's ids are"
            )
        raise DataError(f"{source}: {missing.sum()} rows of {len(ids)} have no item id")
    return ids
