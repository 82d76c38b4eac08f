"""The sources of a dataset, opened: their columns are checked before any row is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from limerank.data.labels import columns_of
from limerank.data.prepare.asked import BATCH_BYTES, Asked
from limerank.data.prepare.checks import require_time_format
from limerank.data.prepare.ids import Ids, TextIdsError
from limerank.data.prepare.logfiles import LogFile, new_files
from limerank.data.sources import Reader, wanted_of_table
from limerank.data.spec import EventFeature, EventSource
from limerank.errors import DataError, did_you_mean


class OpenSources:
    """Readers of all rows of a dataset.

    Attributes:
        readers: of each source of events.
        table_readers: of the item table and of the user table.
        integral: whether item ids and user ids are integers, as far as is known yet.
        feature_is_text: whether an event feature's categories are texts (else integers).
        files: the files that are read of each source of events.
        earlier: whose codes are used; None: codes are new.

    Raises:
        DataError: a file or a column is missing or cannot be used.
        SpecError: a source has neither files nor a frame.
    """

    def __init__(self, asked: Asked, integral: Sequence[bool] | None = None) -> None:
        """Files whose events an earlier dataset has are not opened. ``integral`` is given where it
        is known."""
        inputs, earlier, events = asked.inputs, asked.earlier, asked.events
        self.spec, self.earlier = inputs.spec, earlier
        paths = [inputs.event_files(number) for number in range(len(inputs.spec.events))]
        if events is not None:
            paths = [
                new_files(of, known, events.path)
                for of, known in zip(paths, events.files, strict=True)
            ]
        self.files = [[LogFile.of(path) for path in of] for of in paths]
        spec = inputs.spec
        self.readers: list[list[Reader]] = []
        for number, source in enumerate(spec.events):
            require_time_format(source)
            readers = inputs.event_readers(number, paths[number])
            for reader in readers:
                _require_named(reader, source)
                reader.require(self.wanted(source))
            self.readers.append(readers)
        tables = (spec.items, spec.users)
        may_be_integers: list[list[bool]] = [[], []]
        self.table_readers: list[list[Reader]] = [[], []]
        for k, table in enumerate(tables):
            if table is None:
                continue
            for reader in inputs.table_readers(("items", "users")[k]):
                reader.require(wanted_of_table(table))
                self.table_readers[k].append(reader)
                may_be_integers[k].append(_may_be_integers(reader, table.id))
        for source, readers in zip(spec.events, self.readers, strict=True):
            for reader in readers:
                may_be_integers[0].append(_may_be_integers(reader, source.item))
                may_be_integers[1].append(_may_be_integers(reader, source.user))
        # Codes that are known already are those of texts.
        self.integral = [all(each) and earlier is None for each in may_be_integers]
        if integral is not None:
            self.integral = list(integral)
        for k, table in enumerate(tables):
            if table is not None and self.integral[k] and integral is None:
                ids = Ids(False)
                try:
                    for reader in self.table_readers[k]:
                        with reader.named():
                            for frame in reader.batches([table.id], BATCH_BYTES):
                                ids.codes(frame[table.id])
                except TextIdsError:
                    self.integral[k] = False
        self.feature_is_text = {
            feature.name: self.is_known(feature) or self._is_text(feature)
            for feature in spec.event_features
        }

    def is_known(self, feature: EventFeature) -> bool:
        """Whether the codes of a feature are those of an earlier dataset."""
        return self.earlier is not None and self.earlier.event_feature(feature) is not None

    def wanted(self, source: EventSource) -> list[tuple[str, str]]:
        """The columns that are read of a source's files, and the role of each."""
        spec = self.spec
        wanted = [(source.user, "id"), (source.item, "ids" if source.lists else "id")]
        wanted += [(column, "time") for column in (source.time, source.order) if column]
        if source.request is not None:
            wanted.append((source.request, "request"))
        if spec.split.column is not None and spec.has_split(source):
            wanted.append((spec.split.column, "category"))
        if not source.lists:
            wanted += columns_of(spec.labels)
            roles = {"categorical": "category", "numeric": "number"}
            wanted += [(one.column, roles[one.kind]) for one in spec.features_of(source)]
        return [(column, role) for column, role in wanted if column not in source.constant]

    def columns(self, source: EventSource) -> list[str]:
        """The columns that are read of a source's files."""
        return list(dict.fromkeys(column for column, _ in self.wanted(source)))

    def _is_text(self, feature: EventFeature) -> bool:
        """Whether an event feature's categories are texts (else integers) in any source."""
        column = feature.column
        for source, readers in zip(self.spec.events, self.readers, strict=True):
            if feature not in self.spec.features_of(source):
                continue
            if column in source.constant:
                value = source.constant[column]
                if isinstance(value, str) or not value.is_integer():
                    return True
            elif not source.lists:
                for reader in readers:
                    dtype = reader.columns[column]
                    assert dtype is not None
                    if not (dtype.is_integer() or dtype == pl.Boolean) or dtype == pl.UInt64:
                        return True
        return False

    def dtype_of(self, ids: Ids, columns: list[str | None]) -> type[np.integer[Any]]:
        """The narrowest integers that are known to hold the codes of a column, given for each
        source; None: the source lacks it."""
        if ids.text:
            return np.uint32
        narrow = np.iinfo(np.int32)
        for source, readers, column in zip(self.spec.events, self.readers, columns, strict=True):
            if column is None:
                continue
            if column in source.constant:
                value = float(source.constant[column])
                bounds = [(value, value)]
            elif source.lists and column != source.item:
                bounds = []
            else:
                bounds = [reader.bounds(column) for reader in readers]
            if not all(narrow.min < low and high <= narrow.max for low, high in bounds):
                return np.int64
        return np.int32


def _require_named(reader: Reader, source: EventSource) -> None:
    """Raise a DataError where a file lacks the column that a field has by default."""
    for field in ("user", "item"):
        column = getattr(source, field)
        if column not in reader.columns and field not in source.model_fields_set:
            found = ", ".join(name for name in reader.columns if name)
            hint = did_you_mean(column, reader.columns) or did_you_mean(field, reader.columns)
            raise DataError(
                f"{reader.name} has no column {column!r}, the default of {field}: write "
                f'{field} = "NAME" in [[events]], with one of the columns {found}'
                f"{reader.rows.header_hint() or hint}"
            )


def _may_be_integers(reader: Reader, column: str) -> bool:
    """Whether the type of a column of ids allows that all of them are integers."""
    dtype = reader.columns[column]
    if isinstance(dtype, (pl.List, pl.Array)):
        dtype = dtype.inner  # type: ignore[assignment]  # polars: a type or its class
    assert dtype is not None
    return dtype.is_integer() or dtype.is_float() or reader.untyped(column)
