"""Building an index, a shard at a time. Its format: :mod:`limerank.index.format`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from limerank.data.counters import COUNTERS
from limerank.data.dataset import Dataset
from limerank.errors import DataError, FormatError, SpecError
from limerank.files import check_output, make_folder, read_json, sync_directory, write_json
from limerank.index.display import displayed_columns
from limerank.index.format import DTYPES, FORMAT, Counted, Scales
from limerank.index.items import ItemSource, SourceItems, of_source
from limerank.index.lookup import Level, level_of
from limerank.index.results import IndexBuild
from limerank.index.scaling import sample_of, scales_of
from limerank.index.writing import (
    Encoder,
    Files,
    anchors_entry,
    begin_sets,
    chunks,
    columns_of,
    commit,
    next_version,
    sets_of,
    sweep,
    write_lookup,
    writing,
)
from limerank.progress import Bar
from limerank.runs.folder import Run, load_run
from limerank.storage.arguments import NEW_FOLDER, READ, with_uris

SHARD = 1 << 18
"""A build saves its progress after so many items."""


@with_uris(run=READ, out=NEW_FOLDER, data=READ, items=READ)
def build_index(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: Dataset | str | os.PathLike[str] | None = None,
    items: ItemSource | None = None,
    merge: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
) -> IndexBuild:
    """Encode a catalogue into the folder ``out``.

    A new index is built in a folder beside it, ``.NAME.partial``, and appears when it is complete.
    Called again with the same arguments, a killed build resumes. An index that is replaced stays
    in use until the new one replaces it in one step.

    Args:
        run: whose model encodes; its fingerprint goes into the index.
        data: the dataset whose items are encoded, in its order, including items that training has
            not seen; the dataset that the run was trained on when not given. Counters are those of
            the end of its log; items of a table alone have those of the training's end, unless a
            dataset is given.
        items: a table of items instead, in the layout of the run's item table (CSV, TSV or
            Parquet), or mappings of its columns to values: a newer catalogue, or new items alone.
            Items that training has seen are encoded with what it learned of them, other items by
            their content alone.
        merge: encode the dataset's items as well; where both have an item, the table counts.
        overwrite: replace ``out`` where it is an index, and start over where another build of
            ``out`` was killed.
        quiet: show no progress.

    Raises:
        DataError: an item id is given twice, a column of the table is missing, or an item encodes
            to NaN.
        FormatError: ``out`` exists and ``overwrite`` is false, or it is not an index; a killed
            build of ``out`` had other arguments and ``overwrite`` is false; or another process
            builds it.
        SpecError: ``items`` is given and the run's data had no item table.
    """
    run = run if isinstance(run, Run) else load_run(run)
    out = Path(out)
    exists = check_index_output(out, overwrite)
    parts: list[SourceItems] = []
    table = None if items is None else of_source(run, items)
    dataset = run.dataset(data) if items is None or merge or data is not None else None
    counted = run.ranker.counters is not None
    if dataset is not None and (table is None or merge):
        without = None if table is None else table.ids
        parts.append(of_dataset(dataset, without, counted=counted))
    if table is not None:
        parts.append(table if dataset is None or not counted else counted_in(dataset, table))

    def write(folder: Path) -> dict[str, Any]:
        state = _unfinished(folder, run, parts, overwrite)
        if state is None and not exists:
            sweep(folder, {"files": {}})
        return write_index(folder, run, parts, state, quiet)

    manifest = publish(out, exists, write)
    return IndexBuild.of(out, manifest, None if table is None else table.coverage)


def check_index_output(out: Path, overwrite: bool) -> bool:
    """Whether an index is to be replaced at ``out``.

    Raises:
        FormatError: see :func:`build_index`.
    """
    exists = out.exists()
    if exists and not overwrite:
        raise FormatError(f"{out} already exists; pass --overwrite or choose another folder")
    if exists and not (out / "manifest.json").exists():
        raise FormatError(f"{out} exists and is not an index; choose another folder, or remove it")
    check_output(out / "manifest.json")
    return exists


def publish(out: Path, exists: bool, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Put a new index, or a new version of one, to ``out`` in one step.

    Args:
        out: the index.
        exists: whether an index is there, which is replaced.
        write: writes the files of the index into a folder and returns the manifest.

    Returns:
        The manifest as committed.

    Raises:
        FormatError: another process writes the index.
    """
    folder = out if exists else out.with_name(f".{out.name}.partial")
    make_folder(folder)
    with writing(folder):
        try:
            built = write(folder)
        except (DataError, SpecError):
            if not exists:  # another attempt would end the same way
                shutil.rmtree(folder)
            raise
        manifest = commit(folder, built)
        if not exists:
            folder.rename(out)
            sync_directory(out.parent)
        sweep(out, manifest)
    return manifest


def write_index(
    folder: Path,
    run: Run,
    parts: Sequence[SourceItems],
    state: dict[str, Any] | None,
    quiet: bool,
    scales: Scales | None = None,
) -> dict[str, Any]:
    """Write all files of an index, or the rest of a killed build; returns the manifest.

    Args:
        state: that of a killed build.
        scales: those of the catalogue whose part this is; from a sample of ``parts`` when not
            given.
    """
    total = sum(map(len, parts))
    ranker, shown = run.ranker, displayed_columns(run.manifest)
    counted = None if ranker.counters is None else until_of(parts)
    with torch.inference_mode():
        if state is None:
            version = next_version(folder)
            with Files(folder, version) as files:
                _write_ids(files, parts)
                if shown:
                    files.append_display([text for part in parts for text in part.displayed(shown)])
                if ranker.folds:
                    device = next(ranker.parameters()).device
                    empty = ranker.encode_items(torch.zeros(0, ranker.config.width, device=device))
                    weights, terms = columns_of(empty)
                    files.append("weights.u8", weights.cpu().numpy())
                    files.append("terms.i8", terms.cpu().numpy())
                files.append("vectors.f32", np.zeros((0, ranker.config.width), np.float32))
                if ranker.counters is not None:
                    files.append("counters.f32", np.zeros((0, len(COUNTERS)), np.float32))
                    if counted is not None:
                        _write_counts(files, parts)
                if ranker.anchors is not None:
                    begin_sets(files, ranker.anchors.features)
                entries = files.entries()
            if scales is None and ranker.folds:
                scales = scales_of(ranker, sample_of(parts))
            found = None if scales is None else scales.to_dict()
            state = {"of": _same(run, parts), "version": version, "scales": found}
            state |= {"rows": 0, "codes": 0, "clamped": 0, "files": entries}
            _keep(folder, state)
        saved = None if state["scales"] is None else Scales.of(state["scales"])
        encoder = Encoder(ranker, saved, sets_of(ranker, folder, state["files"]))
        encoder.codes, encoder.clamped = state["codes"], state["clamped"]
        done: int = state["rows"]
        with (
            Files(folder, state["version"], state["files"]) as files,
            Bar("indexing", total=total, unit="items", quiet=quiet) as bar,
        ):
            bar.advance(done)
            for items in chunks(parts, done):
                for name, rows in encoder(items).items():
                    files.append(name, rows)
                done += len(items.ids)
                bar.advance(len(items.ids))
                if done - state["rows"] >= SHARD or done == total:
                    state |= {"rows": done, "files": files.entries()}
                    state |= {"codes": encoder.codes, "clamped": encoder.clamped}
                    state["scales"] = None if encoder.scales is None else encoder.scales.to_dict()
                    _keep(folder, state)
    return {
        "version": state["version"],
        "fingerprint": run.fingerprint,
        "model": ranker.config.model,
        "rows": total,
        "items": total,
        "superseded": 0,
        "clamped": state["clamped"],
        "scales": state["scales"],
        "anchors": None if ranker.anchors is None else anchors_entry(ranker.anchors),
        "keys": ranker.keys,
        "counted": None if counted is None else asdict(counted),
        **({"display": shown} if shown else {}),
        "built": state["files"]["vectors.f32"]["crc32"],
        "files": state["files"],
    }


def _write_ids(files: Files, parts: Sequence[SourceItems]) -> None:
    ids = [part.wanted for part in parts]
    values = ids[0] if len(ids) == 1 else np.concatenate(ids)
    offered = np.concatenate([part.candidate[part.rows] for part in parts])
    none = np.zeros(0, np.int64)
    files.append_ids(values)
    write_lookup(files, level_of(values), Level(none, none.astype(np.int32)))
    files.write("hidden_rows.i32", np.flatnonzero(~offered))
    files.write("removed_rows.i32", none)


def until_of(parts: Sequence[SourceItems]) -> Counted | None:
    """Which impressions the counters of all items contain; None where that is not known of some, or
    differs."""
    found = {part.until for part in parts}
    return found.pop() if len(found) == 1 else None


def _write_counts(files: Files, parts: Sequence[SourceItems]) -> None:
    for part in parts:
        assert part.hourly is not None  # until_of
        files.append_counts(part.hourly.take(part.rows), len(part))


def _keep(folder: Path, state: dict[str, Any]) -> None:
    """Save the state that a killed build resumes from."""
    write_json(folder / "building.json", {"format": FORMAT, **state})


def _same(run: Run, parts: Sequence[SourceItems]) -> dict[str, Any]:
    """The facts that identify a build: its run and its items."""
    return {
        "fingerprint": run.fingerprint,
        "items": sum(map(len, parts)),
        "checksum": [part.checksum() for part in parts],
    }


def _unfinished(
    folder: Path, run: Run, parts: Sequence[SourceItems], replace: bool
) -> dict[str, Any] | None:
    """The state of a killed build of the same index, or None.

    Raises:
        FormatError: it was a build of another index, and ``replace`` is false.
    """
    path = folder / "building.json"
    if not path.exists():
        return None
    try:
        state = read_json(path, "a build")
        held = {
            entry["file"]: (folder / entry["file"]).stat().st_size
            >= np.prod(entry["shape"]) * np.dtype(DTYPES[name]).itemsize
            for name, entry in state["files"].items()
        }
    except (FormatError, FileNotFoundError, KeyError, TypeError, AttributeError):
        return None  # damaged: nothing to resume from
    of = _same(run, parts)
    if state.get("format") == FORMAT and state.get("of") == of and all(held.values()):
        return state
    if not replace and state.get("of") != of:
        was = state.get("of", {})
        changed = "run" if was.get("fingerprint") != of["fingerprint"] else "items"
        raise FormatError(
            f"{folder} holds an unfinished build of other {changed} ({was.get('items')} items by "
            f"the model {was.get('fingerprint')}; now {of['items']} items by {of['fingerprint']}). "
            "Give the same arguments to resume it, or --overwrite to start over"
        )
    return None


def of_dataset(
    dataset: Dataset, without: NDArray[Any] | None = None, *, counted: bool = False
) -> SourceItems:
    """All items of a dataset.

    Args:
        dataset: whose items they are.
        without: external ids of items to leave out.
        counted: whether they have the counters of the end of its log, where it has counters.
    """
    rows = np.arange(len(dataset.items), dtype=np.int64)
    codes = dataset.item_codes(rows)
    if without is not None:
        here, there = pl.Series(dataset.item_ids), pl.Series(without)
        if here.dtype == there.dtype:  # the types differ only where one is empty
            rows = rows[~here.is_in(there.implode()).to_numpy()]
    found = SourceItems(
        dataset.item_ids,
        codes,
        dataset.items,
        dataset.candidate,
        rows,
        display=dataset.display,
    )
    if not counted or dataset.counters is None:
        return found
    return found.with_counters(dataset.counters, np.arange(len(dataset.items)))


def counted_in(dataset: Dataset, table: SourceItems) -> SourceItems:
    """A table's items with the counters of the end of a dataset's log, where it has counters."""
    if dataset.counters is None:
        return table
    return table.with_counters(dataset.counters, rows_in(dataset, table.ids))


def rows_in(dataset: Dataset, ids: NDArray[Any]) -> NDArray[np.int64]:
    """Item rows of external ids; of one that the dataset lacks, the number of its items."""
    known, wanted = pl.Series("id", dataset.item_ids), pl.Series("id", ids)
    if known.dtype != wanted.dtype:  # the types differ only where one is empty
        return np.full(len(ids), len(known), np.int64)
    rows = pl.DataFrame([known, pl.Series("row", np.arange(len(known)))])
    found = pl.DataFrame([wanted]).join(rows, on="id", how="left", maintain_order="left")["row"]
    return found.fill_null(len(known)).to_numpy().astype(np.int64)
