"""The format of an index: the catalogue, encoded once, as a folder that is mapped into memory.

The folder (``n`` rows, one per item and more after changes; width ``d``; LIME models have
``C = H l`` link weights per row and ``g`` head terms, and with profiles ``S`` numbers of a key;
models with anchored links have ``F`` anchored features). Files are bare little-endian arrays, row
after row; a name carries the version that began the file, as in ``vectors-1.f32``::

    manifest.json     version, model fingerprint, counts, scales; name, shape and CRC-32 of each
                      file; and a SHA-256 of all of these
    vectors.f32       [n, d]   output of the item tower, for histories and reference scoring
    weights.u8        [n, C + S]   link weights, then keys; LIME only
    terms.i8          [n, g]   the item's part of the head's first layer; LIME only
    counters.f32      [n, N]   counters of the items (limerank.data.counters), which the terms
                               contain; models with counters only
    counts.i32, count_ends.i64      what the counters count: hour since 1970, impressions and
                               positive ones, [c, 3], row after row, and the end of each; where the
                               manifest has ``counted``
    anchor_codes.i32  [n, F]   per anchored feature, the number of the item's set of values; 0 where
                               none is known; models with anchored links only, as are
    anchor_tokens.i32, anchor_shares.f32, anchor_ends.i64      of all sets, one after another: rows
                               of the content table, the share of each, and the end of each set;
                               the first set is empty
    display.utf8, display_ends.i64      what is shown of each row, a JSON array of texts, one after
                               another, and the end of each; where the manifest's ``display``
                               names the columns of the item table that are shown
    ids.i64           [n]      external ids that are integers; or, where they are text,
    ids.utf8, id_ends.i64      all texts, one after another, and the end of each
    id_keys.i64, id_rows.i32      keys of the lookup of ids, ascending (the integers, or hashes of
                                  the texts), and the row of each key
    tail_keys.i64, tail_rows.i32  the same for ids added or updated lately; they precede id_keys
    hidden_rows.i32   [m]      rows that rankings never contain, ascending
    removed_rows.i32  [r]      of these, the rows of removed items, ascending
    building.json     only during a build: its progress, from which a killed build resumes
    .lock             locked by the process that writes

The manifest's ``anchors`` has the first row and number of rows of each anchored feature in the
content table, and the size of that table; null without anchored links. ``keys`` is S.

``counted`` (see :class:`Counted`) says which impressions the counters contain. It is null where the
index does not have what they count, as that of a table of items alone.

Format 6 has no counts, format 5 no counters either, format 4 neither keys nor columns that are
shown, and format 3 no anchored features. An index of these formats stays in it when it changes.

Where live items of an event store were put into the index, the manifest also names the store, and
the last of its changes that is included (``live``, see :class:`LiveItems`).

The manifest of a shard has ``shard``: which range of the rows of another index it has (see
:class:`Shard`). It never changes.

**Changes.** The manifest alone decides which files belong to the index, and how many of their rows.
The files with one entry per row only grow, as do the texts and tables that these refer to; bytes
beyond the manifest's count are ignored. The other files are small or seldom written, and a change
writes new ones under new names. A change is therefore
invisible to readers until the manifest is replaced in one step, after everything else is on disk.
A process killed at any moment leaves the old version or the new one; the next change overwrites or
removes its uncommitted data. A reader continues to read the version that it opened: rows are never
overwritten, and a removed file lasts as long as a process has it mapped.

- An added item is a new row. An updated item is a new row too: its id is found there from then on,
  for histories as well, and its old row is hidden (*superseded*).
- The row of a removed item is hidden. Its id is still found, so that histories which contain the
  item can be encoded; no ranking contains it. Added again, the item gets a new row.
- Compacting rewrites all files without superseded rows. Row numbers change.
- Counting again (:mod:`limerank.index.counting`) writes new counters, counts and terms, of the same
  rows.

**Quantisation**, both affine per column, with scales that the manifest holds::

    weights[i, c] = weight_low[c] + weight_step[c] * code        code = 0 .. 255
    terms[i, g]   = term_middle[g] + term_step[g] * code         code = -127 .. 127

The weights of an item's links sum to one, and most are far below it, so each column covers the
range that the catalogue uses. The affine form costs a scorer nothing: the constant of a column is
added on the user's side, once per request. Keys are stored as weights are. ``weight_mean``, the
mean code of each column, and ``weight_spread``, the largest distance of an item's codes from it
(keys aside), are for a scorer that rounds the user's side as well: the mean of that error can be
subtracted, and the rest is bounded.

Scales are fixed when an index is built, from a sample where the catalogue is large. A value out of
the range of its column gets the nearest code: ``clamped`` counts such codes, and ``weight_excess``
and ``term_excess`` are their largest errors. ``weight_spread`` and both excesses are upper bounds
over all rows, including rows that were added later.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.errors import FormatError
from limerank.files import read_json

FORMAT = 7
OPENED = (3, 4, 5, 6, FORMAT)
"""Formats that this version opens and changes."""

DTYPES = {
    "vectors.f32": "<f4",
    "weights.u8": "|u1",
    "terms.i8": "|i1",
    "counters.f32": "<f4",
    "counts.i32": "<i4",
    "count_ends.i64": "<i8",
    "anchor_codes.i32": "<i4",
    "anchor_tokens.i32": "<i4",
    "anchor_shares.f32": "<f4",
    "anchor_ends.i64": "<i8",
    "display.utf8": "|u1",
    "display_ends.i64": "<i8",
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
PER_ROW = (
    "vectors.f32",
    "weights.u8",
    "terms.i8",
    "counters.f32",
    "count_ends.i64",
    "anchor_codes.i32",
    "display_ends.i64",
    "ids.i64",
    "id_ends.i64",
)
"""Files with one entry per row."""
ANCHOR_TABLES = ("anchor_tokens.i32", "anchor_shares.f32", "anchor_ends.i64")
"""The sets of anchored values."""
SMALL = ("tail_keys.i64", "tail_rows.i32", "hidden_rows.i32", "removed_rows.i32")
"""Files whose checksums are compared whenever an index is opened."""
FILE_NAME = re.compile(r"(\w+)-([0-9]{1,18})\.(\w+)")
SKIPPED = 100
"""The manifest contains the reasons of at most so many live items that could not be read."""

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
    """The numbers that turn the codes of an index into weights and terms; see the module's text.

    Attributes:
        weight_low, weight_step, weight_mean, weight_excess: f32 [C + S].
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

    def to_dict(self) -> dict[str, Any]:
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
        """Link weights and keys that codes [..., C + S] stand for."""
        return self.weight_low + self.weight_step * codes

    def terms(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Head terms that codes [..., g] stand for."""
        return self.term_middle + self.term_step * codes

    @property
    def weight_error(self) -> NDArray[np.float32]:
        """Largest error of a link weight or a number of a key, f32 [C + S]."""
        return self.weight_step * np.float32(0.5) + self.weight_excess

    @property
    def term_error(self) -> NDArray[np.float32]:
        """Largest error of a head term, f32 [g]."""
        return self.term_step * np.float32(0.5) + self.term_excess


@dataclass(frozen=True)
class LiveItems:
    """The live items of an event store that an index contains. It is written in the same step as
    the items, so that a process that opens the index knows which ones are missing.

    Attributes:
        store: id of the store.
        change: number of the last change of the store that is in the index.
        skipped: id as text -> reason, of items that the model could not encode; at most
            :data:`SKIPPED`.
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

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        some = list(self.skipped.items())[:SKIPPED]
        return {"store": self.store, "change": self.change, "skipped": dict(some)}


@dataclass(frozen=True)
class Counted:
    """Which impressions the counters of an index contain.

    Attributes:
        after: those up to this time, in milliseconds since 1970; a log seldom ends with an hour.
        hour: since 1970; the counters are those of its beginning.
        mean: of the label.
        live: whether a server has counted some of them.
    """

    after: int
    hour: int
    mean: float
    live: bool = False

    @classmethod
    def from_manifest(cls, values: Any) -> Counted | None:
        """From the manifest; None where the index has no counts."""
        if values is None:
            return None
        after, hour = int(values["after"]), int(values["hour"])
        return cls(after, hour, float(values["mean"]), bool(values["live"]))


@dataclass(frozen=True)
class Shard:
    """Which range of the rows of an index is in a shard of it; see :mod:`limerank.index.sharding`.

    Attributes:
        number: of the shard, from 1.
        of: number of shards.
        first: row of the index that is row 0 of the shard.
        rows: how many rows of the index it has. Row ``rows`` of the shard, where there is one, is
            hidden and of another shard.
        total: rows of the index.
        base: that of the index.
    """

    number: int
    of: int
    first: int
    rows: int
    total: int
    base: str

    @classmethod
    def from_manifest(cls, values: Any) -> Shard | None:
        """From the manifest; None where the index is no shard."""
        if values is None:
            return None
        names = ("number", "of", "first", "rows", "total")
        return cls(**{name: int(values[name]) for name in names}, base=str(values["base"]))

    def __str__(self) -> str:
        return f"shard {self.number} of {self.of}"


def versioned(name: str, file: str) -> int | None:
    """The version in the name of a file that holds the array ``name``; None for other names."""
    found = FILE_NAME.fullmatch(file)
    if found is None or f"{found[1]}.{found[3]}" != name:
        return None
    return int(found[2])


def manifest_checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the contents of a manifest without its ``checksum``."""
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index folder.

    Raises:
        FormatError: it is missing or damaged, or has another format.
    """
    manifest = read_json(path / "manifest.json", "an index")
    if manifest.get("format") not in OPENED:
        raise FormatError(
            f"{path} has index format {manifest.get('format')!r}, expected {FORMAT}; "
            "build it again with this version"
        )
    if manifest.get("checksum") != manifest_checksum(manifest):
        raise FormatError(
            f"{path}/manifest.json is damaged: its checksum is wrong; build the index again"
        )
    return manifest
