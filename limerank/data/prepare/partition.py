"""Arrays larger than memory: partitioned by user, sorted part by part, written by appending.

A user's *key* is a 64-bit integer. Its top bits select the partition, and the order of keys is the
order of users in the dataset, so that the result does not depend on the number of partitions.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from limerank.data.ragged import take_ragged

Array = NDArray[Any]

MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, so that multiplying by it modulo 2**64 only shuffles the integers (Knuth's hashing)."""
INVERSE = pow(MULTIPLIER, -1, 1 << 64)


def shuffle(ids: Array) -> NDArray[np.uint64]:
    """Keys of integer ids: a bijection whose top bits are spread evenly."""
    return ids.astype(np.int64, copy=False).view(np.uint64) * np.uint64(MULTIPLIER)


def unshuffle(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The ids that have these keys; the inverse of :func:`shuffle`."""
    return (keys * np.uint64(INVERSE)).view(np.int64)


class NpyWriter:
    """A one-dimensional ``.npy`` file that grows; its header is valid once it is closed."""

    HEADER = 128

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.count = 0
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed by close)
        self._file.write(b"\0" * self.HEADER)

    def append(self, values: Array) -> None:
        data = np.ascontiguousarray(values, self.dtype)
        self._file.write(data.data)
        self.count += len(data)

    def close(self) -> None:
        shape = f"({self.count},)"
        text = f"{{'descr': {self.dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
        body = text.ljust(self.HEADER - 11).encode() + b"\n"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body)
        self._file.close()

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NpyReader:
    """A ``.npy`` file of :class:`NpyWriter`, read from its beginning, piece by piece.

    (Not a memory map: mapped pages count as the process's memory.)
    """

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self._dtype = np.dtype(dtype)
        self._file.seek(NpyWriter.HEADER)

    def read(self, count: int) -> Array:
        return np.fromfile(self._file, self._dtype, count)

    def close(self) -> None:
        self._file.close()


class Spool:
    """Rows on disk, in ``2**bits`` files by bits of the column ``user`` below its first ``skip``.

    Rows keep their order within a file. With ``ragged``, that column has as many values as the
    column ``length`` sums to, and they go where their row goes.
    """

    def __init__(
        self,
        folder: Path,
        dtypes: Mapping[str, DTypeLike],
        bits: int,
        *,
        skip: int = 0,
        ragged: str | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.bits, self.skip, self.ragged = folder, bits, skip, ragged
        self.dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self.rows = np.zeros(1 << bits, np.int64)
        """Rows of each file; of a ragged spool, values."""
        self._files: dict[int, int] = {}

    def add(self, columns: Mapping[str, Array]) -> None:
        """Append rows; ``columns`` has the columns of ``dtypes``, each a 1-D array."""
        arrays = {
            name: np.ascontiguousarray(columns[name], dtype) for name, dtype in self.dtypes.items()
        }
        keys = arrays["user"]
        if len(keys) == 0:
            return
        if self.bits == 0:
            self._write(0, arrays)
            return
        parts = ((keys << np.uint64(self.skip)) >> np.uint64(64 - self.bits)).astype(np.uint8)
        order = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts, minlength=1 << self.bits))
        value_ends = ends
        if self.ragged is not None:
            lengths = arrays["length"]
            values = take_ragged(arrays.pop(self.ragged), lengths, order)
            value_ends = np.concatenate([[0], np.cumsum(lengths[order])])[ends]
        taken = {name: array[order] for name, array in arrays.items()}
        if self.ragged is not None:
            taken[self.ragged] = values
        start = value_start = 0
        for part, (end, value_end) in enumerate(
            zip(ends.tolist(), value_ends.tolist(), strict=True)
        ):
            if end > start:
                row, value = slice(start, end), slice(value_start, value_end)
                piece = {n: a[value if n == self.ragged else row] for n, a in taken.items()}
                self._write(part, piece)
            start, value_start = end, value_end

    def _write(self, part: int, columns: dict[str, Array]) -> None:
        if part not in self._files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._files[part] = os.open(self._path(part), flags, 0o644)
        arrays = [columns[name] for name in self.dtypes]
        header = np.array([len(array) for array in arrays], np.int64)
        _write_all(self._files[part], [header, *arrays])
        self.rows[part] += len(columns[self.ragged or "user"])

    def _path(self, part: int) -> Path:
        return self.folder / f"{part}.bin"

    def close(self) -> None:
        """No more rows will be added."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def load(self, part: int) -> dict[str, Array]:
        """All rows of one partition; its file is removed."""
        chunks: dict[str, list[Array]] = {name: [] for name in self.dtypes}
        if self.rows[part]:
            raw = np.fromfile(self._path(part), np.uint8)
            at, head = 0, 8 * len(self.dtypes)
            while at < len(raw):
                counts = np.frombuffer(raw, np.int64, len(self.dtypes), at).tolist()
                at += head
                for (name, dtype), count in zip(self.dtypes.items(), counts, strict=True):
                    chunks[name].append(np.frombuffer(raw, dtype, count, at))
                    at += count * dtype.itemsize
            self._path(part).unlink()
        return {
            name: np.concatenate(parts) if parts else np.zeros(0, self.dtypes[name])
            for name, parts in chunks.items()
        }

    def split(self, part: int, bits: int = 4) -> Spool:
        """One partition as a separate spool with finer partitions; its file is removed."""
        folder = self.folder / f"{part}-split"
        finer = Spool(folder, self.dtypes, bits, skip=self.skip + self.bits, ragged=self.ragged)
        if self.rows[part]:
            for columns in blocks(self._path(part), self.dtypes):
                finer.add(columns)
            self._path(part).unlink()
        finer.close()
        return finer


def blocks(path: Path, dtypes: Mapping[str, DTypeLike]) -> Iterator[dict[str, Array]]:
    """The rows of one file of a :class:`Spool`, as they were added."""
    with open(path, "rb", buffering=0) as file:
        while len(counts := np.fromfile(file, np.int64, len(dtypes))):
            columns = zip(dtypes.items(), counts.tolist(), strict=True)
            yield {name: np.fromfile(file, dtype, n) for (name, dtype), n in columns}


def _write_all(descriptor: int, arrays: list[Array]) -> None:
    views = [memoryview(array.data).cast("B") for array in arrays if array.nbytes]
    while views:
        written = os.writev(descriptor, views[:512])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views and written:
            views[0] = views[0][written:]


def radix_order(keys: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """A stable order by the low ``bits`` of each key: numpy sorts 16-bit integers by radix, which
    is several times faster than comparing."""
    order: NDArray[np.int64] | None = None
    for shift in range(0, max(bits, 1), 16):
        digits = (keys >> np.uint64(shift)).astype(np.uint16)
        if shift + 16 > bits:
            digits &= np.uint16((1 << (bits - shift)) - 1)
        if order is None:
            order = np.argsort(digits, kind="stable")
        else:
            order = order[np.argsort(digits[order], kind="stable")]
    assert order is not None
    return order


def group_order(
    keys: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
    """A stable order of ``keys``, the sorted keys, and the position at which each group of equal
    keys begins."""
    if len(keys) == 0:
        return np.zeros(0, np.int64), keys, np.zeros(0, np.int64)
    # Keys are spread evenly: the 32 bits below the common ones distinguish nearly all.
    low = max(int(keys.min() ^ keys.max()).bit_length() - 32, 0)
    order = radix_order(keys >> np.uint64(low), 32)
    found = keys[order]
    descents = np.flatnonzero(found[1:] < found[:-1])
    if len(descents):
        # The others differ only in lower bits: each such stretch is sorted by full keys.
        heads = found >> np.uint64(low)
        rows = np.flatnonzero(np.isin(heads, heads[descents]))
        order[rows] = order[rows][np.argsort(found[rows], kind="stable")]
        found = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], found[1:] != found[:-1]]))
    return order, found, starts


def stable_order(major: NDArray[np.int64], minor: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order by ``major`` (ascending already, from 0), then ``minor``; ties keep their order."""
    if len(major) == 0:
        return np.zeros(0, np.int64)
    low = int(minor.min())
    minor_bits = (int(minor.max()) - low).bit_length()
    bits = int(major[-1]).bit_length() + minor_bits
    if bits > 64:
        return np.lexsort((minor, major))
    key = (minor - low).view(np.uint64) | (major.astype(np.uint64) << np.uint64(minor_bits))
    return radix_order(key, bits)


class Histogram:
    """Counts of float32 values, fine enough that quantiles err by less than 1 part in 2,000."""

    def __init__(self) -> None:
        self.counts = np.zeros(1 << 20, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        negative = bits >> np.uint32(31) != 0
        ordered = np.where(negative, ~bits, bits | np.uint32(1 << 31))
        self.counts += np.bincount(ordered >> np.uint32(12), minlength=len(self.counts))

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """The value at each share; integers below 4,096 are exact. Empty: zeros."""
        total = int(self.counts.sum())
        if total == 0:
            return [0.0 for _ in shares]
        ends = np.cumsum(self.counts)
        ranks = [min(int(share * total), total - 1) for share in shares]
        return [float(value) for value in _of_bins(np.searchsorted(ends, ranks, side="right"))]

    def moments(
        self, transform: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> tuple[float, float]:
        """Mean and standard deviation of the transformed values, as exact as the quantiles: they
        do not depend on the order in which values were added. Empty, or all alike: 0 and 1, or
        their value and 1."""
        bins = np.flatnonzero(self.counts)
        if not len(bins):
            return 0.0, 1.0
        values, counts = transform(_of_bins(bins).astype(np.float64)), self.counts[bins]
        mean = float(np.average(values, weights=counts))
        std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
        return mean, std if std > 0 else 1.0


def _of_bins(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    """The value with which each bin of a :class:`Histogram` begins."""
    ordered = bins.astype(np.uint32) << np.uint32(12)
    bits = np.where(ordered >> np.uint32(31) != 0, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.astype(np.uint32).view(np.float32)


def values_at_ranks(
    blocks: Callable[[], Iterable[NDArray[np.int64]]], low: int, high: int, ranks: list[int]
) -> list[int]:
    """Exact order statistics of integers in ``[low, high]`` that may be read several times."""
    result = []
    for rank in ranks:
        first, last, before = low, high, 0
        while first < last:
            width = ((last - first) >> 16) + 1
            counts = np.zeros(1 << 16, np.int64)
            for block in blocks():
                inside = block[(block >= first) & (block <= last)]
                counts += np.bincount((inside - first) // width, minlength=1 << 16)
            ends = before + np.cumsum(counts)
            k = int(np.searchsorted(ends, rank, side="right"))
            before = int(ends[k] - counts[k])
            first, last = first + k * width, min(last, first + (k + 1) * width - 1)
        result.append(first)
    return result


def sync(path: Path) -> None:
    """Make a file durable; done early on a thread, it takes no time at the end."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
