"""An earlier dataset whose codes, bucket edges and scales are used again, and to which events may
be added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import id_texts
from limerank.data.encoding import Encoding, read_vocabulary, read_vocabulary_ids
from limerank.data.folder import LOG, MANIFEST, READABLE, open_array
from limerank.data.prepare.ids import CodeMap, Ids
from limerank.data.prepare.logfiles import FORMAT, LogFile
from limerank.data.prepare.partition import Array
from limerank.data.spec import EventFeature, Feature, Spec
from limerank.errors import DataError, FormatError
from limerank.files import read_json
from limerank.validation import validate

SAME = ("events", "labels", "event_features")
"""Parts of a description that the events of a dataset depend on."""
CHUNK = 1 << 18
"""Events that are read at once, about; at least those of one user."""


class Earlier:
    """The encoding of an earlier dataset.

    Attributes:
        path: its folder.
        manifest: its manifest.
        items, users: external ids by row, as text.
        integers: the ids of items, and of users, as integers; None: not all are.
        trained_items: items that have an id of their own in models.

    Raises:
        FormatError: the folder is not a dataset, or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_json(self.path / MANIFEST, "a dataset")
        if self.manifest.get("format") not in READABLE:
            raise FormatError(
                f"{self.path} has dataset format {self.manifest.get('format')}, expected one of "
                f"{', '.join(map(str, READABLE))}; prepare it again with this version"
            )
        self._encoding: dict[str, Any] = self.manifest["encoding"]
        ids = [read_vocabulary_ids(self.path, name) for name in ("items", "users")]
        self.integers = [one if one.dtype == pl.Int64 else None for one in ids]
        self.items, self.users = map(id_texts, ids)
        self.trained_items: int = self._encoding["trained_items"]

    @cached_property
    def spec(self) -> Spec:
        """The description that it was prepared from."""
        return validate(Spec, self.manifest["spec"], str(self.path / MANIFEST))

    @property
    def anchors(self) -> list[str]:
        """The anchored features of its items."""
        return list(self._encoding.get("anchors", []))

    def label(self, name: str, kind: str) -> Mapping[str, Any] | None:
        """The entry of a label; None: it has none of this name and kind."""
        return _entry(self._encoding["labels"], {"name": name, "kind": kind})

    def event_feature(self, feature: EventFeature) -> Mapping[str, Any] | None:
        """The entry of an event feature; None: it has none like this."""
        wanted: dict[str, Any] = {"name": feature.name, "kind": feature.kind}
        if feature.when != "impression":
            return _entry(self._encoding["event_features"], {**wanted, "when": feature.when})
        if feature.kind == "numeric":
            wanted["transform"] = feature.transform
        return _entry(self._encoding.get("impression_features", []), wanted)

    def categories(self, feature: EventFeature) -> pl.DataFrame | None:
        """The vocabulary of a categorical event feature; None: it has no such feature."""
        entry = self.event_feature(feature)
        return None if entry is None else self._vocabulary(f"event_{feature.name}", entry["size"])

    def content(self, kind: str, features: tuple[Feature, ...]) -> Encoding:
        """What it learned of those of the features of the table of ``kind`` ("item" or "user")
        that it has."""
        entries, vocabularies = [], {}
        for feature in features:
            wanted: dict[str, Any] = {"name": feature.name, "kind": feature.kind}
            if feature.kind == "numeric":
                wanted["transform"] = feature.transform
            entry = _entry(self._encoding[f"{kind}s"]["features"], wanted)
            if entry is not None:
                entries.append(entry)
                if feature.kind == "categorical":
                    vocabularies[feature.name] = self._vocabulary(
                        f"{kind}_{feature.name}", entry["size"]
                    )
        return Encoding({"features": entries}, vocabularies)

    def _vocabulary(self, name: str, size: int) -> pl.DataFrame:
        table = read_vocabulary(self.path, name).sort("code")
        if table["code"].to_list() != list(range(1, size)):
            raise FormatError(
                f"{self.path / 'vocab' / name}.parquet was written by an early version, which had "
                "other rules for values; its codes cannot be used again: prepare without them"
            )
        return table

    @property
    def seeds(self) -> NDArray[np.uint64] | None:
        """By user row, what decides who is held out; None: an earlier version did not write it."""
        path = self.path / LOG / "users.npy"
        return np.asarray(open_array(path)) if path.exists() else None


def _entry(entries: list[dict[str, Any]], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((one for one in entries if wanted.items() <= one.items()), None)


class EarlierEvents:
    """The events of a dataset that is extended, by user, then time.

    Attributes:
        files: of each source of events, the files that were read.
        hashed: whether keys of its request ids are hashes of text.
        total: number of events.
        summary: the part of the manifest that counts what was read.

    Raises:
        FormatError: the dataset lacks what extending needs: an earlier version wrote it.
        DataError: the description is another one, or has sources of lists.
    """

    def __init__(self, earlier: Earlier, spec: Spec) -> None:
        self.path, self._spec = earlier.path, spec
        found = earlier.manifest.get("log")
        if found is None or found.get("format") != FORMAT:
            raise FormatError(
                f"{earlier.path} was prepared by a version that did not record what extending it "
                "needs; prepare the full log once more with the same codes: "
                f"--encoding {earlier.path}; then extend that dataset"
            )
        _require_same(earlier, spec)
        self.hashed: bool = found["hash"] is not None
        if self.hashed and found["hash"] != text_hash():
            raise FormatError(
                f"{earlier.path} was prepared with another version of Polars, which gives request "
                "ids other keys; prepare the full log once more with the same codes: "
                f"--encoding {earlier.path}"
            )
        self.files = [[LogFile(**one) for one in of] for of in found["files"]]
        self.summary: dict[str, Any] = earlier.manifest["summary"]
        self.total: int = earlier.manifest["counts"]["events"]
        self._offsets = np.asarray(open_array(self.path / "users" / "event_offsets.npy"))

    def chunks(self, coder: Mapping[str, Ids]) -> Iterator[tuple[Array, Array, dict[str, Array]]]:
        """Some users at a time: their rows, the number of events of each, and the columns of their
        events as they are spooled, but for ``user``. Users without events are left out.

        Args:
            coder: the codes of the values of each categorical event feature.
        """
        columns = self._columns(coder)
        first = 0
        users = len(self._offsets) - 1
        while first < users:
            last = int(np.searchsorted(self._offsets, self._offsets[first] + CHUNK, side="right"))
            last = min(max(last - 1, first + 1), users)
            start, end = int(self._offsets[first]), int(self._offsets[last])
            counts = np.diff(self._offsets[first : last + 1])
            some = np.flatnonzero(counts)
            if len(some):
                yield (
                    first + some,
                    counts[some],
                    {name: column(start, end) for name, column in columns.items()},
                )
            first = last

    def _columns(self, coder: Mapping[str, Ids]) -> dict[str, _Column]:
        events, log = self.path / "events", self.path / LOG
        found = {"item": _Column(events / "item.npy"), "time": _Column(events / "time.npy")}
        for label in self._spec.labels:
            found[f"label_{label.name}"] = _Column(events / f"label_{label.name}.npy")
            if label.of is not None:
                found[f"ratio_{label.name}"] = _Column(events / f"ratio_{label.name}.npy")
        if len(self._spec.events) > 1:
            found["source"] = _Column(log / "source.npy")
        if any(source.request is not None for source in self._spec.events):
            found["request"] = _Column(log / "request_key.npy")
        if self._spec.split.column is not None:
            found["split"] = _Column(log / "split.npy")
        for feature in self._spec.event_features:
            name = f"feature_{feature.name}"
            shown = feature.when == "impression"
            if feature.kind == "numeric":
                path = events / f"impression_{feature.name}.npy" if shown else log / f"{name}.npy"
                found[name] = _Column(path)
            else:
                path = events / f"{'impression' if shown else 'feature'}_{feature.name}.npy"
                found[name] = _Codes(path, log, feature.name, coder[feature.name])
        return found


class _Column:
    """A column of the events."""

    def __init__(self, path: Path) -> None:
        self._values = open_array(path)

    def __call__(self, start: int, end: int) -> Array:
        """The values of the events from ``start`` to ``end``."""
        return np.array(self._values[start:end])


class _Codes(_Column):
    """Codes of values, those without a code in the dataset among them."""

    def __init__(self, path: Path, log: Path, name: str, ids: Ids) -> None:
        super().__init__(path)
        self._rows = open_array(log / f"unknown_{name}_row.npy")
        self._given = open_array(log / f"unknown_{name}_code.npy")
        table = pl.read_parquet(log / f"unknown_{name}.parquet")
        new = ids.of_text(table["value"]).to_numpy().astype(np.int32) + 1
        self._map = CodeMap(table["code"].to_numpy(), new, 0)

    def __call__(self, start: int, end: int) -> Array:
        codes = super().__call__(start, end).astype(np.uint32)
        first, last = np.searchsorted(self._rows, [start, end])
        codes[self._rows[first:last] - start] = self._map(np.array(self._given[first:last]))
        return codes


def _require_same(earlier: Earlier, spec: Spec) -> None:
    """Refuse a description that reads other events than the one of the earlier dataset."""
    without = {"events": {"__all__": {"files"}}}
    new, old = (one.model_dump(exclude=without) for one in (spec, earlier.spec))
    wrong = [name for name in SAME if new[name] != old[name]]
    if (spec.split.column, spec.split.values) != (
        earlier.spec.split.column,
        earlier.spec.split.values,
    ):
        wrong.append("split.column")
    if wrong:
        raise DataError(
            f"the description has other {' and '.join(wrong)} than that of {earlier.path}, whose "
            "events were read by it. Prepare the full log with the new description and the same "
            f"codes: --encoding {earlier.path}"
        )
    for source in spec.events:
        if source.lists:
            raise DataError(
                f"{source.shown_name} has lists = true: every list repeats events of those before "
                "it, so new files alone do not say which events are new. Prepare the full log with "
                f"the same codes: --encoding {earlier.path}"
            )


def text_hash() -> int:
    """Tells versions of Polars apart whose hashes of text differ."""
    return int(pl.Series(["limerank"]).hash()[0])
