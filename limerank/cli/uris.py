"""Paths of commands that may be URIs: which they are, and what each command does with them."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limerank.errors import SpecError
from limerank.storage.uris import as_given, in_terms_of_uris, parse_uri

READ, FOLDER, FILE, CHANGED, ADDED, TEXT, GIVEN = (
    "READ", "NEW_FOLDER", "NEW_FILE", "CHANGED", "ADDED", "TEXT", "GIVEN",
)  # fmt: skip
"""Names of :class:`limerank.storage.arguments.Use`."""

USES: Mapping[str, Mapping[str, str]] = {
    "synth": {"out": FOLDER},
    "prepare": {"out": FOLDER, "extend": READ, "encoding": READ, "write_spec": FILE},
    "train": {"data": READ, "out": FOLDER, "settings": READ, "start": READ},
    "tune": {"data": READ, "out": FOLDER},
    "evaluate": {"run": ADDED, "data": READ, "out": FILE, "predictions": FILE},
    "compare": {"ours": READ, "against": READ, "data": READ},
    "index": {
        "run": READ, "out": FOLDER, "data": READ, "items": READ, "add": READ, "update": READ,
        "put": READ,
    },
    "rank": {"run": READ, "index": READ, "data": READ, "item_table": READ, "out": FILE},
    "similar": {"index": READ, "run": READ, "item_table": READ},
    "fill": {"data": READ},
    "states": {"run": READ, "index": READ},
    "serve": {"run": READ, "index": READ, "items": READ, "arm": TEXT, "watch": GIVEN},
    "export": {"out": FILE, "like": READ},
    "report": {"runs": READ, "index": READ, "out": FILE},
}  # fmt: skip
"""Command -> parameter -> what it does with a URI. Other paths are local."""


def uses_of(command: str, values: Mapping[str, Any]) -> dict[str, str]:
    """What a command with these options does with its paths."""
    uses = dict(USES.get(command, {}))
    if command == "index":
        change = any(values.get(name) for name in ("add", "update", "put", "remove", "compact"))
        uses["out"] = READ if values.get("verify") else CHANGED if change else FOLDER
    if command == "evaluate" and values.get("out") is not None:
        uses["run"] = READ
    return uses


def require_uris(arguments: Sequence[str]) -> None:
    """Check the URIs of a command line as they are written: a path keeps one of several slashes,
    so that ``s3:///name`` would be the bucket ``name``, and ``s3://`` a local folder.

    Raises:
        SpecError: a URI of a storage has no bucket, names a host, or is not valid otherwise.
    """
    for one in arguments:
        value = re.sub(r"^--[a-z-]+=", "", one)
        if re.match(r"(s3|gs|hdfs|file)://", value, re.IGNORECASE):
            parse_uri(value)


def with_uris(name: str, function: Callable[..., None]) -> Callable[..., None]:
    """The function of a command, which is called with local paths in place of URIs."""

    @functools.wraps(function)
    def call(**values: Any) -> None:
        given = {one: _as_given(value) for one, value in values.items()}
        remote = [one for one, value in given.items() if _has_uri(value)]
        uses = uses_of(name, values)
        for one in remote:
            if one not in uses and isinstance(values[one], Path):
                raise SpecError(f"--{one.replace('_', '-')} takes a local path, not a URI")
        if not uses.keys() & set(remote):
            function(**values)
            return
        from limerank.storage.arguments import Use, located

        shared = [] if name == "states" else ["part", "join", "on"]  # states are in a store
        shared += ["shards"] if name == "index" else []
        options = [f"--{one}" for one in shared if values.get(one) not in (None, False)]
        if options:
            raise SpecError(
                f"{' and '.join(options)}: you need a folder that all processes share; "
                "write to it, then publish it: limerank publish FOLDER URI"
            )
        quiet = bool(values.get("quiet") or values.get("as_json"))
        kinds = {one: Use[kind] for one, kind in uses.items()}
        values |= {one: given[one] for one in remote}
        with located(kinds, values, quiet=quiet) as found, _Renaming(in_terms_of_uris):
            function(**found)

    return call


class _Renaming:
    """Standard output, while a command runs: its texts pass through ``change``."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change, self._out = change, sys.stdout

    def __enter__(self) -> None:
        sys.stdout = self

    def __exit__(self, *_: object) -> None:
        sys.stdout = self._out

    def write(self, text: str) -> int:
        return self._out.write(self._change(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def _as_given(value: Any) -> Any:
    """Paths as text, with the slashes of URIs."""
    if isinstance(value, (list, tuple)):
        return [_as_given(one) for one in value]
    return as_given(value) if isinstance(value, Path) else value


def _has_uri(value: Any) -> bool:
    return any("://" in str(one) for one in (value if isinstance(value, list) else [value]))
