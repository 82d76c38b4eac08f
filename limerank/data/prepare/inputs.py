"""What a dataset is prepared from: a description, and the rows of each of its sources.

A source's rows are in files, which the description names, or in a frame that is passed along.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from limerank.data.description import absolute_pattern, load_spec, with_files
from limerank.data.sources import (
    Frame,
    Reader,
    find_files,
    is_frame,
    open_files,
    open_source,
    type_name,
)
from limerank.data.sources.frames import EXPECTED_FRAME, FrameRows
from limerank.data.spec import EventSource, Spec, Table
from limerank.errors import DataError, SpecError
from limerank.storage.logs import LogPath
from limerank.storage.uris import as_given, is_uri, joined, parse_uri
from limerank.validation import validate

Description = Spec | Mapping[str, Any] | str | os.PathLike[str]
"""A description, a mapping of the same shape as its TOML form, or the path of a TOML file."""
Input = Frame | str | os.PathLike[str]
"""Rows of one source: a frame, or the name or pattern of files."""
S = TypeVar("S", EventSource, Table)


@dataclass(frozen=True)
class Inputs:
    """A description, and the frames that replace its files.

    Attributes:
        spec: the description; a source whose rows are a frame names no files.
        base: the folder that relative names of files begin in.
        events: for each source of events its frame; None: its files are read.
        items, users: the same for the two tables.
    """

    spec: Spec
    base: Path
    events: tuple[object | None, ...]
    items: object | None = None
    users: object | None = None

    def event_files(self, number: int) -> list[LogPath]:
        """The files of one source of events; empty where its rows are a frame."""
        if self.events[number] is not None or not self.spec.events[number].files:
            return []
        return find_files(self.spec.events[number], self.base)

    def event_readers(self, number: int, files: Sequence[LogPath]) -> list[Reader]:
        """Readers of the rows of one source of events: of its frame, or of these files."""
        source, frame = self.spec.events[number], self.events[number]
        if frame is None and source.files:
            return open_files(files, source, self.base)
        return self._open(source, frame, "events" if len(self.events) == 1 else f"events.{number}")

    def table_files(self, what: str) -> list[LogPath]:
        """The files of the table ``"items"`` or ``"users"``; empty where it is not described, or
        its rows are a frame."""
        table = self.spec.items if what == "items" else self.spec.users
        return [] if table is None or not table.files else find_files(table, self.base)

    def table_readers(self, what: str) -> list[Reader]:
        """Readers of the table ``"items"`` or ``"users"``; empty where it is not described."""
        table = self.spec.items if what == "items" else self.spec.users
        frame = self.items if what == "items" else self.users
        return [] if table is None else self._open(table, frame, what)

    def _open(self, source: EventSource | Table, frame: object | None, name: str) -> list[Reader]:
        if frame is None and not source.files:
            raise SpecError(
                f"{name} has no files: give files in the description, or pass the rows, such as "
                f"prepare(..., {name.partition('.')[0]}=frame)"
            )
        return open_source(source, self.base, frame, f"the {name} frame")


def frame_record(readers: Sequence[Reader]) -> dict[str, Any] | None:
    """The frame that a source's rows are in, as a dataset's manifest records it: its type, its
    number of rows and its columns. None: they are in files."""
    for reader in readers:
        if isinstance(reader.rows, FrameRows):
            rows = reader.rows
            return {"type": rows.kind, "rows": rows.count, "columns": list(rows.columns)}
    return None


def inputs_of(
    spec: Description,
    base: str | os.PathLike[str] | None = None,
    *,
    events: Input | Sequence[Input | None] | None = None,
    items: Input | None = None,
    users: Input | None = None,
) -> Inputs:
    """The inputs that the arguments of :func:`~limerank.data.prepare.prepare` describe.

    Raises:
        SpecError: the description is not valid, or rows are passed that it does not describe.
        DataError: rows are passed as something that is neither a frame nor the name of files.
    """
    described, folder = _description(spec)
    if base is not None and is_uri(base):
        on_storage = parse_uri(as_given(base))
        described = with_files(described, lambda name: joined(on_storage, name))
    frames: list[object | None] = []
    sources: list[EventSource] = []
    for number, (source, given) in enumerate(
        zip(described.events, _per_source(events, len(described.events)), strict=True)
    ):
        changed, frame = _with_rows(source, given, f"events.{number}")
        sources.append(changed)
        frames.append(frame)
    item_table, item_frame = _table_with_rows(described.items, items, "items")
    user_table, user_frame = _table_with_rows(described.users, users, "users")
    return Inputs(
        described.model_copy(
            update={"events": tuple(sources), "items": item_table, "users": user_table}
        ),
        Path(folder if base is None else base),
        tuple(frames),
        item_frame,
        user_frame,
    )


def _table_with_rows(
    table: Table | None, given: Any, what: str
) -> tuple[Table | None, object | None]:
    if table is not None:
        return _with_rows(table, given, what)
    if given is not None:
        raise SpecError(
            f"{what} are passed, but the description has no [{what}] table; add it, with the "
            "column of the id and the features to read"
        )
    return None, None


def _description(given: Description) -> tuple[Spec, Path]:
    """A description, and the folder that its names of files begin in."""
    if isinstance(given, Spec):
        return given, Path()
    if isinstance(given, Mapping):
        return validate(Spec, given, "the description"), Path()
    if isinstance(given, (str, os.PathLike)):
        # Names in a description on a storage are relative to its folder there.
        return load_spec(given), Path() if is_uri(given) else Path(given).parent
    raise SpecError(
        f"the description is of type {type_name(given)}, expected a Spec, a mapping of the same "
        "shape as a description in TOML, or the path of a TOML file"
    )


def _per_source(given: Any, count: int) -> Sequence[Any]:
    """What is passed for each source of events."""
    if given is None:
        return [None] * count
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(several) != count:
        raise SpecError(
            f"events: {len(several)} passed for {count} described; pass a list with a frame, a "
            "path or None for each [[events]] of the description, in their order"
        )
    return several


def _with_rows(source: S, given: Any, what: str) -> tuple[S, object | None]:
    """The source with the rows passed instead of its files, and the frame, if one is passed."""
    if given is None:
        return source, None
    if isinstance(given, (str, os.PathLike)):
        files = (absolute_pattern(os.fspath(given), Path()),)
        return source.model_copy(update={"files": files}), None
    if not is_frame(given):
        hint = ""
        if isinstance(given, pl.LazyFrame):
            hint = "; call collect() on it first"
        elif isinstance(given, (list, dict)):
            hint = "; make a frame of it, such as polars.DataFrame(rows)"
        raise DataError(
            f"{what}: got {type_name(given)}, expected {EXPECTED_FRAME}, or the name of files{hint}"
        )
    return source.model_copy(update={"files": ()}), given
