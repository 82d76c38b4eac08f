"""Folders and files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from limerank.errors import FormatError, with_article

if TYPE_CHECKING:
    import polars as pl

TABLE_ENDINGS = (".parquet", ".csv")
"""Endings of tables for readers; the ending of the name selects the format."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, quota or file system."""
TRIES = 20
"""Attempts to find a free name for a partial folder."""


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
    try:
        made = [above for above in path.parents if not above.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        check_folder(path, overwrite=overwrite, mark=mark)
        held, partial = _partial(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    failed = True
    try:
        try:
            yield partial
            if path.exists() and not overwrite:
                raise FormatError(
                    f"{path} was made by another process meanwhile, and is not replaced; pass "
                    "--overwrite or choose another folder"
                )
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno in FULL:
                raise _cannot_write(path, error) from None
            raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        failed = False
        sync_folder(partial)
        if path.exists():
            old = partial.with_name(f"{partial.name}-old")
            path.rename(old)
            partial.rename(path)
            _remove(old)
        else:
            partial.rename(path)
        sync_directory(path.parent)
    finally:
        held.unlink(missing_ok=True)
        held.close()
        if failed:
            with contextlib.suppress(OSError):  # another process writes there meanwhile
                for above in made:
                    above.rmdir()


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


class _Lock:
    """A lock file that this process has open, locked where the file system can."""

    def __init__(self, path: Path, *, new: bool) -> None:
        self.path = path
        self.file = open(path, "x+" if new else "r+", encoding="utf-8")  # noqa: SIM115  # see close

    def take(self) -> bool:
        """Whether no other process holds it, and it is still the file of its name.

        Raises:
            OSError: the file system has no locks.
        """
        lock(self.file)
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def unlink(self, missing_ok: bool = False) -> None:
        self.path.unlink(missing_ok=missing_ok)

    def close(self) -> None:
        self.file.close()


def lock(file: IO[Any] | int, *, wait: bool = False) -> None:
    """Lock an open file for this process until it is closed.

    Args:
        file: the file, or its descriptor.
        wait: wait while another process holds it.

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
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _partial(path: Path) -> tuple[_Lock, Path]:
    """A new empty folder beside ``path``, and the lock of the process that fills it."""
    for _ in range(TRIES):
        partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        held = _Lock(partial.with_name(f"{partial.name}.lock"), new=True)
        try:
            with contextlib.suppress(BlockingIOError):
                # Another process may sweep between the creation of the file and its lock.
                if _taken(held):
                    partial.mkdir()
                    return held, partial
        except BaseException:
            held.unlink(missing_ok=True)
            held.close()
            raise
        held.close()
    raise FormatError(f"{path.parent} is swept by too many processes at once; try again")


def _taken(held: _Lock) -> bool:
    """:meth:`_Lock.take`; on a file system without locks always true."""
    try:
        return held.take()
    except BlockingIOError:
        raise
    except OSError:
        return True


def _sweep(path: Path) -> None:
    """Remove what killed processes left beside ``path``, and complete a replacement that was cut
    short."""
    name = glob.escape(f".{path.name}.partial-")
    for file in path.parent.glob(f"{name}*.lock"):
        try:
            held = _Lock(file, new=False)
        except FileNotFoundError:
            continue  # its process has finished
        try:
            if not held.take():
                continue
            partial = file.with_suffix("")
            _put_back(partial.with_name(f"{partial.name}-old"), path)
            shutil.rmtree(partial, ignore_errors=True)
            held.unlink(missing_ok=True)
        except OSError:
            continue  # another process fills it, or locks are not available
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
        _remove(old)
    else:
        old.rename(path)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> FormatError:
    """The error of an output that cannot be written, with the reason."""
    above = next((one for one in path.parents if one.exists()), path.parent)
    if not above.is_dir():
        return FormatError(f"{path} cannot be written: {above} is a file; choose another folder")
    if error.errno in FULL:
        return FormatError(
            f"{path} cannot be written: {error.strerror}; free space there, or choose another path"
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
def held_alone(path: str | os.PathLike[str], whose: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; the lock ends with the process.

    Args:
        path: the lock file.
        whose: what a process that holds it does; the message begins with it.
        wait: wait while another process holds it.

    Raises:
        FormatError: another process holds it, and ``wait`` is false.
    """
    with open(path, "a+", encoding="utf-8") as file:
        try:
            lock(file, wait=wait)
        except BlockingIOError:
            file.seek(0)
            raise FormatError(
                f"{whose} (process {file.read().strip() or 'unknown'}); wait for it or stop it, "
                "or choose another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file that appears under ``path`` in one step when the block ends without an error.

    The block writes to the sibling that it is given; missing folders above are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


def sync_folder(path: Path) -> None:
    """Make every file below ``path`` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(folder))


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable: those created, renamed or removed there."""
    if os.name == "nt":
        return  # Windows cannot open folders, and does not need this
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
