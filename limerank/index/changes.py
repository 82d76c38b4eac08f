"""Changing a live index in place: adding, updating and removing items.

One process writes at a time; any number read meanwhile, each the version that it opened.
:mod:`limerank.index.format` explains how.

>>> add_items("runs/mine", "index/mine", {"item_id": 900, "category": "books", "price": 12.5})
>>> remove_items("index/mine", [17])
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from limerank.data.counters import ItemCounters
from limerank.errors import DataError, FormatError, LimerankError, SpecError, UnknownError
from limerank.index.format import LiveItems
from limerank.index.items import ItemSource, SourceItems, of_source
from limerank.index.lookup import Level, level_of, merged
from limerank.index.reading import Index
from limerank.index.results import Change, advice_of
from limerank.index.writing import (
    CHUNK,
    Encoder,
    Files,
    chunks,
    commit,
    next_version,
    sets_of,
    sweep,
    write_lookup,
    writing,
)
from limerank.progress import Bar
from limerank.runs.model import Trained, load_trained
from limerank.storage.arguments import CHANGED, READ, with_uris

TAIL = 1 << 16
"""Late ids (added or updated since the last sorting) have a lookup level of their own up to this
number; with more, all ids are sorted together."""
UNREADABLE = (
    ArithmeticError,
    LimerankError,
    LookupError,
    TypeError,
    ValueError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)
"""Errors that reading an item may raise, with any contents of its columns."""


IndexPath = Index | str | os.PathLike[str]


def add_items(
    run: Trained | str | os.PathLike[str],
    index: IndexPath,
    items: ItemSource,
    *,
    quiet: bool = True,
) -> Change:
    """Add new items to a live index; see :func:`change_items`.

    Raises:
        DataError: one of them is in the index.
    """
    return change_items(run, index, add=items, quiet=quiet)


def update_items(
    run: Trained | str | os.PathLike[str],
    index: IndexPath,
    items: ItemSource,
    *,
    quiet: bool = True,
) -> Change:
    """Encode items of a live index again, as they are now; see :func:`change_items`.

    Raises:
        UnknownError: one of them is not in the index.
    """
    return change_items(run, index, update=items, quiet=quiet)


def put_items(
    run: Trained | str | os.PathLike[str],
    index: IndexPath,
    items: ItemSource,
    *,
    quiet: bool = True,
) -> Change:
    """Add items to a live index, or update those that are in it; see :func:`change_items`."""
    return change_items(run, index, put=items, quiet=quiet)


def remove_items(index: IndexPath, ids: Iterable[Any]) -> Change:
    """Remove items from a live index; see :func:`change_items`.

    Raises:
        UnknownError: one of them is not in the index.
    """
    return change_items(None, index, remove=ids)


@with_uris(run=READ, index=CHANGED, add=READ, update=READ, put=READ)
def change_items(
    run: Trained | str | os.PathLike[str] | None,
    index: IndexPath,
    *,
    add: ItemSource | None = None,
    update: ItemSource | None = None,
    put: ItemSource | None = None,
    remove: Iterable[Any] | None = None,
    quiet: bool = True,
) -> Change:
    """Change a live index in one step: completely, or not at all where something is wrong.

    Processes that have opened the index continue to read the version that they opened; processes
    that open it afterwards read the new one. The change is on disk when the call returns.

    Args:
        run: of the model that built the index; None where items are only removed.
        index: the folder, or an index opened from it, which stays the version that it is.
        add: new items: a table in the layout of the run's item table (CSV, TSV or Parquet), a
            mapping of that table's columns to values, or several mappings.
        update: items of the index, with all their columns as they are now.
        put: items to add or, where they are in the index, to update.
        remove: external ids. Histories that contain the item are read as before.
        quiet: show no progress.

    Raises:
        DataError: an id is given twice, an id to add is in the index, or a table cannot be used.
        UnknownError: an id to update or remove is not in the index.
        FingerprintError: another model built the index.
        FormatError: the folder is not an index, is damaged or read-only, or another process is
            changing it.
        StoreError: its disk is full, or fails; the index is unchanged.
    """
    path = index.path if isinstance(index, Index) else Path(index)
    if run is not None and not isinstance(run, Trained):
        run = load_trained(run)
    given = {"add": add, "update": update, "put": put}
    sources = {name: source for name, source in given.items() if source is not None}
    if sources and run is None:
        raise SpecError(f"to {' and '.join(sources)} items, give the run that built {path}")
    # before any file is made
    Index.open(path, None if run is None else run.fingerprint).expect_own()
    parts = {name: of_source(run, source) for name, source in sources.items() if run is not None}
    with writing(path):
        return _changed(path, run, parts, remove, None, quiet)


def put_live_items(
    run: Trained,
    path: Path,
    put: Sequence[Mapping[str, Any]],
    remove: Sequence[Any],
    live: LiveItems,
) -> Change:
    """Bring an index up to date with the live items of a store, in one step: the items, and up to
    where it holds them. The caller has the right to write
    (:func:`limerank.index.writing.writing`); all else as for :func:`change_items`."""
    parts = {"put": of_source(run, put)} if put else {}
    return _changed(path, run, parts, remove, live, True)


def _changed(
    path: Path,
    run: Trained | None,
    parts: Mapping[str, SourceItems],
    remove: Iterable[Any] | None,
    live: LiveItems | None,
    quiet: bool,
) -> Change:
    old = Index.open(path, None if run is None else run.fingerprint)
    ids, replaced = _checked(old, parts)
    removable = _removable(old, remove, ids)
    count, offered = len(ids), [part.candidate[part.rows] for part in parts.values()]
    manifest = dict(old.manifest)
    if live is not None:
        manifest["live"] = live.to_dict()
    if not count and not len(removable):
        if live is not None:  # the same version: no item is another
            commit(path, manifest)
        return Change(old.version, old.items, len(old), advice=advice_of(old.manifest, 0.0))
    if len(old) + count > np.iinfo(np.int32).max:
        raise DataError(f"{path} has {len(old):,} rows, the limit is 2,147,483,647")
    version = next_version(path, old.version)
    encoder = None
    if run is not None:
        parts = {name: _with_counters(part, run, old) for name, part in parts.items()}
        links = run.ranker.anchors
        old.expect_anchors(None if links is None else links.features)
        encoder = Encoder(run.ranker, old.scales, sets_of(run.ranker, path, manifest["files"]))
    with (
        torch.inference_mode(),
        Files(path, version, manifest["files"]) as files,
        Bar("encoding", total=count, unit="items", quiet=quiet or not count) as bar,
    ):
        for items in chunks(list(parts.values())):
            assert encoder is not None
            for name, rows in encoder(items).items():
                files.append(name, rows)
            bar.advance(len(items.ids))
        if count:
            files.append_ids(ids)
            if old.counted is not None:
                for part in parts.values():
                    assert part.hourly is not None  # _with_counters
                    files.append_counts(part.hourly.take(part.rows), len(part))
            if old.display is not None:
                columns = old.display.columns
                shown = [text for part in parts.values() for text in part.displayed(columns)]
                files.append_display(shown)
            write_lookup(files, *_grown(old, ids, replaced))
        own = np.flatnonzero(~np.concatenate(offered)) + len(old) if offered else removable
        hidden = np.unique(np.concatenate([old.hidden, replaced, removable, own]))
        files.write("hidden_rows.i32", hidden)
        removed = np.union1d(np.setdiff1d(old.removed, replaced), removable)
        if not np.array_equal(removed, old.removed):
            files.write("removed_rows.i32", removed)
        manifest["files"] = files.entries()
    total, superseded = len(old) + count, old.superseded + len(replaced)
    manifest |= {"version": version, "rows": total, "superseded": superseded}
    manifest["items"] = total - superseded - len(removed)
    share = 0.0
    if encoder is not None and encoder.scales is not None:
        manifest["scales"] = encoder.scales.to_dict()
        manifest["clamped"] += encoder.clamped
        share = encoder.clamped / max(encoder.codes, 1)
    manifest = commit(path, manifest)
    sweep(path, manifest)
    updated = len(np.setdiff1d(replaced, old.removed))
    return Change(
        version,
        manifest["items"],
        total,
        added=count - updated,
        updated=updated,
        removed=len(removable),
        clamped=share,
        advice=advice_of(manifest, share),
        tables=tuple(part.coverage for part in parts.values() if part.coverage is not None),
    )


def _with_counters(part: SourceItems, run: Trained, old: Index) -> SourceItems:
    """Items with the counters that the index has of them; of new ones, with those of the model, or
    none where the index has what is counted."""
    if run.ranker.counters is None or old.counters is None:
        return part
    rows = old.ids.find(part.ids)
    held = np.flatnonzero(rows >= 0)
    if old.counted is not None:
        of = old.counted
        counters = ItemCounters(old.hourly(rows[held]), of.mean, of.hour, after=of.after)
        positions = np.full(len(rows), len(held))
        positions[held] = np.arange(len(held))
        return part.with_counters(counters, positions)
    counted = run.ranker.counters.values.cpu().numpy()[part.codes]
    counted[held] = old.counters[rows[held]]
    return replace(part, counted=counted)


def unreadable_items(run: Trained, items: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Position -> reason, for the items that a run cannot encode: one of them must not stop the
    others."""
    found: dict[int, str] = {}
    todo = [np.arange(len(items))] if len(items) else []
    while todo:
        positions = todo.pop()
        try:
            part = of_source(run, [items[position] for position in positions.tolist()])
            with torch.inference_mode():
                vectors = [run.ranker.item_vectors(some).float() for some in part.chunks(CHUNK)]
            finite = np.concatenate([torch.isfinite(some).all(1).cpu().numpy() for some in vectors])
            for position in positions[~finite].tolist():
                found[position] = "its columns encode to NaN: look for extreme numbers"
        except FormatError:  # of the run, not of an item
            raise
        except UNREADABLE as error:
            if len(positions) == 1:
                found[int(positions[0])] = f"{error!s:.300}"
            else:
                todo += np.array_split(positions, 2)
    return dict(sorted(found.items()))


def _checked(
    old: Index, parts: Mapping[str, SourceItems]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ids of all items that are encoded, and the rows that theirs replace."""
    of_parts = [part.wanted for part in parts.values()]
    ids = np.concatenate(of_parts) if of_parts else np.zeros(0, np.int64)
    level_of(ids)  # no id twice
    replaced = []
    for name, part in parts.items():
        rows = old.ids.find(part.wanted)
        held = (rows >= 0) & ~np.isin(rows, old.removed)
        if name == "add" and held.any():
            raise DataError(
                f"{held.sum()} of {len(rows)} items to add are in the index {old.path} already: "
                f"{_some(part.wanted[held])}; update them, or put all of them"
            )
        if name == "update" and not held.all():
            raise UnknownError(
                f"{(~held).sum()} of {len(rows)} items to update are not in the index {old.path}: "
                f"{_some(part.wanted[~held])}; add them, or put all of them"
            )
        replaced.append(rows[rows >= 0])
    return ids, np.concatenate([np.zeros(0, np.int64), *replaced])


def _removable(old: Index, remove: Iterable[Any] | None, ids: NDArray[Any]) -> NDArray[np.int64]:
    """Rows of ids to remove."""
    given = [] if remove is None else [remove] if isinstance(remove, (str, int)) else list(remove)
    rows = old.ids.find(given)
    held = (rows >= 0) & ~np.isin(rows, old.removed)
    if not held.all():
        unknown = [given[position] for position in np.flatnonzero(~held)]
        raise UnknownError(
            f"{len(unknown)} of {len(given)} items to remove are not in the index {old.path}: "
            f"{_some(unknown)}"
        )
    rows = np.unique(rows)
    both = np.intersect1d(rows, old.ids.find(ids))
    if len(both):
        raise DataError(
            f"{len(both)} items are to be removed and encoded in one step: "
            f"{_some(old.ids[both])}; to encode an item again, update it"
        )
    return rows


def _some(ids: Any) -> str:
    shown = [repr(id.item() if isinstance(id, np.generic) else id) for id in ids[:10]]
    return ", ".join(shown) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def _grown(
    old: Index, ids: NDArray[Any], replaced: NDArray[np.int64]
) -> tuple[Level | None, Level]:
    """The lookup levels of an index after these ids get the next rows: the large level where it
    changes (else None), and the level of late ids."""
    tail, base = old.ids.levels
    tail = merged(tail, level_of(ids, len(old)), replaced)
    if len(tail.keys) <= TAIL:
        return None, tail
    late = np.concatenate([np.asarray(old.ids[old.ids.levels[0].rows]), ids])
    stale = old.ids.find(late, first=1)
    none = np.zeros(0, np.int64)
    return merged(base, tail, stale[stale >= 0]), Level(none, none.astype(np.int32))
