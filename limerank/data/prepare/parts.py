"""Preparing in parts, on one machine or many that share a folder.

A part reads a range of the log's files: it checks and codes their rows, which is most of the work,
and leaves them in ``.NAME.parts/part-000003-of-000016``, which appears complete or not at all.
Joining sorts the rows of all parts and writes the dataset, in bounded memory. It is byte for byte
the dataset of one process:

- Text ids have the codes of their first appearance in the log. A part codes them by their first
  appearance in its own files, and says which texts were new in each batch of rows; joining learns
  these in the order of the files (:meth:`~limerank.data.prepare.ids.Ids.learn_again`).
- Whether ids are integers is settled by the first part, from the types of columns. A part that
  finds text among them leaves a mark; parts that read integers before count as missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from limerank.data.folder import MANIFEST
from limerank.data.prepare.asked import Asked, asked_of
from limerank.data.prepare.inputs import Description
from limerank.data.prepare.job import write_dataset
from limerank.data.prepare.parted import JoinedSpooling, PartSpooling, files_of
from limerank.data.prepare.plan import OF_PART, Parts
from limerank.data.summary import DatasetSummary
from limerank.errors import FormatError, SpecError
from limerank.files import (
    check_folder,
    new_folder,
    remove_folder,
)
from limerank.parts import Part
from limerank.results import Result
from limerank.storage.arguments import READ, with_uris

ATTEMPTS = 4
"""To read a part: other parts may find meanwhile that ids of items, and then of users, are text."""


@dataclass(frozen=True, repr=False)
class PreparedPart(Result):
    """A part of a log.

    Attributes:
        path: its folder.
        part: which one.
        files: how many files it has.
        rows: how many rows were read.
        read: whether this call read them; an earlier one, where not.
    """

    path: Path
    part: Part
    files: int
    rows: int
    read: bool

    def to_dict(self) -> dict[str, Any]:
        return {"part": str(self.part), "files": self.files, "rows": self.rows, "read": self.read}

    def text(self) -> str:
        done = f"{self.rows:,} rows of {self.files:,} files" if self.read else "complete already"
        return f"{self.path}: part {self.part}, {done}"


@with_uris(extend=READ, encoding=READ)
def prepare_part(
    spec: Description,
    out: str | os.PathLike[str],
    part: Part,
    *,
    base: str | os.PathLike[str] | None = None,
    extend: str | os.PathLike[str] | None = None,
    encoding: str | os.PathLike[str] | None = None,
    since: int | str | datetime | None = None,
    memory: int | str = 2 << 30,
    quiet: bool = True,
) -> PreparedPart:
    """Read one part of a log for the dataset ``out``; :func:`join_prepared` writes it.

    A part that is complete is not read again. Parts may run in any order and at the same time, on
    machines that share the folder of ``out`` and see the log under the same paths.

    Args:
        spec, base, extend, encoding, since, memory: as for :func:`~limerank.data.prepare.prepare`;
            all parts have the same.
        out: the dataset that the parts will be.
        part: the part. Files are divided by their sizes, in order; a part may have none.
        quiet: show no progress.

    Raises:
        SpecError, DataError: as for :func:`~limerank.data.prepare.prepare`. That too many rows are
            bad is found when the parts are joined.
        FormatError: the folder of parts is of another description, other files, other arguments or
            another number of parts; or it cannot be written to.
    """
    asked = asked_of(spec, base, extend=extend, encoding=encoding, since=since, memory=memory)
    _require_files(asked)
    check_folder(Path(out), overwrite=True, mark=MANIFEST)
    parts = Parts.begun(asked, Path(out), part.of)
    path = parts.folder / part.folder
    for _ in range(ATTEMPTS):
        held = parts.complete(part.number)
        if held is not None:
            return PreparedPart(path, part, len(held["files"]), _rows(held), False)
        sources = parts.sources(asked)
        chosen = files_of(sources, part)
        try:
            # Of an earlier call that took text for integers, if there is one.
            with new_folder(path, overwrite=True, mark=OF_PART) as fresh:
                spools = PartSpooling(asked, fresh / "spools", quiet, sources, parts, chosen)
                spools.spool_events()
                written = spools.write(fresh, parts)
        except FormatError:
            if parts.complete(part.number) is None:
                raise  # else another process was faster
            continue
        if parts.complete(part.number) is not None:
            return PreparedPart(path, part, len(chosen), _rows(written), True)
    raise FormatError(f"{path} was replaced by other processes meanwhile; run --part {part} again")


def missing_parts(out: str | os.PathLike[str]) -> list[int]:
    """The parts of ``out`` that have to be read, or read again.

    Raises:
        FormatError: there are no parts, or one is damaged.
    """
    return Parts.held(Path(out)).missing()


@with_uris(extend=READ, encoding=READ)
def join_prepared(
    spec: Description,
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    extend: str | os.PathLike[str] | None = None,
    encoding: str | os.PathLike[str] | None = None,
    since: int | str | datetime | None = None,
    memory: int | str = 2 << 30,
    overwrite: bool = False,
    quiet: bool = True,
) -> DatasetSummary:
    """Join the parts of :func:`prepare_part` to the dataset ``out``, and remove them.

    Every file of every part is compared with its checksum. A killed call is repeated.

    Args:
        spec, base, extend, encoding, since, memory: as the parts had them.
        out: the dataset, which appears in one step.
        overwrite: replace ``out`` where it is a dataset.
        quiet: show no progress.

    Raises:
        SpecError, DataError: as for :func:`~limerank.data.prepare.prepare`.
        FormatError: a part is missing, damaged or of another job; or ``out`` exists and
            ``overwrite`` is false, or it is not a dataset.
    """
    asked = asked_of(spec, base, extend=extend, encoding=encoding, since=since, memory=memory)
    _require_files(asked)
    check_folder(Path(out), overwrite=overwrite, mark=MANIFEST)
    parts = Parts.held(Path(out))
    parts.sources(asked)
    parts.require_complete()
    with new_folder(out, overwrite=overwrite, mark=MANIFEST) as folder:
        spools = JoinedSpooling(asked, folder / "work", quiet, parts)
        spools.read()
        found = write_dataset(spools, folder)
    remove_folder(parts.folder)
    return DatasetSummary.of(found)


def _require_files(asked: Asked) -> None:
    for number, source in enumerate(asked.inputs.spec.events):
        if asked.inputs.events[number] is not None or not source.files:
            raise SpecError(
                f"events.{number} has no files: parts are ranges of the log's files; name them in "
                "the description"
            )


def _rows(written: Mapping[str, Any]) -> int:
    return sum(one["findings"]["rows"] for one in written["files"])
