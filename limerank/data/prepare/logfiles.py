"""The files that a log's rows were read from: which are new, and which have changed since.

A dataset records each file with its size, its time of change and its checksum. Extending a dataset
reads only the files that are not recorded. A recorded file must be as it was: rows that were added
to it, or corrected in it, would be missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from limerank.errors import DataError
from limerank.files import checksum

FORMAT = 1
"""Version of the folder ``log`` of a dataset and of the part ``log`` of its manifest."""


@dataclass(frozen=True)
class LogFile:
    """A file of a log as it was when it was read.

    Attributes:
        path: absolute.
        size: bytes.
        changed: time of its last change, nanoseconds since 1970.
        sha256: of its bytes, in hex; None: it changed while it was read.
    """

    path: str
    size: int
    changed: int
    sha256: str | None = None

    @classmethod
    def of(cls, path: Path) -> LogFile:
        """The file as it is now, without its checksum."""
        found = path.stat()
        return cls(str(path.resolve()), found.st_size, found.st_mtime_ns)

    def sealed(self) -> LogFile:
        """The same with its checksum, which has to be computed after it was read."""
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


def new_files(paths: Sequence[Path], known: Sequence[LogFile], dataset: Path) -> list[Path]:
    """Those of the files of a source that were not read yet, in their order.

    A file that was moved or copied since is recognised by its size and checksum.

    Args:
        paths: the files of the source today.
        known: those that were read.
        dataset: that was prepared from them, for messages.

    Raises:
        DataError: a file changed since it was read.
    """
    by_path = {one.path: one for one in known}
    by_content = {(one.size, one.sha256) for one in known}
    sizes = {one.size for one in known}
    found: list[Path] = []
    for path in paths:
        now, then = LogFile.of(path), by_path.get(str(path.resolve()))
        if then is not None:
            same = (now.size, now.changed) == (then.size, then.changed)
            if then.sha256 is None or not (same or now.size == then.size):
                raise _changed(path, then, now, dataset)
            if not same and checksum(path) != then.sha256:
                raise _changed(path, then, now, dataset)
        elif now.size not in sizes or (now.size, checksum(path)) not in by_content:
            found.append(path)
    return found


def _changed(path: Path, then: LogFile, now: LogFile, dataset: Path) -> DataError:
    how = f"it had {then.size:,} bytes and has {now.size:,}"
    if then.size == now.size:
        how = "its bytes differ"
    if then.sha256 is None:
        how = "it was written to while it was read"
    return DataError(
        f"{path} has changed since {dataset} was prepared ({how}): a file that was read must stay "
        "as it is. Write later rows to a new file; or prepare the full log with the same codes: "
        f"--encoding {dataset}"
    )
