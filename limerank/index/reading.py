"""The index: the catalogue, encoded once, as a folder that is mapped into memory.

This module is the format and its reading; :mod:`limerank.index.building` builds and changes.

The folder (``n`` rows, one per item and more after changes; width ``d``; LIME models have
``C = H l`` link weights per row and ``g`` head terms). Files are bare little-endian arrays, row
after row; a name carries the version that began the file, as in ``vectors-1.f32``::

    manifest.json     what counts: version, model fingerprint, counts, scales; of each file its
                      name, shape and CRC-32; and a SHA-256 of all that
    vectors.f32       [n, d]   output of the item tower: histories and reference scoring read it
    weights.u8        [n, C]   link weights; LIME only
    terms.i8          [n, g]   the item's part of the head's first layer; LIME only
    ids.i64           [n]      external ids that are integers; or, where they are text,
    ids.utf8, id_ends.i64      all texts, one after another, and where each ends
    id_keys.i64, id_rows.i32      what ids are looked up by, ascending (the integers, hashes of
                                  texts), and the row of each key
    tail_keys.i64, tail_rows.i32  the same for ids added or updated lately; they win over id_keys
    hidden_rows.i32   [m]      rows that rankings never offer, ascending
    removed_rows.i32  [r]      of them, rows of items that were removed, ascending
                      and, where live items of an event store were put, of which store, and up to
                      which of its changes (``live``, see :class:`LiveItems`)
    building.json     only during a build: what is done; it goes on from there after a kill
    .lock             held by the process that writes

**Changes.** The manifest alone says which files count, and how many of their rows. The first four
files only ever grow; bytes beyond the manifest's count are ignored. The others are small, or seldom
written, and a change writes new ones under new names. So all that a change does happens behind the
readers' backs, until the manifest is replaced in one step, everything else being on disk by then. A
kill at any moment leaves the old version or the new one, and what it wrote in vain is overwritten
or swept away by the next change. A reader keeps the version that it opened: rows are never written
twice, and files that are removed last as long as somebody has mapped them.

- An item added is a new row. An item updated is a new row, too; its id is found there from then on,
  by histories as well, and the old row is hidden (*superseded*).
- An item removed has its row hidden. Its id is still found, so that histories which hold the item
  can be read; no ranking offers it. Added again, it gets a new row.
- Compacting writes all files anew without superseded rows. Row numbers change.

**Quantisation**, both affine per column, with scales that the manifest holds::

    weights[i, c] = weight_low[c] + weight_step[c] * code        code = 0 .. 255
    terms[i, g]   = term_middle[g] + term_step[g] * code         code = -127 .. 127

Link weights are shares of one, and mostly far below it, so a column spans the range that the
catalogue really uses. An affine form costs a scorer nothing: what is constant in a column goes to
the user's side, once per request. ``weight_mean``, the mean code of each column, and
``weight_spread``, how far an item's codes are from them, are for a scorer that rounds the user's
side as well: the mean of that error can be taken away, and the rest has a bound.

Scales are fixed when an index is built, from a sample where the catalogue is large. What lies
beyond a column's range gets the nearest code: ``clamped`` counts such codes, and ``weight_excess``
and ``term_excess`` say by how much they are off at most. ``weight_spread`` and both excesses are
upper bounds over all rows, those included that were added later.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.errors import FingerprintError, FormatError, UnknownError
from limerank.files import read_json
from limerank.index.lookup import IdTable, Level

FORMAT = 3

DTYPES = {
    "vectors.f32": "<f4",
    "weights.u8": "|u1",
    "terms.i8": "|i1",
    "ids.i64": "<i8",
    "ids.utf8": "|u1",
    "id_ends.i64": "<i8",
    "id_keys.i64": "<i8",
    "id_rows.i32": "<i4",
    "tail_keys.i64": "<i8",
    "tail_rows.i32": "<i4",
    "hidden_rows.i32": "<i4",
    "removed_rows.i32": "<i4",
}
PER_ROW = ("vectors.f32", "weights.u8", "terms.i8", "ids.i64", "id_ends.i64")
"""Files with one entry per row."""
SMALL = ("tail_keys.i64", "tail_rows.i32", "hidden_rows.i32", "removed_rows.i32")
"""Files whose checksums are compared whenever an index is opened."""
FILE_NAME = re.compile(r"(\w+)-([0-9]{1,18})\.(\w+)")
REOPEN = 100
"""A reader that is overtaken by changes tries so often to open a version that lasts."""
BLOCK = 1 << 24
"""Bytes of a file that a checksum reads at once."""
VERIFIED_BYTES = 32 << 20
"""An index of at most so many bytes is verified whenever it is opened to be ranked with."""
SKIPPED = 100
"""Live items that could not be read, of which the manifest says why."""

SCALED = (
    "weight_low",
    "weight_step",
    "weight_mean",
    "weight_excess",
    "term_middle",
    "term_step",
    "term_excess",
)


@dataclass(frozen=True)
class Scales:
    """What turns the codes of an index into numbers; see the module's text.

    Attributes:
        weight_low, weight_step, weight_mean, weight_excess: f32 [C].
        term_middle, term_step, term_excess: f32 [g].
        weight_spread: the largest sum over an item's weights of |code - weight_mean|.
    """

    weight_low: NDArray[np.float32]
    weight_step: NDArray[np.float32]
    weight_mean: NDArray[np.float32]
    weight_excess: NDArray[np.float32]
    term_middle: NDArray[np.float32]
    term_step: NDArray[np.float32]
    term_excess: NDArray[np.float32]
    weight_spread: float

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Scales:
        """From the manifest's lists of numbers."""
        columns = {name: np.asarray(values[name], dtype=np.float32) for name in SCALED}
        return cls(**columns, weight_spread=float(values["weight_spread"]))

    def json(self) -> dict[str, Any]:
        """As the manifest's lists of numbers."""
        lists = {name: getattr(self, name).tolist() for name in SCALED}
        return {**lists, "weight_spread": self.weight_spread}

    def check(self, weights: int, terms: int) -> None:
        """ValueError where there is not one finite number per column."""
        for name in SCALED:
            column = getattr(self, name)
            expected = weights if name.startswith("weight") else terms
            if column.shape != (expected,) or not np.isfinite(column).all():
                raise ValueError(f"{name} holds {column.shape} numbers of {expected}")
        if not np.isfinite(self.weight_spread):
            raise ValueError(f"weight_spread is {self.weight_spread}")

    def weights(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Link weights that codes [..., C] stand for."""
        return self.weight_low + self.weight_step * codes

    def terms(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Head terms that codes [..., g] stand for."""
        return self.term_middle + self.term_step * codes

    @property
    def weight_error(self) -> NDArray[np.float32]:
        """How far a link weight is from its code's at most, f32 [C]."""
        return self.weight_step * np.float32(0.5) + self.weight_excess

    @property
    def term_error(self) -> NDArray[np.float32]:
        """How far a head term is from its code's at most, f32 [g]."""
        return self.term_step * np.float32(0.5) + self.term_excess


@dataclass(frozen=True)
class LiveItems:
    """Up to where an index holds the live items of an event store. It is written in the same step
    as the items: what the index does not hold of them is known to whoever opens it.

    Attributes:
        store: identifies the store.
        change: the store's count of changes; all up to this one are in the index.
        skipped: id, as text -> why the model could not read the item, at most :data:`SKIPPED`.
    """

    store: str
    change: int
    skipped: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Any) -> LiveItems | None:
        """From the manifest."""
        if values is None:
            return None
        skipped = {str(id): str(why) for id, why in dict(values["skipped"]).items()}
        return cls(str(values["store"]), int(values["change"]), skipped)

    def json(self) -> dict[str, Any]:
        """As the manifest has it."""
        some = list(self.skipped.items())[:SKIPPED]
        return {"store": self.store, "change": self.change, "skipped": dict(some)}


class Index:
    """An index folder, opened: memory-mapped, in milliseconds whatever its size.

    Whatever happens to the folder later, it stays the version that was opened.

    Attributes:
        path: the folder.
        version: counts the changes of the folder.
        fingerprint: that of the run whose model built it.
        model: the model's name.
        items: how many items there are; removed ones do not count.
        ids: external ids by row. ``ids.find`` gives an item's newest row, also where the item was
            removed.
        vectors: f32 [n, d].
        weights: u8 [n, C]; None for models without links.
        terms: i8 [n, g]; None for models without links.
        scales: of weights and terms.
        hidden: rows that rankings never offer, i32, ascending: those of items that only histories
            hold, of items that were removed, and old rows of items that were updated.
        removed: rows of items that were removed, i32, ascending.
        live: up to where it holds the live items of an event store; None: of no store.
        superseded: how many old rows of updated or re-added items there are.
        base: what the rows were first written as. Versions with the same one agree in every row
            that both have; they differ in rows added, in what is found and in what is hidden.

    Raises:
        FormatError: it is no index, of another format, or a file is missing, cut off or, of the
            small ones, changed.
    """

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
            path: the folder.
            fingerprint: of the run that is going to use it.
            verify: read everything and compare all checksums; None: where that takes no time, for
                an index of at most :data:`VERIFIED_BYTES`. Those of the manifest and of the small
                files, and the sizes of all files, are always compared.

        Raises:
            FingerprintError: another model built it.
            FormatError: it is no index, of another format, or a file is missing, cut off or
                changed.
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
            self.base = f"{manifest['files']['vectors.f32']['file']} {int(manifest['built']):08x}"
            arrays = {name: self._map(name, entry) for name, entry in manifest["files"].items()}
            for name in SMALL:
                self._check(name, arrays[name])
            self._arrays = arrays
            self.vectors: NDArray[np.float32] = arrays["vectors.f32"]
            text = "ids.utf8" in arrays
            self.ids = IdTable(
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
            self.scales: Scales | None = None
            if self.weights is not None and self.terms is not None:
                self.scales = Scales.of(manifest["scales"])
                self.scales.check(self.weights.shape[1], self.terms.shape[1])
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
                    f"{self.path} is damaged: {file} is no regular file; build the index again"
                )
            with open(self.path / file, "rb") as opened:
                held = os.fstat(opened.fileno()).st_size
                if held >= size > 0:
                    # As a plain array: numpy's own class takes microseconds at each access.
                    return np.memmap(opened, dtype, "r", shape=shape).view(np.ndarray)
        except FileNotFoundError:
            raise FormatError(
                f"{self.path} is damaged: it holds no {file}; build the index again"
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
        rows = self._arrays[name]
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
        """How many rows there are, hidden ones included."""
        return self._rows

    def row_of(self, id: Any) -> int:
        """The newest row of one external id; UnknownError where the index never held it."""
        row = int(self.ids.find([id])[0])
        if row < 0:
            raise UnknownError(f"the index {self.path} holds no item {id!r}")
        return row

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(array.nbytes for array in self._arrays.values())

    def current(self) -> bool:
        """Whether the folder still holds the version that was opened; a server asks now and then,
        and opens the new one."""
        return bool(read_manifest(self.path)["checksum"] == self.manifest["checksum"])

    def verify(self) -> None:
        """Compare every file with its checksum; FormatError where one has changed."""
        for name, array in self._arrays.items():
            self._check(name, array)


def versioned(name: str, file: str) -> int | None:
    """The version in the name of a file that holds the array ``name``; None for other names."""
    found = FILE_NAME.fullmatch(file)
    if found is None or f"{found[1]}.{found[3]}" != name:
        return None
    return int(found[2])


def manifest_checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all that a manifest says, its own ``checksum`` left out."""
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index folder.

    Raises:
        FormatError: there is none, it is of another format, or damaged.
    """
    manifest = read_json(path / "manifest.json", "an index")
    if manifest.get("format") != FORMAT:
        raise FormatError(
            f"{path} has index format {manifest.get('format')!r}, expected {FORMAT}; "
            "build it again with this version"
        )
    if manifest.get("checksum") != manifest_checksum(manifest):
        raise FormatError(
            f"{path}/manifest.json is damaged: its checksum is wrong; build the index again"
        )
    return manifest
