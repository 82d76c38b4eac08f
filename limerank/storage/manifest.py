"""What is under the URI of a published folder.

::

    published.json           format, and the files of the folder: path, size, SHA-256
    files/SHA256/NAME        the bytes of each file, under their checksum

``published.json`` is written last and in one step. So a reader finds the version that was published
last, complete, whatever a publisher does at the time; one that is killed leaves files that no
version names. A file that a new version shares with an older one is not sent again. The files of
the version before the last one stay, for readers that began with it; older ones are removed by the
next publication.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from limerank.errors import FormatError
from limerank.storage.systems import entry_of, read
from limerank.storage.uris import Uri

FORMAT = 1
"""Version of this layout."""
MANIFEST = "published.json"
FILES = "files"
MOST_BYTES = 256 << 20
"""Of a manifest."""
CHECKSUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredFile:
    """A file of a published folder.

    Attributes:
        path: relative to the folder, with slashes.
        size: bytes.
        sha256: of its bytes, in hex.
    """

    path: str
    size: int
    sha256: str

    @property
    def stored(self) -> str:
        """Its path below the URI of the folder."""
        return f"{FILES}/{self.sha256}/{PurePosixPath(self.path).name}"


@dataclass(frozen=True)
class Manifest:
    """The files of a published folder, by their paths."""

    files: tuple[StoredFile, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the paths and checksums of all files, in hex."""
        text = json.dumps([asdict(one) for one in self.files])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files)

    def to_json(self) -> bytes:
        values = {"format": FORMAT, "files": [asdict(one) for one in self.files]}
        return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(uri: Uri) -> Manifest | None:
    """The version that is published under a URI; None: none is.

    Raises:
        FormatError: it is damaged, or of another format.
        StorageError: the storage cannot be reached or refuses.
    """
    position = uri.below(MANIFEST)
    if entry_of(position) is None:
        return None
    try:
        values = json.loads(read(position, MOST_BYTES))
    except ValueError as error:
        raise FormatError(f"{position} is damaged ({error}); publish the folder again") from None
    return parsed(values, str(position))


def parsed(values: Any, where: str) -> Manifest:
    """A manifest from its JSON form.

    Raises:
        FormatError: it is damaged, of another format, or names files outside of its folder.
    """
    format = values.get("format") if isinstance(values, Mapping) else None
    if format != FORMAT:
        raise FormatError(
            f"{where} has the format {format!r:.40}, expected {FORMAT}: another version of "
            "limerank published it; use that one, or publish the folder again"
        )
    try:
        files = tuple(
            StoredFile(str(one["path"]), int(one["size"]), str(one["sha256"]))
            for one in values["files"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where} is damaged ({error}); publish the folder again") from None
    for one in files:
        path = PurePosixPath(one.path)
        inside = path.parts and not path.is_absolute() and ".." not in path.parts
        if not inside or "\\" in one.path or one.size < 0 or not CHECKSUM.fullmatch(one.sha256):
            raise FormatError(
                f"{where} names the file {one.path!r:.80}, expected one inside its folder with a "
                "size and a SHA-256; do not use this folder, and publish it again"
            )
    if len({one.path for one in files}) < len(files):
        raise FormatError(f"{where} names a file twice; publish the folder again")
    return Manifest(tuple(sorted(files, key=lambda one: one.path)))
