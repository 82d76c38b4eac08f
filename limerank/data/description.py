"""Dataset descriptions as TOML files: read, and written."""

from __future__ import annotations

import glob
import os
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from limerank.data.formats import FORMATS
from limerank.data.spec import EventSource, Spec, Table
from limerank.errors import SpecError
from limerank.files import write_text
from limerank.storage.systems import read
from limerank.storage.uris import is_uri, joined, local_path, parse_uri
from limerank.validation import validate

MOST_BYTES = 1 << 20
"""Of a description on a storage."""
S = TypeVar("S", EventSource, Table)


def load_spec(path: str | os.PathLike[str]) -> Spec:
    """Read a dataset description. It may be on a storage: then ``path`` is a URI, and relative
    names of files in it become URIs.

    Raises:
        SpecError: the file is missing, is not TOML, or a field is wrong (named in the message).
        StorageError: the storage cannot be reached, or has no such file.
    """
    if is_uri(path):
        return _stored(os.fspath(path))
    path = Path(path)
    endings = {f".{ending}" for form in FORMATS.values() for ending in form.endings}
    if path.suffix != ".toml" and endings & set(path.suffixes):
        raise SpecError(
            f"{path} is a file of data, expected a dataset description: a TOML file that names the "
            "data files and their columns (limerank settings lists its fields)"
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such dataset description") from None
    except IsADirectoryError:
        raise SpecError(
            f"{path} is a folder, expected a dataset description, such as {path / 'spec.toml'}"
        ) from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    return validate(Spec, values, str(path))


def _stored(given: str) -> Spec:
    """The description under a URI."""
    uri = parse_uri(given)
    if uri.scheme == "file":
        base = local_path(uri).parent
        spec = load_spec(local_path(uri))
        return with_files(spec, lambda pattern: absolute_pattern(pattern, base))
    try:
        values = tomllib.loads(read(uri, MOST_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{uri} is not valid TOML: {error}") from None
    folder = uri.parent
    return with_files(validate(Spec, values, str(uri)), lambda pattern: joined(folder, pattern))


def with_files(spec: Spec, changed: Callable[[str], str]) -> Spec:
    """A description with other names of files.

    Args:
        spec: the description.
        changed: name or pattern of files -> the new one.
    """

    def of(table: S) -> S:
        return table.model_copy(update={"files": tuple(map(changed, table.files))})

    return spec.model_copy(
        update={
            "events": tuple(of(one) for one in spec.events),
            "items": None if spec.items is None else of(spec.items),
            "users": None if spec.users is None else of(spec.users),
        }
    )


def absolute_pattern(pattern: str, base: Path) -> str:
    """A pattern of files that is valid in any folder; a relative one is taken from ``base``."""
    if is_uri(pattern):
        return pattern
    return str(Path(glob.escape(str(base.resolve()))) / pattern)


def write_spec(path: str | Path, spec: Spec, base: Path, beside: Collection[str] = ()) -> None:
    """Write a description as TOML that can be read from any folder.

    Names of files become absolute patterns: relative ones are taken from ``base``, whose own name
    is escaped. A comment names the sources whose rows were passed as frames.

    Args:
        path: the TOML file.
        spec: the description.
        base: the folder that relative names are taken from.
        beside: names of files beside the TOML file, which stay as they are: both may be moved.
    """
    import tomli_w

    values = spec.model_dump(mode="json", exclude_defaults=True)
    named = [(f"events.{k}", "events", source) for k, source in enumerate(values["events"])]
    named += [(what, what, values[what]) for what in ("items", "users") if what in values]
    notes = ""
    for name, argument, table in named:
        if table.get("files"):
            table["files"] = [
                file if file in beside else absolute_pattern(file, base) for file in table["files"]
            ]
        else:
            notes += (
                f"# {name}: its rows were a frame; pass them again with "
                f"prepare(..., {argument}=...), or name files.\n"
            )
    write_text(path, notes + tomli_w.dumps(values))
