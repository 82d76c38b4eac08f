"""Folders and files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limerank.errors import FormatError, LimerankError, with_article
from limerank.locks import LockedFile

if TYPE_CHECKING:
    import polars as pl

TABLE_ENDINGS = (".parquet", ".csv")
"""Endings of tables for readers; the ending of the name selects the format."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, quota or file system."""
CUT_SHORT = re.compile(r"[0-9]+ requested and [0-9]+ written")
"""NumPy's error where a file takes only a part of an array."""
TRIES = 20
"""Attempts to find a free name for a partial folder."""
_EXCHANGES = {"linux": ("renameat2", -100, 2), "darwin": ("renameatx_np", -2, 2)}
"""System -> the function that exchanges two names, its sign of the working directory, its flag."""


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str], *, overwrite: bool = False, mark: str | None = None
) -> Iterator[Path]:
    """A folder that appears under ``path`` only when the block ends without an error.

    The block writes into a sibling named ``.NAME.partial-TOKEN``, whose builder holds the lock file
    ``.NAME.partial-TOKEN.lock``. A killed process leaves both, but never a ``path`` that looks
    finished; the next call removes those whose lock no process holds. Locks, unlike process ids,
    are valid for all containers and hosts that share the folder; on a file system without locks
    nothing is removed. An error leaves nothing, not even the folders above ``path`` that were
    created for it.

    Args:
        path: the folder.
        overwrite: replace it where it exists.
        mark: a file that every such folder contains; a folder without it is not replaced.

    Raises:
        FormatError: ``path`` exists, at the start or at the end, and ``overwrite`` is false; it is
            not such a folder; a folder above it is a file, or cannot be written to; the disk is
            full.
    """
    path = Path(path)
    with writes_to(path):
        made = make_folder(path.parent)
        sweep_folder(path)
        check_folder(path, overwrite=overwrite, mark=mark)
        held, partial = _partial(path)
    failed = True
    try:
        try:
            yield partial
        except Exception as error:
            if isinstance(error, LimerankError) or (found := disk_error_of(error)) is None:
                raise
            raise _cannot_write(path, found) from None
        if path.exists() and not overwrite:
            raise FormatError(
                f"{path} was made by another process meanwhile, and is not replaced; pass "
                "--overwrite or choose another folder"
            )
        failed = False
        with writes_to(path):
            sync_folder(partial)
            _move(partial, path)
    finally:
        with contextlib.suppress(OSError):  # the next call removes what cannot be removed now
            _remove(held, partial)
        held.close()
        if failed:
            with contextlib.suppress(OSError):  # another process writes there meanwhile
                for above in reversed(made):
                    above.rmdir()


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, in one step: a killed process leaves it or none of it, and
    what it leaves beside it the next call removes, or :func:`new_folder` or :func:`sweep_folder`.

    Raises:
        FormatError: it cannot be removed.
    """
    with writes_to(path):
        sweep_folder(path)
        if not path.exists():
            return
        held, partial = _partial(path)
        try:
            path.rename(partial)  # an empty folder, which is replaced
            sync_directory(path.parent)
            _remove(held, partial)
        finally:
            held.close()


def check_folder(path: Path, *, overwrite: bool = False, mark: str | None = None) -> None:
    """Refuse a folder that :func:`new_folder` would refuse, before any work is done for it.

    Raises:
        FormatError: for the same reasons.
    """
    if path.is_file():
        raise FormatError(f"{path} is a file, expected a folder to write; choose another name")
    if path.exists() and not overwrite:
        raise FormatError(f"{path} already exists; pass --overwrite or choose another folder")
    marked = mark is None or not path.exists() or (path / mark).exists()
    if not marked and not (path.is_dir() and not any(path.iterdir())):
        raise FormatError(
            f"{path} has other contents (no {mark}) and is not replaced; choose another folder, "
            "or remove it yourself"
        )
    _check_writable(path)


def _partial(path: Path) -> tuple[LockedFile, Path]:
    """A new empty folder beside ``path``, and the lock of the process that fills it."""
    for partial in _free_names(path):
        held = LockedFile(partial.with_name(f"{partial.name}.lock"), new=True)
        try:
            # Another process may sweep between the creation of the file and its lock.
            if _taken(held):
                # A folder without its lock file would never be removed.
                sync_directory(path.parent)
                partial.mkdir()
                return held, partial
        except BaseException:
            with contextlib.suppress(OSError):
                held.unlink(missing_ok=True)
            held.close()
            raise
        held.close()
    raise FormatError(f"{path.parent} is swept by too many processes at once; try again")


def _free_names(path: Path) -> Iterator[Path]:
    """Names beside ``path`` for what is unfinished."""
    for _ in range(TRIES):
        yield path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


def _taken(held: LockedFile) -> bool:
    """:meth:`LockedFile.take`; on a file system without locks always true."""
    try:
        return held.take()
    except OSError:
        return True


def sweep_folder(path: Path) -> None:
    """Remove what killed processes left beside a folder that :func:`new_folder` makes or
    :func:`remove_folder` removes, and complete a replacement that was cut short.

    For commands that go on with a complete folder instead of making a new one: nothing else would
    remove what was left. Nothing is removed of a process that is alive, nor on a file system
    without locks.

    Args:
        path: the folder.

    Raises:
        OSError: what was left cannot be removed.
    """
    name = glob.escape(f".{path.name}.partial-")
    for file in path.parent.glob(f"{name}*.lock"):
        try:
            held = LockedFile(file, new=False)
        except FileNotFoundError:
            continue  # its process has finished
        try:
            if held.take():
                partial = file.with_suffix("")
                _put_back(partial.with_name(f"{partial.name}-old"), path)
                _remove(held, partial)
        except OSError:
            continue  # locks are not available
        finally:
            held.close()
    for old in path.parent.glob(f"{name}*-old"):  # of versions without lock files
        if not old.with_name(f"{old.name.removesuffix('-old')}.lock").exists():
            _put_back(old, path)


def _put_back(old: Path, path: Path) -> None:
    """Restore the replaced folder ``old`` where no new one is at ``path``; else remove it."""
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old)
    else:
        old.rename(path)
        sync_directory(path.parent)


def _remove(held: LockedFile, partial: Path) -> None:
    """Remove a folder, and then its lock file: without this, nothing would ever remove it."""
    if partial.exists():
        shutil.rmtree(partial)
        sync_directory(partial.parent)
    held.unlink(missing_ok=True)


def _move(partial: Path, path: Path) -> None:
    """Put a complete folder to its path; the folder that it replaces, if any, is at ``partial``
    afterwards."""
    if not path.exists():
        partial.rename(path)
        sync_directory(path.parent)
        return
    if not _exchanged(partial, path):
        # Between the two, a reader finds nothing, and the next call restores the old one.
        old = partial.with_name(f"{partial.name}-old")
        path.rename(old)
        sync_directory(path.parent)
        partial.rename(path)
        sync_directory(path.parent)
        old.rename(partial)
    sync_directory(path.parent)  # before the old one is removed


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where this system or file system cannot."""
    exchange = _EXCHANGES.get(sys.platform)
    if exchange is None:
        return False
    name, folders, flag = exchange
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if call is None:
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    done = call(folders, first, folders, second, ctypes.c_uint(flag))
    if not done:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextlib.contextmanager
def writes_to(path: Path) -> Iterator[None]:
    """Raise errors of the disk, in the block, as a FormatError that names what cannot be written.

    Args:
        path: the file or folder that the block writes.

    Raises:
        FormatError: in place of an OSError: the disk is full or fails, or the path cannot be
            written to.
    """
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from None


def disk_error_of(error: Exception) -> OSError | None:
    """What an error says of a disk that is full or fails; None for any other error.

    Libraries raise errors of the disk as errors of their own, with the number in their text, or as
    an OSError without a number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        plain = error.errno == errno.EIO and error.filename is None
        return error if error.errno in FULL or plain else None
    text = str(error)
    for code in (*FULL, errno.EIO):
        if f"os error {code})" in text or os.strerror(code) in text:
            return OSError(code, os.strerror(code))
    if isinstance(error, OSError) and CUT_SHORT.search(text):
        return OSError(errno.EIO, text)
    return None


def _cannot_write(path: Path, error: OSError) -> FormatError:
    """The error of an output that cannot be written, with the reason."""
    above = next((one for one in path.parents if one.exists()), path.parent)
    if not above.is_dir():
        return FormatError(f"{path} cannot be written: {above} is a file; choose another folder")
    if error.errno in FULL:
        return FormatError(
            f"{path} cannot be written: {error.strerror}; free space there, or choose another path"
        )
    if error.errno == errno.EIO:
        return FormatError(
            f"{path} cannot be written: {error.strerror}; check its disk, or choose another path"
        )
    return FormatError(
        f"{path} cannot be written: {error.strerror or error}; choose another path, or make "
        f"{above} writable"
    )


def check_output(path: str | os.PathLike[str], endings: Sequence[str] = ()) -> Path:
    """Refuse an output file that could not be written, before any work is done for it.

    Missing folders are created when it is written, see :func:`write_text`.

    Args:
        path: the file.
        endings: of its name that are valid, such as ``(".parquet", ".csv")``; a name without an
            ending means the first. Not given: all are valid.

    Raises:
        FormatError: the name has another ending, it is a folder, or it cannot be created there.
    """
    path = Path(path)
    if endings and path.suffix and path.suffix.lower() not in endings:
        raise FormatError(
            f"{path} is to be written as {' or '.join(endings)}, not as {path.suffix}; give it a "
            f"name that ends in {' or '.join(endings)}"
        )
    if path.is_dir():
        raise FormatError(f"{path} is a folder, expected a file to write")
    _check_writable(path)
    return path


def _check_writable(path: Path) -> None:
    """Refuse a path whose folder cannot be written to: a temporary file is created there."""
    above = next((one for one in path.parents if one.exists()), path.parent)
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from None


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file that appears under ``path`` in one step when the block ends without an error.

    The block writes to the sibling that it is given, which this process holds locked; missing
    folders above are created. A killed process leaves the sibling, which the next call removes.

    Raises:
        FormatError: the file cannot be written.
    """
    path = Path(path)
    with writes_to(path):
        make_folder(path.parent)
        _sweep_files(path)
        held, partial = _partial_file(path)
    try:
        try:
            yield partial
        except Exception as error:
            if isinstance(error, LimerankError) or (found := disk_error_of(error)) is None:
                raise
            raise _cannot_write(path, found) from None
        with writes_to(path):
            sync_file(partial)
            partial.replace(path)
            sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the next call removes what cannot be removed now
            partial.unlink(missing_ok=True)
        held.close()


def _partial_file(path: Path) -> tuple[LockedFile, Path]:
    """A new empty file beside ``path``, locked."""
    for partial in _free_names(path):
        held = LockedFile(partial, new=True)
        try:
            if _taken(held):
                return held, partial
        except FormatError:  # no locks: what others left is not removed either
            return held, partial
        held.close()
    raise FormatError(f"{path.parent} is swept by too many processes at once; try again")


def _sweep_files(path: Path) -> None:
    """Remove the files that killed processes left beside ``path``."""
    for file in path.parent.glob(glob.escape(f".{path.name}.partial-") + "*"):
        if file.suffix == ".lock" or file.is_dir():
            continue  # a folder's
        try:
            held = LockedFile(file, new=False)
        except FileNotFoundError:
            continue  # its process has finished
        try:
            if held.take():
                file.unlink(missing_ok=True)
        except (OSError, FormatError):
            continue  # locks are not available
        finally:
            held.close()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file in one step: a reader sees the old or the new text, never a mixture."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_table(frame: pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Replace a table in one step, as CSV where its name ends in ``.csv``, else as Parquet."""
    with new_file(path) as partial:
        if Path(path).suffix.lower() == ".csv":
            frame.write_csv(partial)
        else:
            frame.write_parquet(partial)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FormatError: the file is missing or is not a JSON object. ``what`` names the expected
            folder in the message, such as "a dataset".
    """
    path = Path(path)
    try:
        if path.exists():
            require_file(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path.parent} is not {what}: it has no {path.name}") from None
    except NotADirectoryError:
        raise FormatError(f"{path.parent} is a file, expected the folder of {what}") from None
    except OSError as error:
        raise FormatError(f"{path!s:.300} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8, or nested too deeply
        raise FormatError(f"{path} is damaged ({error}); make {what} again") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds {with_article(type(value).__name__)}, expected an object")
    return value


def require_file(path: Path) -> None:
    """Raise a FormatError where a path is not a regular file but, say, a pipe, which might never
    end."""
    if not path.is_file():
        raise FormatError(f"{path} is not a regular file")


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> list[Path]:
    """Create a folder and those above it where they are missing, so that they are durable; returns
    those that were created, the topmost one first."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in reversed(missing):
        sync_directory(one.parent)
    return missing[::-1]


def sync_folder(path: Path) -> None:
    """Make every file below ``path`` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync_file(Path(folder, name))
        sync_directory(Path(folder))


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable; an OSError names it."""
    _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable: those created, renamed or removed there; an OSError names
    it."""
    if os.name != "nt":  # Windows cannot open folders, and does not need this
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:  # of a descriptor, which has no name
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)
