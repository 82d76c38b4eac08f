"""Locks of files: they end with the process that holds them, and are valid for all processes,
containers and hosts that share the folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from limerank.errors import FormatError


class HeldError(FormatError):
    """Another process holds the lock."""


class LockedFile:
    """A file that this process has open, to be locked where the file system can.

    Args:
        path: the file.
        new: create it; it must not exist.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        self.path = path
        self.file = open(path, "x+" if new else "r+", encoding="utf-8")  # noqa: SIM115  # see close

    def take(self) -> bool:
        """Lock it: whether no other process holds it, and it is still the file of its name.

        Raises:
            OSError: the file system has no locks.
            FormatError: this operating system has none.
        """
        try:
            lock(self.file)
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except (BlockingIOError, FileNotFoundError):
            return False

    def unlink(self, missing_ok: bool = False) -> None:
        self.path.unlink(missing_ok=missing_ok)

    def close(self) -> None:
        self.file.close()


def lock(file: IO[Any] | int, *, wait: bool = False, shared: bool = False) -> None:
    """Lock an open file for this process until it is closed.

    Args:
        file: the file, or its descriptor.
        wait: wait while another process holds it.
        shared: other processes may hold it, too, if they share it.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
        OSError: the file system has no locks.
        FormatError: this operating system has no such locks (Windows).
    """
    try:
        import fcntl
    except ImportError:
        raise FormatError(
            "this operating system has no POSIX file locks, which preparing, training and indexing "
            "need: use Linux, macOS or WSL for them. Reading, evaluating and ranking do not"
        ) from None
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


@contextlib.contextmanager
def held_alone(path: str | os.PathLike[str], whose: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; the lock ends with the process.

    Args:
        path: the lock file.
        whose: what a process that holds it does; the message begins with it.
        wait: wait while another process holds it.

    Raises:
        HeldError: another process holds it, and ``wait`` is false.
        FormatError: the file cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context(open(path, "a+", encoding="utf-8"))
            try:
                lock(file, wait=wait)
            except BlockingIOError:
                file.seek(0)
                raise HeldError(
                    f"{whose} (process {file.read().strip() or 'unknown'}); wait for it or stop "
                    "it, or choose another folder"
                ) from None
            except OSError:
                pass  # a file system without locks
            file.truncate(0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        except OSError as error:
            raise FormatError(
                f"{path} cannot be written ({error.strerror or error}): it is the lock file of "
                "this folder; free space or check the disk, or make the folder writable"
            ) from None
        yield
