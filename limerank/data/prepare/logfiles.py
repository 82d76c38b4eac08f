"""The files that a log's rows were read from: which are new, and which have changed since.

A dataset records each file with its size, its time of change and its checksum. Extending a dataset
reads only the files that are not recorded. A recorded file must be as it was: rows that were added
to it, or corrected in it, would be missed.

Of a file on a storage, not its bytes have the checksum but a sample of them: to read all of it once
more would take as long as to read the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from limerank.errors import DataError
from limerank.files import checksum
from limerank.storage.logs import LogPath, RemoteFile, open_stream, sampled
from limerank.storage.systems import BLOCK
from limerank.storage.uris import is_uri, parse_uri

SAMPLED = "sample:"
"""Begins the checksum of a sample (:func:`limerank.storage.logs.sampled`)."""
FORMAT = 1
"""Version of the folder ``log`` of a dataset and of the part ``log`` of its manifest."""


@dataclass(frozen=True)
class LogFile:
    """A file of a log as it was when it was read.

    Attributes:
        path: absolute, or a URI with its query.
        size: bytes.
        changed: time of its last change, nanoseconds since 1970.
        sha256: of its bytes, in hex, or of a sample of them; None: it changed while it was read.
    """

    path: str
    size: int
    changed: int
    sha256: str | None = None

    @classmethod
    def of(cls, path: LogPath) -> LogFile:
        """The file as it is now (on a storage: as it was when it was found), without its
        checksum."""
        if isinstance(path, RemoteFile):
            return cls(path.uri.written(), path.size, path.changed)
        found = path.stat()
        return cls(str(path.resolve()), found.st_size, found.st_mtime_ns)

    @property
    def key(self) -> str:
        """What tells it from other files: its path, or its URI without the query, so that another
        endpoint is the same storage."""
        return str(parse_uri(self.path)) if is_uri(self.path) else self.path

    def sealed(self) -> LogFile:
        """The same with its checksum, which has to be computed after it was read."""
        if is_uri(self.path):
            read = RemoteFile(parse_uri(self.path), self.size, self.changed)
            same = read.now() == read
            sha256 = _checksum(read, SAMPLED) if same else ""
            return replace(self, sha256=sha256) if same else self
        path = Path(self.path)
        try:
            sha256 = checksum(path)
            same = LogFile.of(path) == self
        except OSError:
            same = False
        return replace(self, sha256=sha256) if same else self

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return asdict(self)


def sealed(files: Sequence[Sequence[LogFile]]) -> list[list[LogFile]]:
    """The files of each source with their checksums."""
    return [[one.sealed() for one in of] for of in files]


def new_files(paths: Sequence[LogPath], known: Sequence[LogFile], dataset: Path) -> list[LogPath]:
    """Those of the files of a source that were not read yet, in their order.

    A file that was moved or copied since, such as to a storage, is recognised by its size and
    checksum.

    Args:
        paths: the files of the source today.
        known: those that were read.
        dataset: that was prepared from them, for messages.

    Raises:
        DataError: a file changed since it was read.
    """
    by_key = {one.key: one for one in known}
    by_size: dict[int, set[str]] = {}
    for one in known:
        if one.sha256 is not None:
            by_size.setdefault(one.size, set()).add(one.sha256)
    found: list[LogPath] = []
    for path in paths:
        now = LogFile.of(path)
        then = by_key.get(now.key)
        if then is not None:
            _require_same(path, then, now, dataset)
        elif not any(_checksum(path, one) == one for one in by_size.get(now.size, ())):
            found.append(path)
    return found


def _require_same(path: LogPath, then: LogFile, now: LogFile, dataset: Path) -> None:
    """Refuse a file that changed since it was read."""
    if then.sha256 is not None and then.size == now.size:
        if then.changed == now.changed:
            return
        # A sample does not show that all bytes are the same.
        if not isinstance(path, RemoteFile) and _checksum(path, then.sha256) == then.sha256:
            return
    raise _changed(path, then, now, dataset)


def _checksum(path: LogPath, like: str) -> str:
    """The checksum of a file: that of a sample, or of all bytes, as ``like`` is."""
    if like.startswith(SAMPLED):
        return SAMPLED + sampled(path)
    if isinstance(path, RemoteFile):
        digest = hashlib.sha256()
        with open_stream(path) as file:
            while block := file.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()
    return checksum(path)


def _changed(path: LogPath, then: LogFile, now: LogFile, dataset: Path) -> DataError:
    how = f"it had {then.size:,} bytes and has {now.size:,}"
    if then.size == now.size:
        how = "its bytes differ"
        if isinstance(path, RemoteFile):
            how = "it was written again"
    if then.sha256 is None:
        how = "it was written to while it was read"
    return DataError(
        f"{path} has changed since {dataset} was prepared ({how}): a file that was read must stay "
        "as it is. Write later rows to a new file; or prepare the full log with the same codes: "
        f"--encoding {dataset}"
    )
