"""The preloaded library: how it is compiled, what Python calls in it, and the records it writes.

A record is five unsigned 64-bit numbers (kind, two values, the lengths of two parts) and the parts.
Kinds:

    O  creation of a file: its inode, the path
    A  creation of a file without a name: its inode
    M  creation of a folder: its inode, the path
    Y  creation of a symbolic link: its inode, the path, the target
    W  write: inode, offset, the bytes
    T  change of size: inode, size
    S  synchronisation of a file or a folder: inode
    U  removal of a file or a folder: the path
    R  renaming: both paths
    X  exchange: both paths
    L  hard link: both paths
    N  a remark of the job
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")
BUILT = Path(__file__).parents[2] / "build" / "power"
HEAD = struct.Struct("=5Q")

CHANGES = "OTWSRXLYUM"
"""Kinds of calls that may fail with EIO: all that change something."""
GROWING = "OTWSRXLYM"
"""Kinds of calls that may fail with ENOSPC: all but removals."""


@dataclass(frozen=True)
class Call:
    """A record; see the module's text."""

    kind: str
    one: int
    two: int
    first: str
    second: bytes

    @property
    def text(self) -> str:
        """For messages: what was called, and on what."""
        if self.kind in "RXL":
            return f"{self.kind} {self.first} {os.fsdecode(self.second)}"
        return f"{self.kind} {self.first or self.one}" + (f" {self.two}" if self.two else "")


def available() -> bool:
    """Whether this machine can compile and preload the library."""
    return sys.platform == "linux" and compiler() is not None


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def compiled() -> Path:
    """The library, compiled where its source has changed."""
    found = compiler()
    assert found is not None, "available() says so"
    name = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    target = BUILT / f"shim-{name}.so"
    if not target.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-pthread"]
        subprocess.run(
            [found, *flags, str(SOURCE), "-o", str(partial), "-ldl"], check=True, text=True
        )
        partial.replace(target)
    return target


class Shim:
    """The library of this process, which has to be preloaded (``LD_PRELOAD``)."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.power_calls.restype = ctypes.c_long

    def record(self, folder: Path, log: Path) -> None:
        """Record what happens below a folder from now on."""
        done = self._library.power_watch(os.fsencode(folder), os.fsencode(log))
        assert not done, f"{log} cannot be written"

    def fail(
        self, folder: Path, at: int, error: int, *, later: bool = False, short: bool = False
    ) -> None:
        """Make the ``at``-th change below a folder fail (0: none, they are counted).

        Args:
            error: of :mod:`errno`.
            later: all later changes fail as well.
            short: a write that fails writes a half of its bytes first, and the next one fails.
        """
        kinds = GROWING if error == errno.ENOSPC else CHANGES
        self._library.power_watch(os.fsencode(folder), None)
        self._library.power_faults(kinds.encode(), at, error, int(later), int(short))

    def calls(self) -> int:
        """Changes since :meth:`fail`."""
        return int(self._library.power_calls())

    def note(self, text: str) -> None:
        """Record a remark."""
        self._library.power_note(text.encode())

    def off(self) -> None:
        """Neither record nor fail."""
        self._library.power_watch(None, None)


def calls_of(log: Path) -> Iterator[Call]:
    """The records of a file."""
    data, at = log.read_bytes(), 0
    while at < len(data):
        kind, one, two, first, second = HEAD.unpack_from(data, at)
        at += HEAD.size
        path = os.fsdecode(data[at : at + first])
        at += first
        yield Call(chr(kind), one, two, path, data[at : at + second])
        at += second
