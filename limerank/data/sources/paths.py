"""Files by name, pattern or folder; formats, compressions and partitions by their names."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path, PurePath
from urllib.parse import unquote

import polars as pl

from limerank.data.formats import FORMATS
from limerank.data.spec import EventSource, Table
from limerank.errors import DataError, SpecError
from limerank.storage.logs import LogPath, files_below, find_remote
from limerank.storage.uris import is_uri, local_path, parse_uri, shown

COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "zstd": "zstd", "bz2": "bz2"}
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""The folder of rows without a value, as Hive and Spark write it."""
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
Partitions = Mapping[str, pl.Series]
"""Name of a column that folders give -> its one value, in the type of the column."""


def find_files(source: EventSource | Table, base: Path) -> list[LogPath]:
    """The files of a source, in the order in which they are read.

    A name, or a pattern that matches no file, may match folders: all files of a known format below
    them are read, but for names that begin with ``_`` or a dot. Names and patterns may be URIs.

    Raises:
        DataError: a name or a pattern matches nothing.
        StorageError: a storage cannot be reached.
    """
    found: list[LogPath] = []
    for given in source.files:
        pattern = given
        if is_uri(given):
            uri = parse_uri(given)
            if uri.scheme != "file":
                found += _remote(given, source.format)
                continue
            pattern = str(local_path(uri))
        matches = [
            base / match for match in sorted(glob.glob(pattern, root_dir=base, recursive=True))
        ]
        files = [path for path in matches if path.is_file()]
        folders = [path for path in matches if path.is_dir()]
        if not files and folders:
            files = [path for folder in folders for path in _below(folder, source.format)]
            if not files:
                raise _nothing_below(str(base / pattern))
        if not files:
            raise DataError(
                f"no file matches {pattern!r} (looked for {base / pattern}); relative names are "
                "taken from the folder of the dataset description"
            )
        found += files
    return found


def _remote(pattern: str, given: str | None) -> list[LogPath]:
    """The files on a storage that a URI names or matches; those below folders where it matches no
    file."""
    files, folders = find_remote(pattern)
    if files:
        return list(files)
    found: list[LogPath] = []
    for folder in folders:
        below = files_below(folder)
        found += [file for file, parts in below if _readable(file, parts, given)]
    if folders and not found:
        raise _nothing_below(shown(pattern))
    if not found:
        raise DataError(
            f"no file matches {shown(pattern)!r}; check the name of the bucket and the path, such "
            f"as by listing {shown(parse_uri(pattern).parent)}"
        )
    return found


def _nothing_below(folder: str) -> DataError:
    endings = ", ".join(f".{ending}" for ending in _endings())
    return DataError(
        f"the folder {folder} holds no file to read; expected names that end in {endings}, or give "
        "the format"
    )


def _readable(path: LogPath, parts: Iterable[str], given: str | None) -> bool:
    """Whether a file below a folder is read; ``parts`` are those of its path below the folder."""
    if any(part.startswith(("_", ".")) for part in parts):
        return False
    return given is not None or _ending(path)[0] is not None


def _below(folder: Path, given: str | None) -> list[Path]:
    """The files below a folder that can be read, by name."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if _readable(path, path.relative_to(folder).parts, given) and path.is_file()
    ]


def _endings() -> dict[str, str]:
    """Ending -> format."""
    return {ending: name for name, one in FORMATS.items() for ending in one.endings}


def _ending(path: LogPath) -> tuple[str | None, str | None]:
    """Format and compression by the ending of a file's name; None: unknown."""
    parts = path.name.lower().split(".")[1:]
    compression = COMPRESSIONS.get(parts[-1]) if parts else None
    if compression:
        parts = parts[:-1]
    return _endings().get(parts[-1]) if parts else None, compression


def file_format(path: LogPath, given: str | None) -> tuple[str, str | None]:
    """Format (a key of ``FORMATS``) and compression (None: not compressed) of a file."""
    ending, compression = _ending(path)
    kind = given or ending
    if kind is None:
        raise SpecError(
            f"{path}: the ending names no known format; give format = "
            + " or ".join(f'"{name}"' for name in FORMATS)
        )
    return kind, compression


def partitions_of(paths: Sequence[LogPath], base: Path) -> list[Partitions]:
    """The columns that folders named ``key=value`` give the rows of each file of a source.

    A column has integers or dates where all its values in these files are written so (integers
    without leading zeros, dates as 2026-11-01), else text.

    Args:
        paths: the files of the source.
        base: folders above it give no columns, if a file is below it.
    """
    given = [_keys_of(path, base) for path in paths]
    types = {name: _type_of(name, given) for one in given for name in one}
    return [
        {
            name: pl.Series(name, [_typed(value, types[name])], types[name])
            for name, value in one.items()
        }
        for one in given
    ]


def _type_of(name: str, given: Sequence[Mapping[str, str | None]]) -> pl.DataType:
    values = {one[name] for one in given if name in one} - {None}
    texts = [value for value in values if value is not None]
    if texts and all(INTEGER.fullmatch(value) for value in texts):
        return pl.Int64()
    return pl.Date() if texts and all(map(_is_date, texts)) else pl.String()


def _is_date(text: str) -> bool:
    if DATE.fullmatch(text) is None:
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _typed(value: str | None, dtype: pl.DataType) -> int | date | str | None:
    if value is None or dtype == pl.String():
        return value
    return int(value) if dtype == pl.Int64() else date.fromisoformat(value)


def _keys_of(path: LogPath, base: Path) -> dict[str, str | None]:
    """Name -> value of the folders named ``key=value`` that a file is in."""
    parts = path.parts
    if isinstance(path, Path) and path.is_relative_to(base):
        parts = path.relative_to(base).parts
    found: dict[str, str | None] = {}
    for part in PurePath(*parts).parts[:-1]:
        key, equals, value = part.partition("=")
        if equals and key:
            found[unquote(key)] = None if value == NO_PARTITION else unquote(value)
    return found


def in_one_file(table: Table, path: LogPath) -> Table:
    """The layout of a table for another file of its rows; the ending gives the format."""
    kind, _ = _ending(path)
    own: dict[str, object] = {"files": (glob.escape(path.name),), "format": None}
    if kind in ("parquet", "jsonl"):  # their files name the columns
        own["columns"] = ()
    elif kind is None:
        own["format"] = table.format
    return table.model_copy(update=own)
