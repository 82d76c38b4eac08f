"""Files by name, pattern or folder; formats, compressions and partitions by their names."""

from __future__ import annotations

import glob
from pathlib import Path, PurePath
from urllib.parse import unquote

from limerank.data.formats import FORMATS
from limerank.data.spec import EventSource, Table
from limerank.errors import DataError, SpecError

COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "zstd": "zstd", "bz2": "bz2"}
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""The folder of rows without a value, as Hive and Spark write it."""


def find_files(source: EventSource | Table, base: Path) -> list[Path]:
    """The files of a source, in the order in which they are read.

    A name, or a pattern that matches no file, may match folders: all files of a known format below
    them are read, but for names that begin with ``_`` or a dot.

    Raises:
        DataError: a name or a pattern matches nothing.
    """
    found: list[Path] = []
    for pattern in source.files:
        matches = [
            base / match for match in sorted(glob.glob(pattern, root_dir=base, recursive=True))
        ]
        files = [path for path in matches if path.is_file()]
        folders = [path for path in matches if path.is_dir()]
        if not files and folders:
            files = [path for folder in folders for path in _below(folder, source.format)]
            if not files:
                endings = ", ".join(f".{ending}" for ending in _endings())
                raise DataError(
                    f"the folder {base / pattern} holds no file to read; expected names that end "
                    f"in {endings}, or give the format"
                )
        if not files:
            raise DataError(
                f"no file matches {pattern!r} (looked for {base / pattern}); relative names are "
                "taken from the folder of the dataset description"
            )
        found += files
    return found


def _below(folder: Path, given: str | None) -> list[Path]:
    """The files below a folder that can be read, by name."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(("_", ".")) for part in parts) or not path.is_file():
            continue
        kind, _ = _ending(path)
        if kind is not None or given is not None:
            found.append(path)
    return found


def _endings() -> dict[str, str]:
    """Ending -> format."""
    return {ending: name for name, one in FORMATS.items() for ending in one.endings}


def _ending(path: Path) -> tuple[str | None, str | None]:
    """Format and compression by the ending of a file's name; None: unknown."""
    parts = path.name.lower().split(".")[1:]
    compression = COMPRESSIONS.get(parts[-1]) if parts else None
    if compression:
        parts = parts[:-1]
    return _endings().get(parts[-1]) if parts else None, compression


def file_format(path: Path, given: str | None) -> tuple[str, str | None]:
    """Format (a key of ``FORMATS``) and compression (None: not compressed) of a file."""
    ending, compression = _ending(path)
    kind = given or ending
    if kind is None:
        raise SpecError(
            f"{path}: the ending names no known format; give format = "
            + " or ".join(f'"{name}"' for name in FORMATS)
        )
    return kind, compression


def partitions_of(path: Path, base: Path) -> dict[str, str | None]:
    """The values that folders named ``key=value`` give a file's rows (below ``base``, if it is)."""
    try:
        parts = path.relative_to(base).parts
    except ValueError:
        parts = path.parts
    found: dict[str, str | None] = {}
    for part in PurePath(*parts).parts[:-1]:
        key, equals, value = part.partition("=")
        if equals and key:
            found[unquote(key)] = None if value == NO_PARTITION else unquote(value)
    return found


def in_one_file(table: Table, path: Path) -> Table:
    """The layout of a table for another file of its rows; the ending gives the format."""
    kind, _ = _ending(path)
    own: dict[str, object] = {"files": (glob.escape(path.name),), "format": None}
    if kind in ("parquet", "jsonl"):  # their files name the columns
        own["columns"] = ()
    elif kind is None:
        own["format"] = table.format
    return table.model_copy(update=own)
