"""Fetching: what was published, or a file, from a storage into the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from limerank.errors import FormatError, StorageError
from limerank.files import check_folder, new_folder, writes_to
from limerank.progress import Bar
from limerank.storage.cache import Cache, key_of
from limerank.storage.logs import RemoteFile, sampled
from limerank.storage.manifest import MANIFEST, Manifest, StoredFile, read_manifest
from limerank.storage.systems import BLOCK, entry_of, open_file, reaching
from limerank.storage.uris import Uri, as_given, is_uri, local_path, parse_uri, remember, shown

THREADS = 8
"""Files that are fetched at the same time."""
ATTEMPTS = 2
"""To fetch a file whose bytes do not have its checksum."""

_one_at_a_time = threading.Lock()
"""Of the threads of this process; processes wait for each other by the lock of the entry."""


def fetch(uri: str | os.PathLike[str], *, quiet: bool = True) -> Path:
    """A published folder, or a file, as a local path.

    It is fetched into the cache (:mod:`limerank.storage.cache`) unless it is there, and every file
    of a folder is compared with its checksum. A fetch that was interrupted is continued. What is
    fetched stays while this process runs. A ``file://`` URI, and a path, are not copied.

    Args:
        uri: of a folder that :func:`publish` wrote, or of a file.
        quiet: show no progress.

    Returns:
        The path of the folder or file, which must not be written to. Its name is the last part of
        the URI.

    Raises:
        StorageError: the storage cannot be reached, has nothing there, or its bytes are damaged;
            or the cache is too small.
    """
    if not is_uri(uri):
        return Path(uri)
    where = parse_uri(as_given(uri))
    if where.scheme == "file" and not (local_path(where) / MANIFEST).exists():
        return local_path(where)
    manifest = read_manifest(where)
    if manifest is not None:
        return _fetched(where, manifest, [where.below(one.stored) for one in manifest.files], quiet)
    found = entry_of(where)
    if found is not None and not found.folder:
        name = where.name
        # The storage gives no checksum. Its times may be coarse: a sample tells versions apart that
        # were written one soon after another.
        now = RemoteFile(where, found.size, found.changed)
        version = key_of(where, found.size, found.changed, sampled(now))
        checksum = hashlib.sha256(version.encode()).hexdigest()
        one = Manifest((StoredFile(name, found.size, checksum),))
        return _fetched(where, one, [where], quiet, checked=False)
    raise StorageError(
        f"{where} is {'a folder that was not published' if found else 'not there'}: it has no "
        f"{MANIFEST}; publish a dataset, a run or an index with limerank publish FOLDER {where}, "
        "or check the name"
    )


def _fetched(
    uri: Uri, manifest: Manifest, sources: Sequence[Uri], quiet: bool, checked: bool = True
) -> Path:
    cache = Cache()
    name = uri.name or uri.host
    key = key_of(manifest.fingerprint, name)
    folder = cache.fetched / key
    with _one_at_a_time:
        while True:
            cache.hold(folder)
            if (path := cache.entry(key, name)) is not None:
                remember(path, uri)
                return path
            cache.release(folder)
            with cache.alone(folder):
                if cache.entry(key, name) is None:
                    cache.make_room(manifest.size, str(uri))
                    partial = folder.with_name(f"{key}.partial")
                    target = partial / name if checked else partial
                    _fetch_all(target, manifest, sources, cache, quiet, checked)
                    cache.commit(key, partial, manifest)


def _fetch_all(
    target: Path,
    manifest: Manifest,
    sources: Sequence[Uri],
    cache: Cache,
    quiet: bool,
    checked: bool,
) -> None:
    """Fetch the files that are not in ``target`` yet."""
    target.mkdir(parents=True, exist_ok=True)
    known = _known(cache) if checked else {}
    with (
        Bar("fetching", total=manifest.size, unit="bytes", quiet=quiet) as bar,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        pairs = zip(manifest.files, sources, strict=True)
        jobs = [pool.submit(_fetch, one, uri, target, known, checked) for one, uri in pairs]
        for job, one in zip(jobs, manifest.files, strict=True):
            try:
                job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            bar.advance(one.size)


def _known(cache: Cache) -> dict[tuple[str, int], Path]:
    """Files of all entries by checksum and size: one that two versions share is linked."""
    return {
        (file.sha256, file.size): one.path / file.path
        for one in cache.entries()
        if one.path.is_dir()
        for file in one.manifest.files
    }


def _fetch(
    file: StoredFile, uri: Uri, target: Path, known: dict[tuple[str, int], Path], checked: bool
) -> None:
    path = target / file.path
    if path.exists():
        return  # of a fetch that was interrupted: it was compared then
    path.parent.mkdir(parents=True, exist_ok=True)
    same = known.get((file.sha256, file.size))
    if same is not None:
        try:
            os.link(same, path)
            return
        except OSError:
            pass  # it was removed meanwhile, or the file system has no links
    part = path.with_name(f".{path.name}.part")
    for _ in range(ATTEMPTS):
        found = _receive(uri, part, file.size)
        if part.stat().st_size == file.size and (not checked or found == file.sha256):
            part.chmod(0o444)  # a change here would be one of every version that shares the file
            part.rename(path)
            return
        got = part.stat().st_size
        part.unlink()
    raise StorageError(
        f"{uri} is damaged: {got:,} bytes with the SHA-256 {found}, expected {file.size:,} bytes "
        f"with {file.sha256}; publish the folder again"
    )


def _receive(uri: Uri, part: Path, size: int) -> str:
    """Append what is missing of a file; returns the checksum of all its bytes.

    Raises:
        StorageError: the storage cannot be read.
        FormatError: ``part`` cannot be written.
    """
    digest = hashlib.sha256()
    with writes_to(part), open(part, "a+b") as out:
        out.seek(0)
        while block := out.read(BLOCK):
            digest.update(block)
        begin = out.tell()
        if begin < size:
            with open_file(uri) as source, reaching(uri, "reading it"):
                source.seek(begin)
                # A longer file is damaged: no more of it than shows that.
                while out.tell() <= size and (block := source.read(BLOCK)):
                    digest.update(block)
                    with writes_to(part):  # not an error of the storage
                        out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def pull(
    uri: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    quiet: bool = True,
) -> None:
    """Copy a published folder to ``out``, which appears, or is replaced, in one step.

    Raises:
        FormatError: ``out`` exists and ``overwrite`` is false.
        StorageError: as for :func:`fetch`.
    """
    check_folder(Path(out), overwrite=overwrite)
    where = parse_uri(as_given(uri))
    source = fetch(uri, quiet=quiet)
    published = where.scheme != "file" or (local_path(where) / MANIFEST).exists()
    if not source.is_dir() or not published:
        what = "is not there" if not source.exists() else "was not published"
        what = "is a file" if source.is_file() else what
        raise FormatError(
            f"{shown(uri)} {what}; expected a folder that limerank publish FOLDER URI wrote"
        )
    with new_folder(out, overwrite=overwrite) as folder:
        shutil.copytree(source, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)


def own_copy(path: Path) -> Path:
    """A copy of a fetched folder that this process may change: its files are links, which are
    replaced and never written to (:mod:`limerank.index.writing` does so). See :func:`discard`."""
    folder = Cache().new_own()
    own = folder / path.name
    copied(path, own, linked=True)
    (own / ".lock").unlink(missing_ok=True)  # a lock is of one folder
    return own


def discard(path: Path) -> None:
    """Remove what :func:`own_copy` made. What is mapped of it stays mapped."""
    Cache().remove_own(path.parent)


def copied(path: Path, target: Path, *, linked: bool) -> None:
    """A copy of a fetched folder that may be changed.

    Args:
        path: the fetched folder.
        target: the copy, which does not exist.
        linked: files are links, where the file system has them, which may be replaced but not
            written to.
    """
    if not path.is_dir():
        raise FormatError(f"{path} is a file, expected a folder")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(path, partial, copy_function=_linked if linked else shutil.copyfile)
    partial.rename(target)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
