"""Compacting a live index: rows that neither rankings nor histories read are dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.index.anchors import compacted
from limerank.index.changes import IndexPath
from limerank.index.gathering import COPIED
from limerank.index.lookup import Level, level_of
from limerank.index.reading import Index
from limerank.index.results import Change
from limerank.index.writing import CHUNK, Files, commit, next_version, sweep, write_lookup, writing
from limerank.progress import Bar
from limerank.storage.arguments import CHANGED, with_uris


@with_uris(index=CHANGED)
def compact_index(index: IndexPath, *, forget: bool = False, quiet: bool = True) -> Change:
    """Rewrite a live index without the old rows of updated items. Row numbers change.

    Args:
        index: the folder, or an index opened from it.
        forget: drop removed items as well. Histories in the dataset that contain them are then
            encoded from the dataset's features; in histories that are passed they are an error.
        quiet: show no progress.

    Raises:
        FormatError: the folder is not an index, is damaged, or another process is changing it.
    """
    path = index.path if isinstance(index, Index) else Path(index)
    Index(path).expect_own()
    with writing(path):
        old = Index.open(path, verify=True)  # damaged bytes must not get new checksums
        tail, base = (level.rows for level in old.ids.levels)
        stale = old.ids.find(old.ids[tail], first=1)
        newest = np.union1d(np.setdiff1d(base, stale), tail)
        removed = np.zeros(0, np.int32) if forget else old.removed
        retained = np.setdiff1d(newest, old.removed) if forget else newest
        version, manifest = next_version(path, old.version), dict(old.manifest)
        arrays = {name: old.arrays.get(name) for name in COPIED}
        numbers, tables = (None, {}) if old.anchors is None else compacted(old.anchors, retained)
        with (
            Files(path, version) as files,
            Bar("compacting", total=len(retained), unit="items", quiet=quiet) as bar,
        ):
            for at in range(0, max(len(retained), 1), CHUNK):
                rows = retained[at : at + CHUNK]
                for name, array in arrays.items():
                    if array is not None:
                        files.append(name, array[rows])
                if old.anchors is not None and numbers is not None:
                    files.append("anchor_codes.i32", numbers[old.anchors.codes[rows]])
                files.append_ids(np.asarray(old.ids[rows]))
                if old.counted is not None:
                    files.append_counts(old.hourly(rows), len(rows))
                if old.display is not None:
                    files.append_display(old.display.texts(rows))
                bar.advance(len(rows))
            for name, table in tables.items():
                files.write(name, table)
            none = np.zeros(0, np.int64)
            level = level_of(np.asarray(old.ids[retained]))
            write_lookup(files, level, Level(none, none.astype(np.int32)))
            files.write("hidden_rows.i32", _positions(retained, old.hidden))
            files.write("removed_rows.i32", _positions(retained, removed))
            manifest["files"] = files.entries()
        manifest |= {"version": version, "rows": len(retained), "superseded": 0}
        manifest["built"] = manifest["files"]["vectors.f32"]["crc32"]
        manifest["items"] = len(retained) - len(removed)
        manifest = commit(path, manifest)
        sweep(path, manifest)
    return Change(version, manifest["items"], len(retained), dropped=len(old) - len(retained))


def _positions(retained: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of rows among the retained ones, ascending; other rows are left out."""
    return np.flatnonzero(np.isin(retained, rows))
