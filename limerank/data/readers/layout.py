"""What the readers share: finding the files of a layout, and converting them piece by piece."""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from limerank.data.protocol import Split
from limerank.errors import DataError, SpecError, did_you_mean
from limerank.progress import Bar

COMPRESSED = (".gz", ".zst")
PIECE_BYTES = 16 << 20
"""Text is converted in pieces of this size: it bounds the memory of a conversion."""
HEAD_BYTES = 1 << 20
HEAD_LINES = 200
"""The first lines of a file, which show what its columns are."""
MORE = "(more)"
"""Holds what a line has beyond the columns of its file."""
ID_MIN_COUNT = 2
"""A content id (author, brand, campaign ...) of a single item adds nothing to the item's id."""


def named(folder: Path, *patterns: str) -> list[Path]:
    """Files of a folder that match one of the patterns, compressed or not, in order of name.

    A file that is there both plain and compressed counts once.
    """
    found = {
        path
        for pattern in patterns
        for ending in ("", *COMPRESSED)
        for path in folder.glob(pattern + ending)
        if path.is_file()
    }
    return sorted(
        path for path in found if path.suffix not in COMPRESSED or path.with_suffix("") not in found
    )


def reference(path: Path, directory: Path) -> str:
    """How a Spec whose base is ``directory`` names a file."""
    inside = path.is_relative_to(directory)
    return glob.escape(str(path.relative_to(directory) if inside else path))


def wrong_folder(directory: Path, what: str, expected: str) -> DataError:
    """The error for a folder that does not hold the files of a layout: it lists what it holds."""
    if not directory.is_dir():
        return DataError(f"{directory} is not a folder; expected {what} with {expected}")
    names = sorted(path.name + "/" * path.is_dir() for path in directory.iterdir())
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return DataError(
        f"{directory} is not {what}: expected {expected}; found {shown or 'an empty folder'}"
    )


def separator_of(path: Path) -> str:
    """Tab for .tsv files, comma for others."""
    return "\t" if ".tsv" in path.suffixes else ","


def header(path: Path) -> list[str]:
    """Column names of a CSV or TSV file, as they are written."""
    with _open(path) as file:
        line = file.read(1 << 16).split(b"\n", 1)[0]
    names = line.decode("utf-8-sig", errors="replace").rstrip("\r").split(separator_of(path))
    return [name.removeprefix('"').removesuffix('"') for name in names]


def first_records(path: Path) -> list[list[str]]:
    """The fields of the first lines of a CSV file without quotes, its header included.

    Raises:
        DataError: it is empty.
    """
    found = [line.split(",") for line in _first_lines(path)]
    return [[field.strip().strip('"') for field in record] for record in found]


def first_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of the first lines of a file of JSON lines.

    Raises:
        DataError: there are none.
    """
    found = []
    for line in _first_lines(path):
        with suppress(ValueError):
            found.append(json.loads(line))
    found = [one for one in found if isinstance(one, dict)]
    if not found:
        raise DataError(
            f"{path} has no JSON object in its first lines, expected one per line; a file of "
            "2014 with single quotes is not JSON: convert it, or leave it out"
        )
    return found


def _first_lines(path: Path) -> list[str]:
    with _open(path) as file:
        block = file.read(HEAD_BYTES)
    lines = block.decode("utf-8-sig", errors="replace").splitlines()
    if len(block) == HEAD_BYTES:
        lines = lines[:-1]
    if not any(lines):
        raise DataError(f"{path} is empty")
    return [line for line in lines if line.strip()][:HEAD_LINES]


def column(path: Path, *names: str) -> str:
    """The first of these columns that a file has, as its header writes it.

    Raises:
        DataError: it has no such file.
    """
    found = header(path)
    for name in names:
        for written in found:
            if written.strip() == name:
                return written
    raise DataError(
        f"{path} has no column {' or '.join(names)}; found {', '.join(found)}. "
        "Is it the official file?"
    )


def split_by(
    split: Split | str, official: Callable[[], Split] | None = None, *, clock: bool = True
) -> Split:
    """A reader's ``split`` option: a Split, "time" or "position" (0.8 / 0.1 / 0.1), "leave-last"
    (the last request of each user), or "official".

    Args:
        split: the option.
        official: the split that the publisher or the papers use, for layouts that have one.
        clock: whether there are times to split by.
    """
    if isinstance(split, Split):
        return split
    if split == "official" and official is not None:
        return official()
    if split == "position":
        return Split(by="position")
    if split == "leave-last":
        return Split(leave_last=1)
    if split == "time" and clock:
        return Split()
    choices = ["time"] * clock + ["position", "leave-last"] + ["official"] * (official is not None)
    raise SpecError(
        f"split is {split!r}, expected one of {', '.join(choices)}{did_you_mean(split, choices)}"
    )


def pieces(
    path: Path,
    columns: Mapping[str, Any],
    *,
    separator: str,
    skip_header: bool,
    bar: Bar,
) -> Iterator[pl.DataFrame]:
    """The rows of a text file without quotes, some megabytes at a time.

    A value that does not parse is null, and so is all of a line that has too many values: `prepare`
    counts such rows among the bad ones.

    Args:
        path: the file, compressed or not.
        columns: the file's columns in their order, with their polars types.
        separator: one character.
        skip_header: whether the first line only names the columns.
        bar: is advanced by the bytes that were read. (Bytes that are not UTF-8 become U+FFFD.)
    """
    schema = {**columns, MORE: pl.String}
    names = separator.join(schema).encode() + b"\n"
    for text in _lines(path):
        bar.advance(len(text))
        body = text
        if skip_header:
            body = text.partition(b"\n")[2]
            skip_header = False
        if b"\r" in body:
            body = body.replace(b"\r\n", b"\n")
        body = body.strip(b"\n")
        frame = pl.read_csv(
            io.BytesIO(names + body),
            separator=separator,
            quote_char=None,
            encoding="utf8-lossy",
            schema=schema,
            ignore_errors=True,
            truncate_ragged_lines=True,
        )
        fits = pl.col(MORE).is_null()
        yield frame.select(pl.when(fits).then(pl.col(name)).alias(name) for name in columns)


def concatenated(frames: Iterable[pl.DataFrame], columns: Mapping[str, Any]) -> pl.DataFrame:
    """The frames as one."""
    return pl.concat([pl.DataFrame(schema=columns), *frames])


def read_csv(path: Path) -> pl.DataFrame:
    """All of a CSV file with a header, as text.

    Raises:
        DataError: a line does not have the fields of the header.
    """
    try:
        return pl.read_csv(read_bytes(path), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read as CSV: {str(error).splitlines()[0]}") from None


def words(text: pl.Expr) -> pl.Expr:
    """The distinct words of a text in lower case, as a list."""
    return (
        text.str.to_lowercase().str.extract_all(r"[\p{L}\p{N}']+").list.unique(maintain_order=True)
    )


def _lines(path: Path) -> Iterator[bytes]:
    """A file in pieces that end with a line."""
    rest = b""
    with _open(path) as file:
        while block := file.read(PIECE_BYTES):
            end = block.rfind(b"\n") + 1
            if end == 0:
                rest += block
            else:
                yield rest + block[:end]
                rest = block[end:]
    if rest:
        yield rest


def read_bytes(path: Path) -> bytes:
    """All of a file, decompressed."""
    with _open(path) as file:
        return bytes(file.read())


def _open(path: Path) -> Any:
    """The file's plain bytes; its ending shows whether it is compressed."""
    return pa.input_stream(str(path))


def size_of(paths: Sequence[Path]) -> int | None:
    """Bytes to read, or None where compression hides it."""
    if any(path.suffix in COMPRESSED for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


class ParquetSheet:
    """A Parquet file that is written frame by frame, into a folder that it makes if need be.

    Args:
        path: the file.
        columns: its columns with their polars types.
    """

    def __init__(self, path: Path, columns: Mapping[str, Any]) -> None:
        self.path = path
        self.rows = 0
        self._empty = pl.DataFrame(schema=columns)
        self._schema = _arrow(self._empty).schema

    def __enter__(self) -> ParquetSheet:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Differences of integers are as small as a dictionary of them, and twice as fast.
        integers = [field.name for field in self._schema if pa.types.is_integer(field.type)]
        texts = [
            field.name + ".list.element" * pa.types.is_nested(field.type)
            for field in self._schema
            if field.name not in integers
        ]
        self._writer = pq.ParquetWriter(
            self.path,
            self._schema,
            compression="zstd",
            use_dictionary=texts,
            column_encoding=dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
        )
        return self

    def add(self, frame: pl.DataFrame) -> None:
        """Append rows; the frame has the columns of the sheet, in any order."""
        self.rows += frame.height
        self._writer.write_table(_arrow(frame.select(self._empty.columns)).cast(self._schema))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()


def _arrow(frame: pl.DataFrame) -> Any:
    # Older Parquet readers know no string views, the newest form of text in Arrow.
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
