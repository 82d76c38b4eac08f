"""The cache: a folder of this machine with what was fetched from storages, bounded in size.

::

    fetched/KEY/NAME         a fetched folder or file, complete
    fetched/KEY.json         its files and their checksums; its time of change is its last use
    fetched/KEY.partial/     what was fetched of it so far
    work/KEY/NAME            an output that is published when it is complete
    work/own-TOKEN/NAME      a fetched index with the live items of one server
    *.lock                   held by the processes that use the entry beside it

An entry that no process uses is removed when another one needs its space, the one that was used
least recently first. ``LIMERANK_CACHE`` is the folder, ``LIMERANK_CACHE_SIZE`` the size, such as
``200GiB``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from limerank.errors import FormatError, SpecError, StorageError
from limerank.files import make_folder, read_json
from limerank.locks import lock
from limerank.storage.manifest import Manifest, parsed
from limerank.validation import memory_bytes

FOLDER, SIZE = "LIMERANK_CACHE", "LIMERANK_CACHE_SIZE"
SHARE = 0.5
"""Of its disk, that the cache takes at most where no size is given."""
WORK_SECONDS = 30 * 86_400
"""After so long, an unfinished output that nobody continued is removed."""

OWN = "own-"
"""How the names of folders begin that one process changes."""

_held: dict[Path, int] = {}
"""Descriptors of the lock files of the entries that this process uses; they are released when it
ends."""


@dataclass(frozen=True)
class Cached:
    """A fetched folder or file.

    Attributes:
        path: where it is.
        manifest: its files.
        used: when it was used last, seconds since 1970.
    """

    path: Path
    manifest: Manifest
    used: float


class Cache:
    """The cache of this machine.

    Raises:
        SpecError: ``LIMERANK_CACHE_SIZE`` is not an amount of memory.
        FormatError: its folder cannot be created.
    """

    def __init__(self) -> None:
        self.path = cache_folder()
        self.fetched, self.work = self.path / "fetched", self.path / "work"
        try:
            for folder in (self.fetched, self.work):
                make_folder(folder)
        except OSError as error:
            raise FormatError(
                f"{self.path} cannot be created ({error.strerror or error}): it is the cache for "
                f"what is fetched from storages; set {FOLDER} to a folder that can be written to"
            ) from None
        given = os.environ.get(SIZE)
        if given:
            try:
                self.limit = memory_bytes(given)
            except SpecError as error:
                raise SpecError(f"{SIZE}: {error}") from None
        else:
            self.limit = int(SHARE * shutil.disk_usage(self.path).total)

    def entries(self) -> list[Cached]:
        """All complete entries, those used least recently first."""
        found = []
        for file in self.fetched.glob("*.json"):
            with contextlib.suppress(FormatError, OSError, StopIteration):
                manifest = parsed(read_json(file, "an entry of the cache"), str(file))
                path = next(file.with_suffix("").iterdir())
                found.append(Cached(path, manifest, file.stat().st_mtime))
        return sorted(found, key=lambda one: one.used)

    def entry(self, key: str, name: str) -> Path | None:
        """A complete entry, which is used from now on; None: there is none."""
        record, path = self.fetched / f"{key}.json", self.fetched / key / name
        if not (record.exists() and path.exists()):
            return None
        os.utime(record)
        return path

    def commit(self, key: str, partial: Path, manifest: Manifest) -> None:
        """Make a fetched entry complete."""
        folder = self.fetched / key
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        record = self.fetched / f"{key}.json"
        new = record.with_suffix(".json.new")
        new.write_bytes(manifest.to_json())
        new.replace(record)

    def make_room(self, size: int, whose: str) -> None:
        """Remove entries until ``size`` more bytes are within the limit.

        Raises:
            StorageError: they are not, even without all entries that no process uses.
        """
        self._sweep_work()
        entries = self.entries()
        total = sum(one.manifest.size for one in entries)
        for one in entries:
            if total + size <= self.limit:
                return
            if self._remove(one.path.parent):
                total -= one.manifest.size
        if total + size > self.limit:
            raise StorageError(
                f"{whose} takes {size:,} bytes, and the cache {self.path} may have {self.limit:,}, "
                f"of which {total:,} are in use; set {SIZE} to a larger size such as 200GiB, or "
                f"{FOLDER} to a folder on a larger disk"
            )

    def _remove(self, folder: Path) -> bool:
        """Remove an entry, unless a process uses it."""
        with contextlib.suppress(BlockingIOError), open(f"{folder}.lock", "a+") as file:
            lock(file)
            (folder.parent / f"{folder.name}.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(f"{folder}.partial", ignore_errors=True)
            if folder.name.startswith(OWN):  # no other process ever waits for it
                Path(f"{folder}.lock").unlink(missing_ok=True)
            return True
        return False

    def new_own(self) -> Path:
        """A folder for a copy that this process changes, which is removed when no process uses it
        any more; those of processes that have ended are removed now."""
        self._sweep_work()
        folder = self.work / f"{OWN}{secrets.token_hex(8)}"
        self.hold(folder)
        folder.mkdir()
        return folder

    def remove_own(self, folder: Path) -> None:
        """Remove such a folder. What is mapped of it stays mapped."""
        self.release(folder)
        self._remove(folder)

    def _sweep_work(self) -> None:
        for folder in self.work.iterdir():
            if not folder.is_dir() or folder in _held:
                continue
            own = folder.name.startswith(OWN)
            if own or folder.stat().st_mtime < time.time() - WORK_SECONDS:
                self._remove(folder)

    @contextlib.contextmanager
    def alone(self, folder: Path) -> Iterator[None]:
        """Wait until no other process changes an entry, and change it alone."""
        with open(f"{folder}.lock", "a+") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                lock(file, wait=True)
            yield

    def hold(self, folder: Path) -> None:
        """Use an entry until this process ends: it is not removed before."""
        if folder not in _held:
            descriptor = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            with contextlib.suppress(OSError):
                lock(descriptor, wait=True, shared=True)
            _held[folder] = descriptor

    def release(self, folder: Path) -> None:
        """End the use of an entry."""
        if (descriptor := _held.pop(folder, None)) is not None:
            os.close(descriptor)


def cache_folder() -> Path:
    """The folder of the cache: ``LIMERANK_CACHE``, or the platform's folder for caches."""
    given = os.environ.get(FOLDER)
    if given:
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "limerank"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / "limerank" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limerank"


def is_fetched(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a fetched folder or file, or below one: its files must not be
    written to."""
    return (cache_folder() / "fetched").resolve() in Path(path).resolve().parents


def key_of(*parts: object) -> str:
    """The key of an entry."""
    return hashlib.sha256(json.dumps([str(one) for one in parts]).encode()).hexdigest()[:24]
