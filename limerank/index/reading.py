"""Opening an index: its arrays mapped into memory, its ids looked up."""

from __future__ import annotations

import math
import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.counters import COUNTERS, Hourly
from limerank.data.ragged import ragged_index
from limerank.errors import FingerprintError, FormatError, SpecError, UnknownError
from limerank.index.anchors import Anchors
from limerank.index.display import Display
from limerank.index.format import (
    DTYPES,
    PER_ROW,
    SMALL,
    Counted,
    LiveItems,
    Scales,
    Shard,
    read_manifest,
    versioned,
)
from limerank.index.lookup import IdLookup, Level
from limerank.storage.arguments import READ, with_uris

REOPEN = 100
"""Attempts to open an index that changes while it is opened."""
BLOCK = 1 << 24
"""Bytes of a file that a checksum reads at once."""
VERIFIED_BYTES = 32 << 20
"""An index of at most so many bytes is verified whenever it is opened for ranking."""


class Index:
    """An index folder, opened: memory-mapped, in milliseconds at any size.

    It stays the version that was opened, even when the folder changes.

    Attributes:
        path: the folder.
        version: counts the changes of the folder.
        fingerprint: that of the run whose model built it.
        model: the model's name.
        items: how many items there are; removed ones do not count.
        arrays: name of each file's array -> the array; see :mod:`limerank.index.format`.
        ids: external ids by row. ``ids.find`` gives an item's newest row, also where the item was
            removed.
        vectors: f32 [n, d].
        weights: u8 [n, C + S], link weights and then keys; None for models without links.
        keys: numbers of a key, S; 0 for models without profiles.
        terms: i8 [n, g]; None for models without links.
        counters: of each row, f32 [n, N]; None for models without counters.
        counted: which impressions these contain; None where the index does not have what they
            count.
        scales: of weights and terms.
        anchors: the items' anchored values; None for models without anchored links.
        display: what is shown of each row; None where the description has no ``display``.
        hidden: rows that rankings never contain, i32, ascending: those of items that occur in
            histories only, of removed items, and old rows of updated items.
        removed: rows of items that were removed, i32, ascending.
        live: the live items of an event store that it contains; None where there is no store.
        shard: which rows of another index these are; None for an index of its own.
        superseded: how many old rows of updated or re-added items there are.
        base: identifies the rows as first written. Versions with the same base agree in every row
            that both have; they differ in added rows, in the lookup and in hidden rows.

    Args:
        path: the folder, or the URI of a published index, which is fetched into the cache and
            mapped from there.

    Raises:
        FormatError: the folder is not an index or has another format; or a file is missing or
            truncated, or a small file has changed.
        StorageError: the index cannot be fetched.
    """

    @with_uris(path=READ)
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        manifest = read_manifest(self.path)
        for _ in range(REOPEN):
            try:
                self._open(manifest)
                return
            except FormatError:
                newer = read_manifest(self.path)
                if newer["checksum"] == manifest["checksum"]:
                    raise
                manifest = newer
        raise FormatError(f"{self.path} changes faster than it can be opened; try again")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        fingerprint: str | None = None,
        *,
        verify: bool | None = False,
    ) -> Index:
        """Open an index.

        Args:
            path: the folder, or its URI.
            fingerprint: of the run that is to use it.
            verify: read everything and compare all checksums; None: only for an index of at most
                :data:`VERIFIED_BYTES`, where it takes no time. The checksums of the manifest and
                of the small files, and the sizes of all files, are always compared.

        Raises:
            FingerprintError: another model built it.
            FormatError: the folder is not an index or has another format; or a file is missing,
                truncated or changed.
            StorageError: the index cannot be fetched.
        """
        index = cls(path)
        if fingerprint is not None and index.fingerprint != fingerprint:
            raise FingerprintError(
                f"{index.path} was built by the model {index.fingerprint}, not by {fingerprint}; "
                "build an index with this run, or rank with the run that built it"
            )
        if verify or (verify is None and index.nbytes <= VERIFIED_BYTES):
            index.verify()
        return index

    def _open(self, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        try:
            self.version = int(manifest["version"])
            self.fingerprint = str(manifest["fingerprint"])
            self.model = str(manifest["model"])
            self._rows = int(manifest["rows"])
            self.items = int(manifest["items"])
            self.superseded = int(manifest["superseded"])
            self.live = LiveItems.of(manifest.get("live"))
            self.shard = Shard.from_manifest(manifest.get("shard"))
            self.base = f"{manifest['files']['vectors.f32']['file']} {int(manifest['built']):08x}"
            arrays = {name: self._map(name, entry) for name, entry in manifest["files"].items()}
            for name in SMALL:
                self._check(name, arrays[name])
            self.arrays = arrays
            self.vectors: NDArray[np.float32] = arrays["vectors.f32"]
            text = "ids.utf8" in arrays
            self.ids = IdLookup(
                arrays["ids.utf8" if text else "ids.i64"],
                arrays["id_ends.i64"] if text else None,
                [
                    Level(arrays["tail_keys.i64"], arrays["tail_rows.i32"]),
                    Level(arrays["id_keys.i64"], arrays["id_rows.i32"]),
                ],
            )
            self.hidden = self._ascending("hidden_rows.i32")
            self.removed = self._ascending("removed_rows.i32")
            self.weights: NDArray[np.uint8] | None = arrays.get("weights.u8")
            self.terms: NDArray[np.int8] | None = arrays.get("terms.i8")
            self.counters: NDArray[np.float32] | None = arrays.get("counters.f32")
            if self.counters is not None and self.counters.shape[1] != len(COUNTERS):
                raise ValueError(f"counters has the shape {self.counters.shape}")
            self.counted = Counted.from_manifest(manifest.get("counted"))
            if self.counted is not None:
                _check_counts(arrays["counts.i32"], arrays["count_ends.i64"])
            self.scales: Scales | None = None
            if self.weights is not None and self.terms is not None:
                self.scales = Scales.of(manifest["scales"])
                self.scales.check(self.weights.shape[1], self.terms.shape[1])
            self.keys = int(manifest.get("keys", 0))
            if self.keys and (self.weights is None or not 0 <= self.keys < self.weights.shape[1]):
                raise ValueError(f"keys are {self.keys}")
            anchors = manifest.get("anchors")
            self.anchors = None if anchors is None else Anchors(anchors, arrays)
            shown = manifest.get("display")
            self.display: Display | None = None
            if shown is not None:
                self.display = Display(shown, arrays["display.utf8"], arrays["display_ends.i64"])
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            raise FormatError(
                f"{self.path}/manifest.json is damaged ({error!r}); build the index again"
            ) from None

    def _map(self, name: str, entry: dict[str, Any]) -> NDArray[Any]:
        file, shape = str(entry["file"]), tuple(int(size) for size in entry["shape"])
        if versioned(name, file) is None:
            raise ValueError(f"{name} lies in {file!r}")
        dtype = np.dtype(DTYPES[name])
        size = math.prod(shape) * dtype.itemsize
        if min(shape) < 0 or (name in PER_ROW and shape[0] != self._rows):
            raise ValueError(f"{name} has the shape {shape}, of {self._rows} rows")
        try:
            if not stat.S_ISREG(os.stat(self.path / file).st_mode):
                raise FormatError(
                    f"{self.path} is damaged: {file} is not a regular file; build the index again"
                )
            with open(self.path / file, "rb") as opened:
                held = os.fstat(opened.fileno()).st_size
                if held >= size > 0:
                    # As a plain array: numpy's own class takes microseconds at each access.
                    return np.memmap(opened, dtype, "r", shape=shape).view(np.ndarray)
        except FileNotFoundError:
            raise FormatError(
                f"{self.path} is damaged: {file} is missing; build the index again"
            ) from None
        except OSError as error:
            raise FormatError(f"{self.path / file} cannot be read: {error.strerror}") from None
        if held < size:
            raise FormatError(
                f"{self.path} is damaged: {file} has {held:,} bytes, expected {size:,}; "
                "build the index again"
            )
        return np.zeros(shape, dtype)

    def _ascending(self, name: str) -> NDArray[np.int32]:
        rows = self.arrays[name]
        if rows.ndim != 1 or (len(rows) and (rows[0] < 0 or rows[-1] >= self._rows)):
            raise ValueError(f"{name} holds rows that do not exist")
        if (np.diff(rows) <= 0).any():
            raise ValueError(f"{name} is not in order")
        return rows

    def _check(self, name: str, array: NDArray[Any]) -> None:
        entry = self.manifest["files"][name]
        data, found = array.reshape(-1).view(np.uint8), 0
        for at in range(0, len(data), BLOCK):
            found = zlib.crc32(data[at : at + BLOCK].data, found)
        if found != entry["crc32"]:
            raise FormatError(
                f"{self.path} is damaged: {entry['file']} has changed; build the index again"
            )

    def __len__(self) -> int:
        """Number of rows, hidden ones included."""
        return self._rows

    def row_of(self, id: Any) -> int:
        """The newest row of one external id; UnknownError where it never was in the index."""
        row = int(self.ids.find([id])[0])
        if row < 0:
            raise UnknownError(f"the index {self.path} has no item {id!r}")
        return row

    def hourly(self, rows: NDArray[np.integer] | None = None) -> Hourly:
        """What the counters of some rows count, or those of all; a row is its position among them.
        Only where :attr:`counted` is not None."""
        counts, ends = self.arrays["counts.i32"], self.arrays["count_ends.i64"]
        lengths = np.diff(ends, prepend=0)
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows)
        lengths, starts = lengths[wanted], ends[wanted] - lengths[wanted]
        found = counts[ragged_index(starts, lengths)].astype(np.int64)
        return Hourly(np.repeat(np.arange(len(wanted)), lengths), *found.T)

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(array.nbytes for array in self.arrays.values())

    def expect_anchors(self, features: Sequence[tuple[int, int]] | None) -> None:
        """FormatError where the index lacks the anchored features of a model.

        Args:
            features: first row and number of rows of each in the content table; None for a model
                without anchored links.
        """
        held = None if self.anchors is None else self.anchors.features
        if features is not None and held != tuple(features):
            raise FormatError(
                f"{self.path} has index format {self.manifest['format']} and none of the anchored "
                f"values that this model scores with; build the index again with this version"
            )

    def expect_own(self) -> None:
        """SpecError where this is a shard, which never changes."""
        if self.shard is not None:
            raise SpecError(
                f"{self.path} is {self.shard} of an index and never changes: change that index, "
                "and split it again"
            )

    def expect_all(self) -> None:
        """SpecError where this is a shard: its items are a part of the catalogue."""
        if self.shard is not None:
            raise SpecError(
                f"{self.path} is {self.shard} of an index and has a part of the items only: give "
                "the index itself; servers of shards rank together (limerank serve --shards)"
            )

    def current(self) -> bool:
        """Whether the folder still contains the version that was opened. A server checks it from
        time to time, and opens the new version."""
        return bool(read_manifest(self.path)["checksum"] == self.manifest["checksum"])

    def verify(self) -> None:
        """Compare every file with its checksum; FormatError where one has changed."""
        for name, array in self.arrays.items():
            self._check(name, array)


def _check_counts(counts: NDArray[Any], ends: NDArray[Any]) -> None:
    """ValueError where counts do not fit together."""
    last = int(ends[-1]) if len(ends) else 0
    if counts.ndim != 2 or counts.shape[1] != 3 or ends.ndim != 1 or last != len(counts):
        raise ValueError(f"counts have the shape {counts.shape} and end at {last}")
