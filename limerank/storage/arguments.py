"""URIs as arguments: what a command or a function reads is fetched before it begins, and what it
writes is published when it has ended.

Between the two, it sees local paths only. Errors name the URI in place of the local path. What
reaches storages is imported when a URI is given.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from limerank.errors import FormatError, LimerankError, SpecError
from limerank.storage.uris import (
    Uri,
    as_given,
    in_terms_of_uris,
    is_uri,
    known_uri,
    local_path,
    parse_uri,
    remember,
)

if TYPE_CHECKING:
    from limerank.storage.manifest import Manifest

P = ParamSpec("P")
T = TypeVar("T")
RANK, WORLD, LOCAL = "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"
"""What torchrun gives each process: its number, and how many there are in all and here."""
INSIDE = re.compile(r"[a-z0-9]+://[^,\s]+")


class Use(Enum):
    """What is done with a path."""

    READ = "read"
    """A folder or file is read."""
    NEW_FOLDER = "new folder"
    """A folder is written; a killed command continues with it."""
    NEW_FILE = "new file"
    """A file is written; a killed command continues with it."""
    CHANGED = "changed"
    """A folder is changed: files in it are written to."""
    ADDED = "added"
    """Files are added to a folder, or replaced in it."""
    TEXT = "text"
    """A text contains paths that are read, separated by commas."""
    GIVEN = "given"
    """The function itself takes a URI."""


READ, NEW_FOLDER, NEW_FILE = Use.READ, Use.NEW_FOLDER, Use.NEW_FILE
CHANGED, ADDED = Use.CHANGED, Use.ADDED


@contextlib.contextmanager
def located(
    uses: Mapping[str, Use], values: Mapping[str, Any], *, quiet: bool = True
) -> Iterator[dict[str, Any]]:
    """Arguments with local paths in place of URIs; outputs are published when the block ends
    without an error.

    Args:
        uses: name of an argument -> what is done with the path, or with each of several.
        values: all arguments by name; ``overwrite`` among them allows that an output is replaced.
        quiet: show no progress.

    Raises:
        SpecError: a URI is not valid.
        StorageError: a storage cannot be reached, refuses, or lacks what is read.
        FormatError: an output is published already, and ``overwrite`` is not given.
    """
    from limerank.storage.manifest import MANIFEST

    found = dict(values)
    outputs: list[_Output] = []
    given = {name: use for name, use in uses.items() if _has_uri(values.get(name))}
    # Outputs first: a bucket that cannot be written to is better known before a long download.
    for name, use in sorted(given.items(), key=lambda one: one[1] in (Use.READ, Use.TEXT)):
        value = values[name]
        if use is Use.GIVEN:
            continue
        if use in (Use.READ, Use.TEXT):
            found[name] = _read(value, use, quiet)
            continue
        uri = parse_uri(as_given(value))
        if uri.scheme == "file" and not (local_path(uri) / MANIFEST).exists():
            found[name] = local_path(uri)
            continue
        outputs.append(_Output(uri, use, bool(values.get("overwrite")), quiet))
        found[name] = outputs[-1].path
    try:
        yield found
    except LimerankError as error:
        error.args = tuple(in_terms_of_uris(str(one)) for one in error.args)
        error.detail = in_terms_of_uris(error.detail)
        raise
    if os.environ.get(RANK, "0") == "0":
        for output in outputs:
            output.publish(quiet)


def with_uris(**uses: Use) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let arguments of a function be URIs; see :func:`located`.

    An object with a ``path`` may be given where a folder is changed: what was opened from a URI
    stands for it. The function has the uses as its attribute ``uris``.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind_partial(*args, **kwargs)
            for name in uses.keys() & bound.arguments.keys():
                if uses[name] is CHANGED:
                    bound.arguments[name] = _changeable(bound.arguments[name])
            if not any(_has_uri(bound.arguments.get(name)) for name in uses):
                return function(*bound.args, **bound.kwargs)
            quiet = bool(bound.arguments.get("quiet", True))
            with located(uses, bound.arguments, quiet=quiet) as found:
                bound.arguments.update(found)
                return function(*bound.args, **bound.kwargs)

        call.__dict__["uris"] = dict(uses)
        return call

    return decorate


def _changeable(value: Any) -> Any:
    """What is changed where a path, or what was opened from it, is given: a fetched folder is a
    copy in the cache that others read, and stands for its URI."""
    from limerank.storage.cache import is_fetched

    path = getattr(value, "path", value)
    if not isinstance(path, (str, os.PathLike)) or is_uri(path) or not is_fetched(path):
        return value
    uri = known_uri(path)
    if uri is None:
        raise FormatError(
            f"{path} is a fetched folder in the cache, which others read, and is not changed; give "
            "its URI, or copy it: limerank pull URI --out FOLDER"
        )
    return uri


def _has_uri(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_uri, value))
    return isinstance(value, (str, os.PathLike)) and bool(INSIDE.search(as_given(value)))


def _read(value: Any, use: Use, quiet: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return [_read(one, use, quiet) for one in value]
    if use is Use.TEXT:
        return INSIDE.sub(lambda uri: str(_read(uri[0], Use.READ, quiet)), value)
    if not is_uri(value):
        return Path(value)
    from limerank.storage.fetching import fetch

    return fetch(value, quiet=quiet)


class _Output:
    """A folder or file that is written locally and then published.

    Attributes:
        path: where it is written.
    """

    def __init__(self, uri: Uri, use: Use, overwrite: bool, quiet: bool) -> None:
        from limerank.storage.cache import Cache, key_of
        from limerank.storage.fetching import copied, fetch
        from limerank.storage.manifest import read_manifest
        from limerank.storage.publishing import require_free
        from limerank.storage.systems import require_writable

        self.uri, self.use = uri, use
        here, everywhere = os.environ.get(LOCAL), os.environ.get(WORLD)
        if here != everywhere:
            raise SpecError(
                f"{uri} is written by processes on several machines, of which each has files of "
                "its own; write to a folder that they share, then publish it: limerank publish "
                f"FOLDER {uri}"
            )
        self.old: Manifest | None = None
        if use is Use.NEW_FOLDER:
            self.old = require_free(uri, overwrite)
        elif use is Use.NEW_FILE:
            self._require_no_file(overwrite)
        if use is not Use.ADDED:
            require_writable(uri if use is not Use.NEW_FILE else uri.parent)
        self._cache = cache = Cache()
        self.folder = cache.work / key_of(uri)
        cache.hold(self.folder)
        self.path = self.folder / (uri.name or uri.host)
        if use in (Use.CHANGED, Use.ADDED):
            self.old = read_manifest(uri)
            source = fetch(uri.written(), quiet=quiet)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            copied(source, self.path, linked=use is Use.ADDED)
        else:
            self.folder.mkdir(exist_ok=True)
        remember(self.path, uri)

    def _require_no_file(self, overwrite: bool) -> None:
        self.overwrite = overwrite
        if self.uri.name.endswith((".parquet", ".csv", ".jsonl")):
            self._require_free(self.uri)

    def _require_free(self, uri: Uri) -> None:
        from limerank.storage.systems import entry_of

        if not self.overwrite and entry_of(uri):
            raise SpecError(f"{uri} exists; pass --overwrite or choose another URI")

    def publish(self, quiet: bool) -> None:
        """Publish it, unless nothing was written or changed, and remove the local copy."""
        from limerank.storage.publishing import publish_file, publish_folder

        if not self.path.exists():
            return
        if self.use is Use.NEW_FILE:
            # What is written beside it, such as a description, and then the file itself.
            beside = [
                path
                for path in sorted(self.folder.iterdir())
                if path.is_file() and path != self.path and not path.name.startswith(".")
            ]
            for path in beside:
                self._require_free(self.uri.parent.below(path.name))
            for path in beside:
                publish_file(path, self.uri.parent.below(path.name))
            publish_file(self.path, self.uri)
        else:
            publish_folder(self.path, self.uri, self.old, quiet=quiet)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._cache.release(self.folder)
