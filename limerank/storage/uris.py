"""URIs of storages: their parts, and how messages show them, without secrets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import parse_qsl, unquote

from limerank.errors import SpecError, did_you_mean

SCHEMES = ("s3", "gs", "hdfs", "file")
OPTIONS = {
    "s3": ("endpoint_override", "scheme", "region", "anonymous"),
    "gs": ("endpoint_override", "scheme", "project", "anonymous"),
    "hdfs": ("replication",),
    "file": (),
}
"""Scheme -> the options that the query of a URI may have. None of them is a secret."""
WITH_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
VALUE = r"(?:https?://)?[^/?&]*/?"
QUERY = re.compile(rf"[A-Za-z_]+={VALUE}(?:&[A-Za-z_]+={VALUE})*")


@dataclass(frozen=True)
class Uri:
    """A file, a folder or a pattern on a storage.

    Attributes:
        scheme: one of ``SCHEMES``.
        host: the bucket of s3 and gs; the host and port of hdfs; empty for files.
        path: below the bucket or the host, without slashes at its ends; for s3 and gs it is taken
            literally, so that names such as ``hour=12%3A00`` are those of the storage.
        options: names and values of the query.
        user, password: an access key and its secret, if the URI has them; they are never shown.
    """

    scheme: str
    host: str
    path: str
    options: tuple[tuple[str, str], ...] = ()
    user: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        """As messages show it: without the key, the secret and the query."""
        return f"{self.scheme}://{self.host}/{self.path}"

    def __repr__(self) -> str:
        return f"Uri({str(self)!r})"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Uri:
        """The folder that it is in."""
        return self.with_path(self.path.rpartition("/")[0])

    @property
    def secret(self) -> bool:
        """Whether it has a key or a secret."""
        return self.user is not None or self.password is not None

    def with_path(self, path: str) -> Uri:
        """The same with another path."""
        return Uri(self.scheme, self.host, path, self.options, self.user, self.password)

    def below(self, name: str) -> Uri:
        """A file or folder below it."""
        return self.with_path(f"{self.path}/{name}" if self.path else name)

    def written(self) -> str:
        """The URI with its query, which opens it again, without the key and the secret."""
        query = "&".join(f"{name}={value}" for name, value in self.options)
        return f"{self}?{query}" if query else str(self)


def as_given(path: str | os.PathLike[str]) -> str:
    """A path as text; one that is a ``pathlib.Path`` of a URI has the slashes of the URI again,
    of which ``Path`` leaves out all but one."""
    if not isinstance(path, PurePath):
        return os.fspath(path)
    text = re.sub(r"^([a-z][a-z0-9+.-]+):/(?=[^/])", r"\1://", str(path))
    text = re.sub(r"=(https?):/(?=[^/])", r"=\1://", text)
    return re.sub(r"^file://(?=[^/])", "file:///", text)


def is_uri(given: object) -> bool:
    """Whether a path is given as a URI."""
    return isinstance(given, (str, os.PathLike)) and bool(WITH_SCHEME.match(as_given(given)))


def parse_uri(given: str) -> Uri:
    """The parts of a URI.

    A question mark begins the query only where options follow it, so that patterns may have it.

    Raises:
        SpecError: its scheme or an option is not known, or the bucket is missing.
    """
    found = WITH_SCHEME.match(given)
    scheme = found[1].lower() if found else ""
    rest = given[found.end() :] if found else given
    rest, options = _query(rest)
    authority, _, path = rest.partition("/")
    user = password = None
    if "@" in authority:
        before, _, authority = authority.rpartition("@")
        user, colon, password = before.partition(":")
        user, password = unquote(user), unquote(password) if colon else None
    shown = f"{scheme}://{authority}/{path}"
    if scheme in ("gcs", "s3a", "s3n"):
        raise SpecError(f"{shown}: write {'gs' if scheme == 'gcs' else 's3'}:// for {scheme}://")
    if not scheme:
        plain = f"{authority}/{path}"
        raise SpecError(
            f"{plain} is not a URI; expected one that begins with "
            f"{', '.join(f'{one}://' for one in SCHEMES)}, such as "
            f"{Path(plain).absolute().as_uri()} for a folder of this machine"
        )
    if scheme not in SCHEMES:
        raise SpecError(
            f"{shown} has the scheme {scheme!r}, expected one of "
            f"{', '.join(f'{one}://' for one in SCHEMES)}{did_you_mean(scheme, SCHEMES)}"
        )
    if scheme in ("s3", "gs") and not authority:
        raise SpecError(f"{shown} has no bucket; expected {scheme}://BUCKET/PATH")
    if scheme == "file" and authority not in ("", "localhost"):
        raise SpecError(f"{shown} names the host {authority!r}; expected file:///PATH")
    for name, _ in options:
        if name not in OPTIONS[scheme]:
            known = ", ".join(OPTIONS[scheme]) or "none"
            raise SpecError(
                f"{shown} has the option {name!r}; {scheme}:// knows: {known}"
                f"{did_you_mean(name, OPTIONS[scheme])}. Give credentials by the environment or by "
                "the configuration of the storage"
            )
    if scheme in ("file", "hdfs"):
        path = unquote(path)
    if scheme == "hdfs" and not authority:
        authority = "default"
    return Uri(
        scheme, "" if scheme == "file" else authority, path.strip("/"), options, user, password
    )


def _query(rest: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What stands before the query, and the options in it."""
    before, mark, query = rest.rpartition("?")
    if not mark or not QUERY.fullmatch(query):
        return rest, ()
    return before, tuple(parse_qsl(query, keep_blank_values=True))


def local_path(uri: Uri) -> Path:
    """The path of a ``file://`` URI."""
    return Path("/") / uri.path


def shown(given: object) -> str:
    """A path or a URI as messages show it: never with a secret."""
    text = str(given)
    if not WITH_SCHEME.match(text):
        return text
    try:
        return str(parse_uri(text))
    except SpecError:
        return f"{text.partition('://')[0][:20]}://..."


def joined(folder: Uri, name: str) -> str:
    """A name or pattern relative to a folder as a URI; an absolute one as it is."""
    return name if is_uri(name) or name.startswith("/") else folder.below(name).written()


_names: dict[str, str] = {}
"""Local path -> the URI that it was fetched from, or is published to."""


def remember(path: Path, uri: Uri) -> None:
    """Record which URI a local path stands for."""
    _names[str(path)] = uri.written()


def name_of(path: str | os.PathLike[str]) -> str:
    """What a path is outside of this machine: its URI where it stands for one, else the absolute
    path."""
    return known_uri(path) or str(Path(path).resolve())


def known_uri(path: str | os.PathLike[str]) -> str | None:
    """The URI that a path stands for in this process; None: it stands for none."""
    return _names.get(os.fspath(path))


def in_terms_of_uris(text: str) -> str:
    """A message with URIs in place of the local paths that stand for them."""
    for path in sorted(_names, key=len, reverse=True):
        text = text.replace(path, _names[path])
    return text
