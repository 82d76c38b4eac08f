"""Files of logs on a storage: found by name, pattern or folder, and opened for reading."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from limerank.errors import DataError
from limerank.storage import systems
from limerank.storage.systems import Entry
from limerank.storage.uris import Uri, parse_uri

SAMPLES = 8
"""Parts of a remote file that its fingerprint is computed from: the first, the last, and some
between them at equal distances."""
SAMPLE_BYTES = 1 << 16
WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a storage, as the readers of logs use it.

    Attributes:
        uri: where it is.
        size: bytes.
        changed: time of its last change, nanoseconds since 1970.
    """

    uri: Uri
    size: int
    changed: int

    def __str__(self) -> str:
        return str(self.uri)

    @property
    def name(self) -> str:
        """The name of the file, without folders."""
        return self.uri.name

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of its path."""
        return tuple(self.uri.path.split("/"))

    def now(self) -> RemoteFile | None:
        """The file as it is now; None: it is no longer there."""
        found = systems.entry_of(self.uri)
        return None if found is None or found.folder else _file(found)


LogPath = Path | RemoteFile
"""A file of a log: local, or on a storage."""


def size_of(path: LogPath) -> int:
    """Bytes of a file."""
    return path.size if isinstance(path, RemoteFile) else path.stat().st_size


class OpenFile:
    """A file of a log, open for reading at any position, in a ``with`` statement.

    Entering gives what libraries read from: a ``pyarrow.NativeFile``.
    """

    def __init__(self, path: LogPath) -> None:
        import pyarrow as pa

        self._file: Any
        if isinstance(path, RemoteFile):
            self._file = systems.open_file(path.uri)
        else:
            self._file = pa.OSFile(str(path), "rb")

    def __enter__(self) -> Any:
        return self._file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def open_stream(path: LogPath) -> Any:
    """A file of a log, open for reading from its beginning (``pyarrow.NativeFile``)."""
    import pyarrow as pa

    if isinstance(path, RemoteFile):
        return systems.open_stream(path.uri)
    return pa.OSFile(str(path), "rb")


def find_remote(pattern: str) -> tuple[list[RemoteFile], list[Uri]]:
    """The files and the folders that a URI with wildcards matches, by name.

    ``*``, ``?`` and ``[ab]`` match within one name, ``**`` matches any number of folders.

    Raises:
        SpecError: the URI is not valid.
        DataError: it contains a secret, which datasets would record.
        StorageError: the storage cannot be reached or refuses.
    """
    uri = parse_uri(pattern)
    if uri.secret:
        raise DataError(
            f"{uri} is given with a key or a secret, which the dataset would record; give "
            "credentials by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or by "
            "~/.aws/credentials"
        )
    found = sorted(_matches(uri), key=lambda one: one.uri.path)
    if not found:
        systems.require_bucket(uri)
    return [_file(one) for one in found if not one.folder], [one.uri for one in found if one.folder]


def files_below(folder: Uri) -> list[tuple[RemoteFile, tuple[str, ...]]]:
    """All files below a folder by name, and the parts of each path below the folder."""
    depth = len(folder.path.split("/")) if folder.path else 0
    return [
        (_file(one), tuple(one.uri.path.split("/")[depth:]))
        for one in systems.entries(folder, recursive=True)
        if not one.folder
    ]


def _matches(uri: Uri) -> Iterator[Entry]:
    parts = uri.path.split("/")
    wild = next((k for k, part in enumerate(parts) if WILD.search(part)), None)
    if wild is None:
        found = systems.entry_of(uri)
        if found is not None:
            yield found
        return
    yield from _matching(uri.with_path("/".join(parts[:wild])), parts[wild:])


def _matching(folder: Uri, parts: list[str]) -> Iterator[Entry]:
    """What is below a folder and matches the parts of a pattern, one of them for each level."""
    if "**" in parts:
        pattern = _expression(parts)
        begin = len(folder.path) + 1 if folder.path else 0
        for one in systems.entries(folder, recursive=True):
            if pattern.fullmatch(one.uri.path[begin:]):
                yield one
        return
    pattern = _expression(parts[:1])
    if not WILD.search(parts[0]):
        below = systems.entry_of(folder.below(parts[0]))
        found = [] if below is None else [below]
    else:
        found = [one for one in systems.entries(folder) if pattern.fullmatch(one.uri.name)]
    for one in found:
        if len(parts) == 1:
            yield one
        elif one.folder:
            yield from _matching(one.uri, parts[1:])


def _expression(parts: list[str]) -> re.Pattern[str]:
    """Parts of a pattern as a regular expression. Wildcards do not match a leading dot."""
    texts = []
    for k, part in enumerate(parts):
        if part == "**":
            texts.append(r"(?:(?!\.)[^/]+/)*" if k + 1 < len(parts) else r"(?:(?!\.)[^/]+/?)*")
            continue
        text, at = r"(?!\.)" if part[:1] in ("*", "?", "[") else "", 0
        while at < len(part):
            end = part.find("]", at + 2) if part[at] == "[" else -1
            if part[at] == "*":
                text += "[^/]*"
            elif part[at] == "?":
                text += "[^/]"
            elif end > 0:
                inner = part[at + 1 : end].replace("\\", "\\\\")
                text += f"[^{inner[1:]}]" if inner[0] == "!" else f"[{inner}]"
                at = end
            else:
                text += re.escape(part[at])
            at += 1
        texts.append(text + ("/" if k + 1 < len(parts) else ""))
    return re.compile("".join(texts))


def sampled(path: LogPath) -> str:
    """A fingerprint of a file: SHA-256 of its size and of some parts of it, in hex.

    It takes half a megabyte of reading, whatever the size is, and tells logs apart: the end of a
    Parquet file has the extremes of all its columns, lines of a log have times.
    """
    import hashlib

    size = size_of(path)
    found = hashlib.sha256(f"{size}:".encode())
    with OpenFile(path) as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            found.update(file.read())
        else:
            for k in range(SAMPLES):
                file.seek(k * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()


def _file(found: Entry) -> RemoteFile:
    return RemoteFile(found.uri, found.size, found.changed)
