"""What building and changing an index share: files that grow, the lock of a writer, the step that
commits a version, and the encoding of items.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import ItemKeys, Items
from limerank.data.counters import Hourly
from limerank.errors import DataError, FormatError, LimerankError, StoreError
from limerank.files import FULL, sync_directory, write_json
from limerank.index.anchors import SetEncoder
from limerank.index.format import (
    ANCHOR_TABLES,
    DTYPES,
    FORMAT,
    Scales,
    manifest_checksum,
    read_manifest,
    versioned,
)
from limerank.index.items import SourceItems
from limerank.index.lookup import Level, flattened
from limerank.locks import lock
from limerank.models import Ranker
from limerank.models.anchors import AnchoredLinks

CHUNK = 16384
"""Items encoded at once."""
BEHIND = 8
"""Largest number of parts of files that wait to be written."""
COPY = ".copy-"
"""How the names of unfinished copies of files begin."""
PARTIALS = (".manifest.json.partial-", ".building.json.partial-", COPY)
RETRY_SECONDS = 0.05
"""Between two attempts to get the lock that another process holds."""


class BusyError(FormatError):
    """Another process (or thread) is writing into the folder."""


class ReadOnlyError(FormatError):
    """The folder may not be written to."""


# Files


class File:
    """An array on disk that grows row by row, with its checksum.

    Args:
        folder: that contains it.
        name: of the array; the file's name adds the version.
        version: the version that begins the file.
        entry: the manifest's entry of a file to continue; bytes beyond it are overwritten.
    """

    def __init__(
        self, folder: Path, name: str, version: int, entry: Mapping[str, Any] | None = None
    ) -> None:
        stem, suffix = name.split(".")
        self.name, self._dtype = name, np.dtype(DTYPES[name])
        self._file = f"{stem}-{version}.{suffix}" if entry is None else str(entry["file"])
        self._shape: tuple[int, ...] | None = None if entry is None else tuple(entry["shape"])
        self._crc = 0 if entry is None else int(entry["crc32"])
        if entry is not None:
            _unlinked(folder / self._file)
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if entry is None else 0)
        self._descriptor = os.open(folder / self._file, flags, 0o666)
        if self._shape is not None:
            size = int(np.prod(self._shape)) * self._dtype.itemsize
            os.lseek(self._descriptor, size, os.SEEK_SET)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows; the first ones decide the shape of a row."""
        data = np.ascontiguousarray(rows, dtype=self._dtype)
        held = (0, *data.shape[1:]) if self._shape is None else self._shape
        assert held[1:] == data.shape[1:]
        self._shape = (held[0] + len(data), *held[1:])
        flat = data.reshape(-1).view(np.uint8).data
        self._crc = zlib.crc32(flat, self._crc)
        done = 0
        while done < len(flat):
            done += os.write(self._descriptor, flat[done:])

    def sync(self) -> None:
        """Make it durable."""
        os.fsync(self._descriptor)

    def entry(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        assert self._shape is not None
        return {"file": self._file, "shape": list(self._shape), "crc32": self._crc}

    def close(self) -> None:
        os.close(self._descriptor)


def _unlinked(path: Path) -> None:
    """Replace a file that other folders have as well, by a link, or that is read-only for that
    reason, by a copy. Its readers continue to map the old one."""
    found = path.stat()
    if found.st_nlink == 1 and found.st_mode & stat.S_IWUSR:
        return
    copy = path.with_name(f"{COPY}{path.name}")
    shutil.copyfile(path, copy)
    copy.replace(path)


class Files:
    """The files that one change writes, in a thread of their own. They are durable when
    :meth:`entries` returns."""

    def __init__(
        self, folder: Path, version: int, entries: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.version = folder, version
        self._entries: dict[str, Any] = dict(entries or {})
        self._open: dict[str, File] = {}
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Add rows to an array of the index, or begin it. The rows must not change afterwards."""
        if name not in self._open:
            self._open[name] = File(self.folder, name, self.version, self._entries.get(name))
        self._waiting.append(self._thread.submit(self._open[name].append, rows))
        self._wait(BEHIND)

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write an array to a new file, which replaces its old one; it may grow then."""
        self._open[name] = File(self.folder, name, self.version)
        self.append(name, array)

    def append_ids(self, ids: NDArray[Any]) -> None:
        """Add external ids."""
        values, ends = flattened(ids)
        if ends is None:
            self.append("ids.i64", values)
        else:
            self._append_ragged("ids.utf8", values, "id_ends.i64", ends)

    def append_display(self, texts: Sequence[str]) -> None:
        """Add what is shown of items; see :class:`limerank.index.display.Display`."""
        values, ends = flattened(np.array(texts, dtype=object))
        assert ends is not None
        self._append_ragged("display.utf8", values, "display_ends.i64", ends)

    def append_counts(self, hourly: Hourly, rows: int) -> None:
        """Add what the counters of the next rows count."""
        ends = np.searchsorted(hourly.rows, np.arange(rows), "right")
        self._append_ragged("counts.i32", np.stack(hourly[1:], -1), "count_ends.i64", ends)

    def _append_ragged(
        self, name: str, values: NDArray[Any], ends_name: str, ends: NDArray[np.int64]
    ) -> None:
        self._wait(0)
        held = self._open[name].entry() if name in self._open else None
        held = held or self._entries.get(name)
        self.append(name, values)
        self.append(ends_name, ends + (0 if held is None else held["shape"][0]))

    def entries(self) -> dict[str, Any]:
        """The manifest's entries of all arrays, with all data on disk."""
        self._wait(0)
        for name, file in self._open.items():
            file.sync()
            self._entries[name] = file.entry()
        sync_directory(self.folder)
        return dict(self._entries)

    def _wait(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        for file in self._open.values():
            file.close()


@contextlib.contextmanager
def writing(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock for writing into a folder. It is released when the process dies.

    Where the block fails to write to the disk, its files are removed: the committed version stays.

    Args:
        folder: an index, or one that is being built.
        patience: seconds to wait while another process is writing.

    Raises:
        BusyError: another process or thread is writing.
        ReadOnlyError: the folder may not be written to.
        StoreError: the disk is full, or fails.
    """
    until = time.monotonic() + patience
    while True:
        try:
            descriptor = _locked(folder)
            break
        except BusyError:
            if time.monotonic() >= until:
                raise
            time.sleep(RETRY_SECONDS)
        except OSError as error:
            raise disk_error(folder, error) from None
    try:
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError, FormatError):
                _take_back(folder)
            raise disk_error(folder, error) from None
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> int:
    """The lock file of a folder, opened and locked."""
    busy = BusyError(
        f"{folder} is being written by another process (or thread); try again when it has ended"
    )
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(descriptor)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder / ".lock")):
            raise busy  # a build ended and renamed the folder meanwhile
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise busy from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _take_back(folder: Path) -> None:
    """Remove what a change has written and not committed."""
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        size = int(np.prod(entry["shape"])) * np.dtype(DTYPES[name]).itemsize
        if (folder / entry["file"]).stat().st_size > size:
            os.truncate(folder / entry["file"], size)
    sweep(folder, manifest)


def disk_error(folder: Path, error: OSError) -> LimerankError:
    """The error to raise for an error of the disk that holds an index."""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyError(f"{folder} cannot be changed ({error.strerror}): make it writable")
    if error.errno in FULL:
        return StoreError(
            f"there is no space to change {folder} ({error.strerror}); the index is "
            "unchanged: free some space and try again"
        )
    return StoreError(
        f"{folder} cannot be written ({error.strerror or error}); the index is unchanged: check "
        "its disk and try again"
    )


def next_version(folder: Path, held: int = 0) -> int:
    """A version that no file of the folder has, nor any file that a reader has mapped."""
    found = [held]
    for path in folder.iterdir():
        found += [v for name in DTYPES if (v := versioned(name, path.name)) is not None]
    return max(found) + 1


def commit(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Commit a version: the one step in which an index changes."""
    manifest = {"format": FORMAT, **manifest}
    manifest["checksum"] = manifest_checksum(manifest)
    write_json(folder / "manifest.json", manifest)
    return manifest


def sweep(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove the files of older versions and of killed processes."""
    named = {entry["file"] for entry in manifest["files"].values()}
    for path in folder.iterdir():
        ours = path.name in DTYPES or any(versioned(name, path.name) for name in DTYPES)
        left = path.name == "building.json" or path.name.startswith(PARTIALS)
        if left or (ours and path.name not in named):
            path.unlink(missing_ok=True)


def write_lookup(files: Files, base: Level | None, tail: Level) -> None:
    """Write the lookup levels: that of late ids, and the large one where it has changed."""
    if base is not None:
        files.write("id_keys.i64", base.keys)
        files.write("id_rows.i32", base.rows)
    files.write("tail_keys.i64", tail.keys)
    files.write("tail_rows.i32", tail.rows)


# Encoding


class Encoder:
    """Items -> vectors and, for LIME, codes; counts codes that are out of the scales' range.

    Args:
        ranker: the model.
        scales: of a model with links.
        sets: the sets of anchored values so far, of a model with anchored links.
    """

    def __init__(self, ranker: Ranker, scales: Scales | None, sets: SetEncoder | None) -> None:
        self.ranker, self.scales, self.sets = ranker, scales, sets
        self.codes = self.clamped = 0
        """Numbers of codes, and of codes that were clamped to the range of their column."""
        self._device = next(ranker.parameters()).device
        if scales is not None:
            self._low_c, self._step_c, self._mean_c, self._middle_g, self._step_g = (
                torch.from_numpy(getattr(scales, name)).to(self._device)
                for name in ("weight_low", "weight_step", "weight_mean", "term_middle", "term_step")
            )

    def __call__(self, items: Items) -> dict[str, NDArray[Any]]:
        """Name of the array -> rows."""
        found_ud = self.ranker.item_vectors(items.to(self._device)).float()
        if not torch.isfinite(found_ud.sum()):
            refuse_nan(found_ud)
        rows: dict[str, NDArray[Any]] = {"vectors.f32": found_ud.cpu().numpy()}
        counted = counted_by(self.ranker, items)
        if counted is not None:
            rows["counters.f32"] = counted.cpu().numpy()
        if self.sets is not None:
            content = items.content
            keys = ItemKeys(
                keys=content.tokens,
                shares=content.weights,
                offsets=content.offsets,
                ids=items.ids,
            )
            keys = self.ranker.complete(keys.to(self._device))
            rows |= self.sets(*(x.cpu().numpy() for x in (keys.keys, keys.shares, keys.offsets)))
        if self.scales is None:
            return rows
        assert self.ranker.folds
        weights_uc, terms_ug = encoded(self.ranker, found_ud, counted)
        w_uc, w_excess = self._quantised(weights_uc, self._low_c, self._step_c, 0, 255)
        rows["weights.u8"] = w_uc.to(torch.uint8).cpu().numpy()
        rows["terms.i8"] = self._codes_of_terms(terms_ug)
        of_links = w_uc.shape[1] - self.ranker.keys
        off_uc = w_uc.sub_(self._mean_c).abs_()[:, :of_links]
        spread = off_uc.sum(1).amax() if len(w_uc) else 0.0
        self.scales = replace(
            self.scales,
            weight_spread=max(self.scales.weight_spread, float(spread)),
            weight_excess=np.maximum(self.scales.weight_excess, w_excess),
        )
        return rows

    def terms(self, vectors_ud: Tensor, counted: Tensor) -> NDArray[np.int8]:
        """Codes of the terms alone, of items with these vectors and counters."""
        of = (part.to(self._device) for part in (vectors_ud, counted))
        return self._codes_of_terms(encoded(self.ranker, *of)[1])

    def _codes_of_terms(self, terms_ug: Tensor) -> NDArray[np.int8]:
        assert self.scales is not None
        t_ug, excess = self._quantised(terms_ug, self._middle_g, self._step_g, -127, 127)
        self.scales = replace(self.scales, term_excess=np.maximum(self.scales.term_excess, excess))
        codes: NDArray[np.int8] = t_ug.to(torch.int8).cpu().numpy()
        return codes

    def _quantised(
        self, values: Tensor, offset: Tensor, step: Tensor, least: int, most: int
    ) -> tuple[Tensor, NDArray[np.float32]]:
        """Codes as floats, and the largest distance of each column's values from its range."""
        codes = ((values - offset) / step).round_()
        self.codes += codes.numel()
        excess = np.zeros(codes.shape[1], np.float32)
        if len(codes):
            low, high = codes.amin(0), codes.amax(0)
            beyond = torch.maximum(least - low, high - most).clamp(min=0)
            if beyond.any():
                self.clamped += int(((codes < least) | (codes > most)).sum())
                excess = (beyond * step).cpu().numpy()
        return codes.clamp_(least, most), excess


def counted_by(ranker: Ranker, items: Items) -> Tensor | None:
    """The counters that an index holds of items, f32 [U, F]: their own, or those of the model; None
    for a model without counters."""
    if ranker.counters is None:
        return None
    values = ranker.counters.values
    return (
        values[items.ids.to(values.device)] if items.counted is None else items.counted.to(values)
    )


def encoded(ranker: Ranker, vectors_ud: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """What :func:`columns_of` gives of items, with what their counters [U, F] add to the terms."""
    weights_uc, terms_ug = columns_of(ranker.encode_items(vectors_ud))
    if ranker.counters is not None and counted is not None:
        terms_ug = terms_ug + ranker.counters(counted)
    return weights_uc, terms_ug


def columns_of(terms: Any) -> tuple[Tensor, Tensor]:
    """The columns of ``weights.u8``, link weights and then keys, [U, C + S], and those of
    ``terms.i8``, [U, g], of the terms of a model that folds."""
    return torch.cat([terms.weights, terms.key], 1), terms.head


def anchors_entry(anchors: AnchoredLinks) -> dict[str, Any]:
    """What the manifest says of the anchored features of a model."""
    return {"features": [list(of) for of in anchors.features], "item_tokens": anchors.item_tokens}


def begin_sets(files: Files, features: Sequence[tuple[int, int]]) -> None:
    """Begin the files of anchored values: no items, and the empty set."""
    none = np.zeros(0)
    files.append("anchor_codes.i32", np.zeros((0, len(features))))
    for name, begun in zip(ANCHOR_TABLES, (none, none, np.zeros(1)), strict=True):
        files.append(name, begun)


def sets_of(ranker: Ranker, folder: Path, entries: Mapping[str, Any]) -> SetEncoder | None:
    """The sets of anchored values in the files of an index that is being built or changed; None for
    models without anchored links."""
    if ranker.anchors is None:
        return None
    tables = [
        np.fromfile(
            folder / entries[name]["file"], DTYPES[name], count=int(entries[name]["shape"][0])
        )
        for name in ANCHOR_TABLES
    ]
    return SetEncoder(ranker.anchors.features, *tables)


def refuse_nan(vectors_ud: Tensor) -> None:
    """DataError where an item's vector is not finite."""
    finite_u = torch.isfinite(vectors_ud).all(1)
    if not finite_u.all():
        raise DataError(
            f"{int((~finite_u).sum())} of {len(finite_u)} items encode to NaN: look for extreme "
            "numbers in their rows, or train the model again"
        )


def chunks(parts: Sequence[SourceItems], done: int = 0) -> Iterator[Items]:
    """Yield all wanted items of all parts, except the first ``done``."""
    for part in parts:
        yield from part.chunks(CHUNK, min(done, len(part)))
        done = max(done - len(part), 0)


def chunk_rows(lengths: Sequence[int], number: int, of: int) -> list[slice]:
    """The rows of each source of items that a part of a build encodes: all chunks of all sources
    in order, split evenly. A part encodes the same chunks as a build in one process, so that it
    gets the same bits.

    Args:
        lengths: items of each source.
        number: of the part, from 1.
        of: number of parts.
    """
    counts = [-(-length // CHUNK) for length in lengths]
    total = sum(counts)
    low, high = (number - 1) * total // of, number * total // of
    found, before = [], 0
    for length, count in zip(lengths, counts, strict=True):
        first, last = (min(max(at - before, 0), count) * CHUNK for at in (low, high))
        found.append(slice(min(first, length), min(last, length)))
        before += count
    return found
