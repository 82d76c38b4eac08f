"""Folders and files that are either whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limerank.errors import FormatError


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears under ``path`` only when the block ends without an error.

    The block writes into a sibling named ``.NAME.partial-PID``. A kill leaves that sibling (the
    next call sweeps away those whose process is gone) and never a ``path`` that looks finished.

    Raises:
        FormatError: ``path`` exists and ``overwrite`` is false.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    if path.exists() and not overwrite:
        raise FormatError(f"{path} already exists; pass --overwrite or choose another folder")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(partial)
    if path.exists():
        old = path.with_name(f".{path.name}.partial-{os.getpid()}-old")
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(path)
    sync_directory(path.parent)


@contextlib.contextmanager
def held_alone(path: str | os.PathLike[str], whose: str) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; a process that dies lets go of it.

    Raises:
        FormatError: another process holds it. ``whose`` says in the message what that one does.
    """
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FormatError(
                f"{whose} (process {file.read().strip() or 'unknown'}); wait for it or stop it, "
                "or choose another folder"
            ) from None
        except OSError:
            pass  # a file system without locks: nobody can be kept away
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never a mixture."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FormatError: the file is missing or is not a JSON object. ``what`` names in the message
            what the folder was expected to be, such as "a dataset".
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path.parent} is not {what}: it holds no {path.name}") from None
    except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8, or absurdly deep
        raise FormatError(f"{path} is damaged ({error}); make {what} anew") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make every file below ``path`` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(folder))


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable: what was created, renamed or removed there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove what killed processes left beside ``path``; put back an old folder in mid-swap."""
    for partial in path.parent.glob(f".{path.name}.partial-*"):
        pid = partial.name.rsplit("partial-", 1)[1].removesuffix("-old")
        if pid.isdigit() and not _alive(int(pid)):
            if partial.name.endswith("-old") and not path.exists():
                partial.rename(path)
            else:
                shutil.rmtree(partial, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
