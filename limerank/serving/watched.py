"""What a server watches: which run and index, or which arms, it is to serve.

- a folder with the links ``run`` and ``index``, or with ``arms.json``;
- a folder with the folders ``run`` and ``index``, which ``limerank pull`` replaces;
- a JSON file that names them;
- a URI under which a folder with ``run`` and ``index``, or with ``arms.json``, is published. A
  version is fetched into the cache by its checksums; its manifest is written last, so that no part
  of a version is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from limerank.data.exposures import ARMS_FILE, MAIN
from limerank.errors import FormatError, SpecError, StorageError
from limerank.files import require_file
from limerank.index.format import read_manifest as read_index
from limerank.runs.model import CHECKSUMS
from limerank.serving.answers import spec_of
from limerank.serving.arms import ArmSpec, one_arm
from limerank.serving.messages import ArmBody, Reload
from limerank.storage.cache import Cache
from limerank.storage.fetching import fetch
from limerank.storage.manifest import MANIFEST, read_manifest
from limerank.storage.uris import as_given, is_uri, local_path, parse_uri

WATCHED_BYTES = 64 << 10
"""Bytes of a watched file, at most."""
CONFIG_BYTES = 16 << 20
"""Bytes of a file that tells versions of a run apart, at most."""


class Watched(Protocol):
    """What is watched.

    Attributes:
        remote: whether a look asks a storage.
    """

    remote: bool

    def look(self) -> Any:
        """What is there now, as JSON values that differ when it differs; empty: nothing.

        Raises:
            LimerankError, OSError: it cannot be read.
        """

    def paths(self, *, quiet: bool = True) -> dict[str, Any]:
        """The local folders that it names; see :func:`wanted`.

        Args:
            quiet: show no progress of a fetch.

        Raises:
            LimerankError, OSError: they cannot be read or fetched.
        """

    def served(self) -> None:
        """The latest :meth:`paths` are served, and none of the earlier ones."""


def watch_of(given: str | os.PathLike[str]) -> Watched:
    """What a path or a URI names.

    Raises:
        SpecError: the URI is not valid.
    """
    if not is_uri(given):
        return LocalWatch(Path(given).absolute())
    uri = parse_uri(as_given(given))
    if uri.scheme == "file":
        folder = local_path(uri)
        if folder.exists() and not (folder / MANIFEST).exists():
            return LocalWatch(folder)
    return StoredWatch(as_given(given))


class LocalWatch:
    """A folder or a file of this machine."""

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def look(self) -> Any:
        found = self.paths()
        version = _version_of(self.path, found)
        return {**found, "version": version} if version else found

    def paths(self, *, quiet: bool = True) -> dict[str, Any]:
        return wanted(self.path)

    def served(self) -> None:
        pass


class StoredWatch:
    """A folder that is published under a URI.

    What is served, and what is tried after it, stays in the cache; earlier versions may leave it.
    """

    remote = True

    def __init__(self, given: str) -> None:
        self.given = given
        self.uri = parse_uri(given)
        self._seen = False
        self._fetched: Path | None = None
        self._served: Path | None = None

    def look(self) -> Any:
        manifest = read_manifest(self.uri)
        if manifest is None and self._seen:
            raise StorageError(
                f"{self.uri} has no {MANIFEST} any more, and is watched; publish the live run and "
                "index there again"
            )
        if manifest is None:
            return {}
        self._seen = True
        return {"version": manifest.fingerprint}

    def paths(self, *, quiet: bool = True) -> dict[str, Any]:
        if read_manifest(self.uri) is None:
            raise StorageError(
                f"nothing is published under {self.uri}, which is watched; publish a folder with "
                "run and index there (limerank publish FOLDER URI), or check the name"
            )
        folder = fetch(self.given, quiet=quiet)
        if self._fetched not in (None, folder, self._served):
            _release(self._fetched)
        self._fetched = folder
        found = wanted(folder)
        if "arms" not in found and found.keys() != {"run", "index"}:
            raise FormatError(
                f"{self.uri} has {' and '.join(found) or 'neither run nor index'}, expected a "
                f"folder published with run and index, or {ARMS_FILE}: limerank publish DIR URI, "
                "or `to` in [publish] of the daily loop"
            )
        for name, arm in found.get("arms", {}).items():
            if not arm.get("interleave") and not (arm["run"] and arm["index"]):
                raise FormatError(
                    f"{ARMS_FILE} of {self.uri} has the arm {name!r} without a run or an index, "
                    "expected both: those of an earlier version may leave the cache; publish "
                    "folders for it"
                )
        return found

    def served(self) -> None:
        if self._served not in (None, self._fetched):
            _release(self._served)
        self._served = self._fetched


def look_at(watched: Watched | None) -> Any:
    """What is there now, or the text of the error of looking, for comparison. Raises nothing."""
    try:
        return {} if watched is None else watched.look()
    except BaseException as error:  # noqa: BLE001  (the next look raises it again)
        return repr(error)


def _release(folder: Path | None) -> None:
    """Let a fetched folder leave the cache. What is mapped of it stays mapped."""
    if folder is not None:
        Cache().release(folder.parent)


def _version_of(watch: Path, found: dict[str, Any]) -> str:
    """Tells contents apart of runs and indexes that are folders in a watched one, which a new one
    replaces under the same path; empty where there are none, but links. Live items, which servers
    write into an index, are no other version."""
    if watch.is_symlink() or not watch.is_dir():
        return ""
    folder, digest = watch.resolve(), hashlib.sha256()
    arms = found.get("arms", {MAIN: found})
    named = [(name, Path(arm[name])) for arm in arms.values() for name in arm if arm[name]]
    inside = [
        (name, path)
        for name, path in named
        if name in ("run", "index") and folder in path.parents and path.is_dir()
    ]
    for name, path in inside:
        if name == "index":
            manifest = read_index(path)
            values = [manifest[key] for key in ("fingerprint", "built")]
            digest.update(json.dumps([*values, manifest["files"]["vectors.f32"]["file"]]).encode())
            continue
        for file in ("config.json", CHECKSUMS):
            if (path / file).exists():
                digest.update(_bytes_of(path / file, CONFIG_BYTES))
    return digest.hexdigest() if inside else ""


def _bytes_of(file: Path, most: int) -> bytes:
    require_file(file)
    with open(file, "rb") as opened:
        return opened.read(most)


def arms_at_start(watch: Path | None) -> tuple[ArmSpec, ...]:
    """The arms that a watched folder names, for a server that starts during a rollout; none where
    it names a run and an index.

    Raises:
        See :func:`wanted`.
    """
    if watch is None or not watch.is_dir():
        return ()
    return _arms_of(wanted(watch))


def first_arms(watched: Watched | None, arms: tuple[ArmSpec, ...]) -> tuple[ArmSpec, ...]:
    """The arms that a server begins with.

    Args:
        watched: what it watches. The arms of a folder of this machine take the place of ``arms``;
            a storage is asked only where there are none, so that a server starts without it.
        arms: as they were given.

    Raises:
        SpecError: neither names a run and an index.
        LimerankError: what is watched cannot be read or fetched.
    """
    if watched is None or (arms and watched.remote):
        return arms
    if isinstance(watched, LocalWatch):
        arms = arms_at_start(watched.path) or arms
    if arms:
        return arms
    found = watched.paths(quiet=False)
    watched.served()
    if "run" in found and "index" in found:
        return one_arm(Path(found["run"]), Path(found["index"]))
    if arms := _arms_of(found):
        return arms
    raise SpecError(
        "what is watched names no run and index yet: give --run and --index, which are served "
        "until it does"
    )


def _arms_of(found: dict[str, Any]) -> tuple[ArmSpec, ...]:
    named = found.get("arms", {})
    return tuple(spec_of(name, ArmBody.model_validate(of)) for name, of in named.items())


def wanted(watch: Path | None) -> dict[str, Any]:
    """Paths of the run and the index that a watched folder or file names, or its arms.

    Raises:
        SpecError: the file is not a JSON object of paths.
        FormatError, OSError: it cannot be read.
    """
    if watch is None or not watch.exists():
        return {}
    if watch.is_dir():
        folder = watch.resolve()  # once: what is read of it belongs together
        if (folder / ARMS_FILE).exists():
            arms = wanted(folder / ARMS_FILE)["arms"]
            for arm in arms.values():
                arm |= {
                    name: str((folder / arm[name]).resolve())
                    for name in ("run", "index")
                    if arm[name] is not None
                }
            return {"arms": arms}
        links = {name: folder / name for name in ("run", "index")}
        return {name: str(link.resolve()) for name, link in links.items() if link.exists()}
    require_file(watch)
    with open(watch, "rb") as file:
        data = file.read(WATCHED_BYTES + 1)
    try:
        found = json.loads(data[:WATCHED_BYTES].decode())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{watch} is not JSON: {error}") from None
    if isinstance(found, dict) and set(found) == {"arms"}:
        try:
            return {"arms": Reload.model_validate(found).model_dump()["arms"]}
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise SpecError(f"{watch}: {where}: {first['msg']}") from None
    if (
        not isinstance(found, dict)
        or set(found) - {"run", "index"}
        or not all(isinstance(path, str) and path for path in found.values())
    ):
        raise SpecError(
            f'{watch} contains {found!r:.100}, expected {{"run": PATH, "index": PATH}} or one'
        )
    return found
