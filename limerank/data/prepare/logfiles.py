"""The files that a log's rows were read from: which are new, and which have changed since.

A dataset records each file with its size, its time of change and its checksum. Extending a dataset
reads only the files that are not recorded. A recorded file must be as it was: rows that were added
to it, or corrected in it, would be missed.

Of a file on a storage, not its bytes have the checksum but a sample of them: to read all of it once
more would take as long as to read the log.

A storage states the time of a change in seconds or milliseconds: a file that was read soon after it
was written may be written again with the same time. The sample of such a file is compared as well.
"""

from __future__ import annotations

import hashlib
import time
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
SOON_NS = 60 * 10**9
"""After a file on a storage was written, a later write may have the same time, by a coarse clock or
by one that differs from this machine's."""
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
        soon: it was read so soon after its last change that a later one may have the same time.
    """

    path: str
    size: int
    changed: int
    sha256: str | None = None
    soon: bool = False

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
            now = time.time_ns()
            if read.now() != read:
                return self
            soon = now - self.changed < SOON_NS
            return replace(self, sha256=_checksum(read, SAMPLED), soon=soon)
        path = Path(self.path)
        try:
            sha256 = checksum(path)
            same = LogFile.of(path) == self
        except OSError:
            same = False
        return replace(self, sha256=sha256) if same else self

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        found = asdict(self)
        if not self.soon:
            del found["soon"]
        return found


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
        unchanged = then.changed == now.changed
        if unchanged and not then.soon:
            return
        # A sample does not show that all bytes are the same.
        compared = unchanged or not isinstance(path, RemoteFile)
        if compared and _checksum(path, then.sha256) == then.sha256:
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
