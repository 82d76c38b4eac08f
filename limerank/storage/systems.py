"""What is done on a storage: list, read, write and remove files; and what its errors mean.

Everything goes through ``pyarrow.fs``, with bounded retries and time limits. An operation that
fails raises a :class:`~limerank.errors.StorageError` that says what was asked, what the storage
answered and what to do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from limerank.errors import LimerankError, SpecError, StorageError
from limerank.storage.uris import Uri

ATTEMPTS = 4
"""Of a request to S3, at most; the pauses between them grow."""
CONNECT_SECONDS = 10.0
"""Time limit of a connection to S3."""
REQUEST_SECONDS = 60.0
"""Time limit of a request that makes no progress."""
BLOCK = 4 << 20
"""Bytes that are read at once."""

REFUSED = (
    "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN",
    "INVALID_CLIENT_TOKEN_ID", "MISSING_AUTHENTICATION_TOKEN", "UNRECOGNIZED_CLIENT",
    "HTTP status 401", "HTTP status 403", "Permission denied", "PermissionDenied",
    "Unauthenticated", "No valid credentials", "Could not create a OAuth2 access token",
)  # fmt: skip
"""Parts of messages of storages that refuse the credentials, or have none."""
UNREACHABLE = (
    "NETWORK_CONNECTION", "curlCode", "Couldn't connect", "Could not connect", "REQUEST_TIMEOUT",
    "resolve host", "Connection refused", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "Unavailable",
    "INTERNAL_FAILURE", "timed out", "Timeout",
)  # fmt: skip
"""Parts of messages of storages that do not answer."""


@dataclass(frozen=True)
class Entry:
    """A file or folder of a storage.

    Attributes:
        uri: where it is.
        folder: whether it is a folder.
        size: bytes of a file.
        changed: time of its last change, nanoseconds since 1970; 0: not known.
    """

    uri: Uri
    folder: bool
    size: int
    changed: int


def entry_of(uri: Uri) -> Entry | None:
    """The file or folder under a URI; None: there is none."""
    with reaching(uri, "looking for it"):
        return _entry(uri, _system(uri).get_file_info(_path(uri)))


def entries(folder: Uri, *, recursive: bool = False) -> list[Entry]:
    """What is in a folder, by name; nothing where there is no such folder.

    Args:
        folder: the folder.
        recursive: also what is in the folders below it.
    """
    import pyarrow.fs

    with reaching(folder, "listing it"):
        selector = pyarrow.fs.FileSelector(
            _path(folder) or "/", allow_not_found=folder.path != "", recursive=recursive
        )
        found = _system(folder).get_file_info(selector)
    listed = [_entry(_uri(folder, info.path), info) for info in found]
    return sorted((one for one in listed if one is not None), key=lambda one: one.uri.path)


def open_file(uri: Uri) -> Any:
    """A file for reading at any position (``pyarrow.NativeFile``)."""
    with reaching(uri, "opening it"):
        return _system(uri).open_input_file(_path(uri))


def open_stream(uri: Uri) -> Any:
    """A file for reading from its beginning, some blocks at a time (``pyarrow.NativeFile``)."""
    with reaching(uri, "opening it"):
        return _system(uri).open_input_stream(_path(uri), compression=None, buffer_size=BLOCK)


def read(uri: Uri, most: int) -> bytes:
    """The bytes of a small file.

    Raises:
        StorageError: it has more than ``most`` bytes, or cannot be read.
    """
    with (
        reaching(uri, "reading it"),
        _system(uri).open_input_stream(_path(uri), compression=None) as file,
    ):
        data: bytes = file.read(most + 1)
    if len(data) > most:
        raise StorageError(f"{uri} has more than {most:,} bytes, which is too much for its kind")
    return data


def write(uri: Uri, blocks: Iterable[bytes]) -> None:
    """Write a file, so that it is there when it is complete, or not at all."""
    system = _system(uri)
    atomic = uri.scheme in ("s3", "gs")  # an object appears when its upload ends
    target = uri if atomic else uri.parent.below(f".{uri.name}.partial-{secrets.token_hex(4)}")
    with reaching(uri, "writing it"):
        if not atomic:
            system.create_dir(_path(uri.parent), recursive=True)
        file = system.open_output_stream(_path(target), compression=None)
        try:
            for block in blocks:
                file.write(block)
            file.close()
            if not atomic:
                system.move(_path(target), _path(uri))
        except BaseException:
            # Closing ends the upload: the object would be there, cut short.
            with contextlib.suppress(OSError):
                file.close()
                system.delete_file(_path(target))
            raise


def remove(uri: Uri) -> None:
    """Remove a file, if it is there."""
    with reaching(uri, "removing it"), contextlib.suppress(FileNotFoundError):
        _system(uri).delete_file(_path(uri))


def require_writable(folder: Uri) -> None:
    """Refuse a folder that could not be written to, before any work is done for it.

    Raises:
        StorageError: a small file could not be written and removed there.
    """
    probe = folder.below(f".probe-{secrets.token_hex(4)}")
    write(probe, [b"limerank\n"])
    remove(probe)


def require_bucket(uri: Uri) -> None:
    """Refuse a URI whose bucket is missing.

    Raises:
        StorageError: there is no such bucket.
    """
    if _no_bucket(uri):
        raise meaning(uri, FileNotFoundError(f"NO_SUCH_BUCKET {uri.host}"), "looking for it")


@contextlib.contextmanager
def reaching(uri: Uri, action: str) -> Iterator[None]:
    """Raise errors of a storage as a StorageError about ``uri``."""
    try:
        yield
    except LimerankError:
        raise
    except OSError as error:
        raise meaning(uri, error, action) from None


def meaning(uri: Uri, error: BaseException, action: str) -> StorageError:
    """The error of an operation on a storage: what it means, and what to do."""
    text = _without_secrets(uri, " ".join(str(error).split()) or type(error).__name__)
    begin = f"{uri} cannot be used ({action} failed): "
    where = f"{uri.scheme}://{uri.host}"
    missing = isinstance(error, FileNotFoundError)
    if "NO_SUCH_BUCKET" in text or "bucket does not exist" in text or (missing and _no_bucket(uri)):
        return StorageError(
            f"{begin}there is no bucket {uri.host!r}{_at(uri)}; check its name, or create it first"
        )
    if missing:
        return StorageError(f"{uri} is not there; check its name, or list {uri.parent}")
    if any(part in text for part in REFUSED):
        return StorageError(f"{begin}access is refused {_credentials(uri)} (answer: {text:.300})")
    if any(part in text for part in UNREACHABLE):
        return StorageError(
            f"{begin}{where} does not answer{_at(uri)}, after {_tries(uri)}; check the network, "
            f"the endpoint and the region, then try again (answer: {text:.300})"
        )
    if uri.scheme == "hdfs":
        return StorageError(
            f"{begin}hdfs:// needs Java and Hadoop's native client: set JAVA_HOME, HADOOP_HOME and "
            f"CLASSPATH (hadoop classpath --glob), and check the host (answer: {text:.300})"
        )
    return StorageError(f"{begin}{text:.500}")


def failure(uri: Uri, error: BaseException) -> StorageError | None:
    """The StorageError of an error that a library raised while it read a file of a storage; None
    where the storage answered, and the content is at fault."""
    text = str(error)
    marks = (*REFUSED, *UNREACHABLE, "AWS Error", "google::cloud")
    if isinstance(error, OSError) and any(mark in text for mark in marks):
        return meaning(uri, error, "reading it")
    return None


def _no_bucket(uri: Uri) -> bool:
    """Whether the bucket of a URI is missing; False where that cannot be found out."""
    if uri.scheme not in ("s3", "gs"):
        return False
    with contextlib.suppress(OSError):
        return _entry(uri, _system(uri).get_file_info(uri.host)) is None
    return False


def _tries(uri: Uri) -> str:
    return f"{ATTEMPTS} attempts" if uri.scheme == "s3" else f"{REQUEST_SECONDS:.0f} s"


def _at(uri: Uri) -> str:
    endpoint = _endpoint(uri)[0]
    return f" at {endpoint}" if endpoint else ""


def _credentials(uri: Uri) -> str:
    """Which credentials were used, and how to give others."""
    if uri.scheme == "gs":
        return (
            "with Google's default credentials: set GOOGLE_APPLICATION_CREDENTIALS, or add "
            "?anonymous=true for a public bucket"
        )
    if uri.scheme != "s3":
        return "to this user: make the folder readable or writable"
    if dict(uri.options).get("anonymous") == "true":
        return "without credentials: leave anonymous=true out where the bucket is not public"
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    if uri.secret:
        used = "to the access key of the URI"
    elif "AWS_ACCESS_KEY_ID" in os.environ:
        used = "to the access key of the environment (AWS_ACCESS_KEY_ID)"
    elif any(Path(one).expanduser().exists() for one in files):
        used = "to the credentials of ~/.aws"
    else:
        return (
            "because no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE with ~/.aws/credentials, or add ?anonymous=true for a public bucket"
        )
    return f"{used}: give it the right to list, read and write there, or use another one"


def _without_secrets(uri: Uri, text: str) -> str:
    for secret in (uri.password, uri.user, os.environ.get("AWS_SECRET_ACCESS_KEY")):
        if secret and len(secret) > 3:  # shorter ones are parts of words
            text = text.replace(secret, "...")
    return text


def _path(uri: Uri) -> str:
    """The path that pyarrow's file system has for a URI."""
    if uri.scheme in ("s3", "gs"):
        return f"{uri.host}/{uri.path}".rstrip("/")
    return f"/{uri.path}"


def _uri(like: Uri, path: str) -> Uri:
    """The URI of a path that pyarrow's file system gives."""
    if like.scheme in ("s3", "gs"):
        path = path.partition("/")[2]
    return like.with_path(path.strip("/"))


def _entry(uri: Uri, info: Any) -> Entry | None:
    import pyarrow.fs

    if info.type == pyarrow.fs.FileType.NotFound:
        return None
    folder = info.type == pyarrow.fs.FileType.Directory
    return Entry(uri, folder, 0 if folder else int(info.size or 0), int(info.mtime_ns or 0))


def _system(uri: Uri) -> Any:
    return _open_system(
        uri.scheme,
        uri.host,
        uri.options,
        uri.user,
        uri.password,
        _endpoint(uri),
        os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    )


def _endpoint(uri: Uri) -> tuple[str | None, str | None]:
    """Host and port of the endpoint, and its scheme; None: those of the storage itself."""
    options = dict(uri.options)
    given = options.get("endpoint_override")
    if given is None and uri.scheme == "s3":
        given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    scheme = options.get("scheme")
    if given and "://" in given:
        before, _, given = given.partition("://")
        scheme = scheme or before
    if scheme not in (None, "http", "https"):
        raise SpecError(f"{uri}: scheme={scheme}, expected http or https")
    return (given.strip("/") if given else None), scheme


@functools.lru_cache(maxsize=32)
def _open_system(
    kind: str,
    host: str,
    options: tuple[tuple[str, str], ...],
    user: str | None,
    password: str | None,
    endpoint: tuple[str | None, str | None],
    region: str | None,
) -> Any:
    import pyarrow.fs

    given = dict(options)
    at, scheme = endpoint
    if kind == "s3":
        region = given.get("region") or region
        if region is None and at is None:
            region = pyarrow.fs.resolve_s3_region(host)
        anonymous = given.get("anonymous") == "true"
        keys = {} if user is None else {"access_key": user, "secret_key": password or ""}
        return pyarrow.fs.S3FileSystem(
            **keys,
            anonymous=anonymous,
            region=region or "us-east-1",
            scheme=scheme or "https",
            endpoint_override=at,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )
    if kind == "gs":
        return pyarrow.fs.GcsFileSystem(
            anonymous=given.get("anonymous") == "true",
            scheme=scheme or "https",
            endpoint_override=at,
            project_id=given.get("project"),
            retry_time_limit=timedelta(seconds=REQUEST_SECONDS),
        )
    if kind == "hdfs":
        name, _, port = host.partition(":")
        return pyarrow.fs.HadoopFileSystem(
            name, int(port or 0), user=user, replication=int(given.get("replication", 3))
        )
    return pyarrow.fs.LocalFileSystem()
