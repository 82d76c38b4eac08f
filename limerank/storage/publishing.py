"""Publishing: a local folder or file to a storage."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from limerank.errors import FormatError, StorageError
from limerank.files import checksum
from limerank.progress import Bar
from limerank.storage.manifest import FILES, MANIFEST, Manifest, StoredFile, read_manifest
from limerank.storage.systems import BLOCK, Entry, entries, entry_of, remove, write
from limerank.storage.uris import Uri, as_given, parse_uri

THREADS = 8
"""Files that are sent at the same time."""
UNUSED_SECONDS = 86_400
"""After so long, a file is removed that neither the last version nor the one before it names: what
a killed publisher left, or of an older version."""
KINDS = {"dataset.json": "a dataset", "config.json": "a run", "manifest.json": "an index"}
"""The file that is in every such folder."""


def publish(
    folder: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    quiet: bool = True,
) -> None:
    """Publish a folder, such as a dataset, a run or an index, under a URI.

    A reader finds the new version when it is complete, and until then the old one. Files that are
    there already are not sent again, so that the same call continues a publication that was
    killed. The layout is described in :mod:`limerank.storage.manifest`.

    Args:
        folder: a local folder. Hidden files in it are left out. Links in it, such as ``run`` and
            ``index`` of a folder that a server watches, are published as what they lead to.
        uri: ``s3://BUCKET/PATH`` or of another storage.
        overwrite: replace what was published there.
        quiet: show no progress.

    Raises:
        FormatError: something was published there and ``overwrite`` is false, or it is of another
            kind; the folder is missing, or changes meanwhile.
        StorageError: the storage cannot be reached or refuses.
    """
    where = parse_uri(as_given(uri))
    publish_folder(Path(folder), where, require_free(where, overwrite), quiet=quiet)


def require_free(uri: Uri, overwrite: bool) -> Manifest | None:
    """The version that is published under a URI, which may be replaced; None: there is none.

    Raises:
        FormatError: there is one, and ``overwrite`` is false.
    """
    old = read_manifest(uri)
    if old is not None and not overwrite:
        raise FormatError(f"{uri} is published already; pass --overwrite or choose another URI")
    return old


def publish_folder(
    folder: Path,
    uri: Uri,
    old: Manifest | None,
    *,
    only: Sequence[str] | None = None,
    quiet: bool,
) -> Manifest:
    """Publish a folder, or ``only`` these of the folders in it, in place of the version ``old``;
    returns the new one."""
    manifest = manifest_of(folder, only)
    if manifest == old:
        return manifest
    kind, was = kind_of(manifest), None if old is None else kind_of(old)
    if old is not None and kind != was:
        raise FormatError(
            f"{uri} is {was or 'another folder'}, and is not replaced by {kind or 'a folder'}; "
            "choose another URI"
        )
    stored = {one.uri.path: one.size for one in _stored(uri)}
    wanted = {uri.below(one.stored).path: one for one in manifest.files}
    todo = [one for path, one in wanted.items() if stored.get(path) != one.size]
    with (
        Bar("publishing", total=sum(one.size for one in todo), unit="bytes", quiet=quiet) as bar,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for one in pool.map(lambda one: _send(folder, one, uri), todo):
            bar.advance(one.size)
    now = {one.uri.path: one.size for one in _stored(uri)}
    missing = [path for path, one in wanted.items() if now.get(path) != one.size]
    if missing:
        raise StorageError(
            f"{uri} lacks {len(missing)} files that were sent, such as {missing[0]}: another "
            "process removed them, or the storage lost them; publish again"
        )
    if read_manifest(uri) != old:
        raise FormatError(
            f"{uri} was published by another process meanwhile, and is not replaced; let one "
            "process publish to a URI, and try again"
        )
    write(uri.below(MANIFEST), [manifest.to_json()])
    _sweep(uri, manifest, old)
    return manifest


def manifest_of(folder: Path, only: Sequence[str] | None = None) -> Manifest:
    """The files of a local folder, or of ``only`` these of the folders in it, with checksums."""
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected a dataset, a run or an index")
    files = []
    # A link to a folder is followed here, and not below: links there may lead in a circle.
    linked = [path for one in folder.iterdir() if one.is_symlink() for path in one.rglob("*")]
    for path in sorted([*folder.rglob("*"), *linked]):
        relative = path.relative_to(folder)
        if only is not None and relative.parts[0] not in only:
            continue
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            files.append(StoredFile(relative.as_posix(), path.stat().st_size, checksum(path)))
    if not files:
        raise FormatError(f"{folder} has no files; expected a dataset, a run or an index")
    return Manifest(tuple(sorted(files, key=lambda one: one.path)))


def kind_of(manifest: Manifest) -> str | None:
    """What a published folder is, such as "a run"; None: something else."""
    names = {one.path for one in manifest.files}
    return next((kind for mark, kind in KINDS.items() if mark in names), None)


def publish_file(path: Path, uri: Uri) -> None:
    """Write a local file under a URI, in one step."""
    write(uri, _blocks(path))


def _stored(uri: Uri) -> list[Entry]:
    folder = uri.below(FILES)
    if entry_of(folder) is None:
        return []
    return [one for one in entries(folder, recursive=True) if not one.folder]


def _send(folder: Path, file: StoredFile, uri: Uri) -> StoredFile:
    digest = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for block in _blocks(folder / file.path):
            digest.update(block)
            yield block
        if digest.hexdigest() != file.sha256:
            raise FormatError(
                f"{folder / file.path} changed while it was published; publish the folder when "
                "nothing writes to it"
            )

    write(uri.below(file.stored), blocks())
    return file


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def _sweep(uri: Uri, *versions: Manifest | None) -> None:
    """Remove files that no version names any more."""
    named = {
        uri.below(one.stored).path
        for version in versions
        if version is not None
        for one in version.files
    }
    limit = (time.time() - UNUSED_SECONDS) * 1e9
    for one in _stored(uri):
        if one.uri.path not in named and one.changed < limit:
            with contextlib.suppress(StorageError):  # the next publication removes it
                remove(one.uri)
