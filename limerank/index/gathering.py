"""An index of rows of other indexes: the parts of a build, joined, or a range of one index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.index.anchors import Keys, SetEncoder
from limerank.index.format import ANCHOR_TABLES, Scales
from limerank.index.lookup import Level, level_of
from limerank.index.reading import Index
from limerank.index.writing import Files, begin_sets, next_version, write_lookup
from limerank.progress import Bar

BLOCK = 1 << 16
"""Rows that are copied at once."""
COPIED = ("vectors.f32", "weights.u8", "terms.i8", "counters.f32")
"""Arrays whose rows are copied as they are."""


@dataclass(frozen=True)
class Piece:
    """A range of the rows of an index, all of which may be hidden."""

    index: Index
    first: int
    end: int
    hidden: bool = False

    def __len__(self) -> int:
        return self.end - self.first

    def array(self, name: str) -> NDArray[Any] | None:
        """The rows of an array of the index; None where it has none."""
        found: NDArray[Any] | None = self.index.arrays.get(name)
        return None if found is None else found[self.first : self.end]

    def rows(self, ascending: NDArray[np.int32]) -> NDArray[np.int64]:
        """Those of some rows of the index that are in the range, numbered from its start."""
        low, high = np.searchsorted(ascending, [self.first, self.end])
        return ascending[low:high].astype(np.int64) - self.first

    def hidden_rows(self) -> NDArray[np.int64]:
        """The rows of the range that rankings never contain, numbered from its start."""
        return np.arange(len(self)) if self.hidden else self.rows(self.index.hidden)


def gather(folder: Path, pieces: Sequence[Piece], what: str, quiet: bool) -> dict[str, Any]:
    """Write the files of an index that has all rows of some pieces in order, and return its
    manifest. The files are those that one build of the same items in the same order writes.

    Args:
        folder: to write into; the caller commits.
        pieces: one or more, of one model and with the same scales.
        what: shown with the progress.

    Raises:
        DataError: an id is given twice.
    """
    first = pieces[0].index
    version, total = next_version(folder), sum(map(len, pieces))
    sets = None
    with Files(folder, version) as files:
        _begin(files, pieces)
        if first.anchors is not None:
            begin_sets(files, first.anchors.features)
            none = np.zeros(0, np.int64)
            sets = SetEncoder(first.anchors.features, none, none, np.zeros(1, np.int64))
        with Bar(what, total=total, unit="items", quiet=quiet) as bar:
            for piece in pieces:
                numbers = None if sets is None else _joined_sets(files, sets, piece.index)
                for at in range(0, len(piece), BLOCK):
                    for name in COPIED:
                        rows = piece.array(name)
                        if rows is not None:
                            files.append(name, rows[at : at + BLOCK])
                    codes = piece.array("anchor_codes.i32")
                    if numbers is not None and codes is not None:
                        files.append("anchor_codes.i32", numbers[codes[at : at + BLOCK]])
                    bar.advance(min(BLOCK, len(piece) - at))
        entries = files.entries()
    manifest = first.manifest
    scales = _scales([piece.index.scales for piece in pieces])
    removed = sum(len(piece.rows(piece.index.removed)) for piece in pieces)
    return {
        "version": version,
        "fingerprint": manifest["fingerprint"],
        "model": manifest["model"],
        "rows": total,
        "items": total - removed,
        "superseded": 0,
        "clamped": sum(piece.index.manifest["clamped"] for piece in pieces),
        "scales": None if scales is None else scales.to_dict(),
        "anchors": manifest.get("anchors"),
        "keys": manifest.get("keys", 0),
        "counted": manifest.get("counted"),
        **({"display": manifest["display"]} if "display" in manifest else {}),
        "built": entries["vectors.f32"]["crc32"],
        "files": entries,
    }


def _begin(files: Files, pieces: Sequence[Piece]) -> None:
    """Ids, their lookup, what is shown, and the shape of all else, in the order in which a build
    writes them."""
    values = np.concatenate([piece.index.ids[piece.first : piece.end] for piece in pieces])
    starts = np.cumsum([0, *map(len, pieces)])
    pairs = list(zip(pieces, starts[:-1], strict=True))
    hidden = np.concatenate([piece.hidden_rows() + at for piece, at in pairs])
    removed = np.concatenate([piece.rows(piece.index.removed) + at for piece, at in pairs])
    none = np.zeros(0, np.int64)
    files.append_ids(values)
    write_lookup(files, level_of(values), Level(none, none.astype(np.int32)))
    files.write("hidden_rows.i32", hidden)
    files.write("removed_rows.i32", removed)
    if pieces[0].index.display is not None:
        files.append_display(
            [
                text
                for piece in pieces
                if piece.index.display is not None
                for text in piece.index.display.texts(range(piece.first, piece.end))
            ]
        )
    for name in ("weights.u8", "terms.i8", "vectors.f32", "counters.f32"):
        rows = pieces[0].array(name)
        if rows is not None:
            files.append(name, rows[:0])
    if pieces[0].index.counted is not None:
        for piece in pieces:
            own = np.arange(piece.first, piece.end)
            files.append_counts(piece.index.hourly(own), len(piece))


def _joined_sets(files: Files, sets: SetEncoder, index: Index) -> NDArray[np.int32]:
    """Add the sets of an index that are new; the number of each of its sets, i32 [S]."""
    anchors = index.anchors
    assert anchors is not None
    own = np.arange(1, anchors.sets)
    tokens, shares, offsets = Keys(*anchors.of_sets(own))
    rows = sets(tokens, shares, offsets)
    for name in ANCHOR_TABLES:
        files.append(name, rows[name])
    numbers = np.zeros(anchors.sets, np.int32)
    numbers[1:] = rows["anchor_codes.i32"].sum(1)  # a set is of one feature
    return numbers


def _scales(of: Sequence[Scales | None]) -> Scales | None:
    """The scales of all rows: those of each, with the largest error of any."""
    held = [one for one in of if one is not None]
    if not held:
        return None
    return replace(
        held[0],
        weight_spread=max(one.weight_spread for one in held),
        weight_excess=np.maximum.reduce([one.weight_excess for one in held]),
        term_excess=np.maximum.reduce([one.term_excess for one in held]),
    )
