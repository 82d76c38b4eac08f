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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.folder import MANIFEST
from limerank.data.pipeline import ahead
from limerank.data.prepare.asked import Asked, asked_of
from limerank.data.prepare.coding import RowCoder, stretch
from limerank.data.prepare.findings import Findings
from limerank.data.prepare.ids import Ids
from limerank.data.prepare.inputs import Description
from limerank.data.prepare.job import write_dataset
from limerank.data.prepare.logfiles import LogFile
from limerank.data.prepare.opening import OpenSources
from limerank.data.prepare.partition import Array, blocks
from limerank.data.prepare.spooling import Spooling
from limerank.data.summary import DatasetSummary
from limerank.errors import FormatError, SpecError
from limerank.files import (
    check_folder,
    check_output,
    checksum,
    make_folder,
    new_folder,
    read_json,
    remove_folder,
    sweep_folder,
    sync_directory,
    write_json,
    writes_to,
)
from limerank.parts import Part, check_complete, check_same, digest_of, parts_folder, settled
from limerank.progress import Bar
from limerank.results import Result
from limerank.storage.arguments import READ, with_uris

FORMAT = 1
"""Version of the folder of parts."""
PLAN, OF_PART = "plan.json", "part.json"
TEXT = ("items-are-text", "users-are-text")
"""Marks in the folder of parts."""
EVENTS, LISTS, TEXTS = "spools/events/0.bin", "spools/lists/0.bin", "texts/{}.parquet"
"""Files of a part."""


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


class _File(NamedTuple):
    """A file of a source, by their numbers."""

    source: int
    number: int


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
    parts = Parts.begun(asked, Path(out), part.of)
    path = parts.folder / part.folder
    while True:
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


def files_of(sources: OpenSources, part: Part) -> list[_File]:
    """The files of a part: those whose middle is in its share of the bytes of all files."""
    files = [
        _File(source, number)
        for source, of in enumerate(sources.readers)
        for number in range(len(of))
    ]
    sizes = np.array([sources.readers[one.source][one.number].rows.size for one in files])
    middles = np.cumsum(sizes) - sizes / 2
    places = np.minimum(part.of * middles / max(sizes.sum(), 1), part.of - 1).astype(np.int64)
    return [
        one for one, place in zip(files, places.tolist(), strict=True) if place == part.number - 1
    ]


class Parts:
    """A folder of parts.

    Args:
        folder: the folder.
        plan: what its first call settled.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, plan
        self.of = int(plan["job"]["parts"])
        self._digest = digest_of(plan)

    @classmethod
    def begun(cls, asked: Asked, out: Path, of: int) -> Parts:
        """The folder for the parts of ``out``, which is made if it is not there.

        Raises:
            FormatError: it is of another job.
        """
        folder = parts_folder(out)
        check_output(folder / PLAN)
        with writes_to(folder):
            sweep_folder(folder)  # of a call of join_prepared that was killed
        if (folder / PLAN).exists():
            plan = read_plan(folder)
        else:
            sources = OpenSources(asked)
            job = _job(asked, sources.files, of)
            plan = settled(
                folder / PLAN, {"format": FORMAT, "job": job, "integral": sources.integral}
            )
        found = cls(folder, plan)
        found.sources(asked, of)
        return found

    @classmethod
    def held(cls, out: Path) -> Parts:
        """The folder of the parts of ``out``.

        Raises:
            FormatError: there is none.
        """
        folder = parts_folder(out)
        if not (folder / PLAN).exists():
            raise FormatError(f"{folder} has no parts to join; read them with --part K/N first")
        return cls(folder, read_plan(folder))

    @property
    def integral(self) -> list[bool]:
        """Whether ids of items, and of users, are integers, as far as is known yet."""
        pairs = zip(self.plan["integral"], TEXT, strict=True)
        return [settled and not (self.folder / mark).exists() for settled, mark in pairs]

    def are_text(self, which: int) -> None:
        """Mark that ids of items (0) or of users (1) are text."""
        (self.folder / TEXT[which]).touch()
        sync_directory(self.folder)

    def sources(self, asked: Asked, of: int | None = None) -> OpenSources:
        """All files of the log, open.

        Args:
            of: how many parts there are to be; None: as many as the plan has.

        Raises:
            FormatError: the parts are of another job.
        """
        found = OpenSources(asked, self.integral)
        job = _job(asked, found.files, self.of if of is None else of)
        check_same(self.folder, self.plan["job"], job)
        return found

    def complete(self, number: int) -> dict[str, Any] | None:
        """What a part says of itself; None where it has to be read (again).

        Raises:
            FormatError: it is damaged, or has another plan.
        """
        part = Part(number, self.of)
        path = self.folder / part.folder
        if not path.exists():
            return None
        found = read_json(path / OF_PART, "a part of a log")
        if found.get("plan") != self._digest:
            raise FormatError(
                f"{path} was read for another plan than {self.folder / PLAN}; remove it and run "
                f"--part {part} again"
            )
        return found if found["integral"] == self.integral else None

    def missing(self) -> list[int]:
        """The parts that have to be read (again)."""
        return [number for number in range(1, self.of + 1) if self.complete(number) is None]

    def require_complete(self) -> None:
        """Refuse to join while parts are missing.

        Raises:
            FormatError: it lists them.
        """
        missing = self.missing()
        again = [n for n in missing if (self.folder / Part(n, self.of).folder).exists()]
        try:
            check_complete(self.folder, missing, self.of)
        except FormatError as error:
            if again:
                raise FormatError(
                    f"{error} ({len(again)} of them took ids for integers, before another part "
                    "found text among them)"
                ) from None
            raise

    def opened(self) -> Iterator[PartFiles]:
        """All parts, in order."""
        for number in range(1, self.of + 1):
            about = self.complete(number)
            assert about is not None
            yield PartFiles(self.folder / Part(number, self.of).folder, about)


def _job(asked: Asked, files: Sequence[Sequence[LogFile]], of: int) -> dict[str, Any]:
    """What all parts have to agree on."""
    earlier = asked.earlier
    return {
        "parts": of,
        "description": digest_of(asked.inputs.spec.model_dump(mode="json")),
        "files": digest_of([[one.to_dict() for one in of_source] for of_source in files]),
        "earlier": None if earlier is None else digest_of(earlier.manifest),
        "extend": asked.events is not None,
        "since": asked.since,
        "memory": asked.memory,
    }


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan of a folder of parts.

    Raises:
        FormatError: it is damaged, or of another version.
    """
    plan = read_json(folder / PLAN, "a log in parts")
    if plan.get("format") != FORMAT or not isinstance(plan.get("job"), dict):
        raise FormatError(
            f"{folder / PLAN} has format {plan.get('format')!r:.40}, expected {FORMAT}; remove "
            f"{folder}, and read the parts again with this version"
        )
    return plan


class PartSpooling(Spooling):
    """Reads the files of one part, and leaves their rows as they come.

    Args:
        asked, work, quiet: as for :class:`~limerank.data.prepare.spooling.Spooling`.
        sources: all files, open.
        parts: the folder of parts.
        chosen: the files of this part.
    """

    def __init__(
        self,
        asked: Asked,
        work: Path,
        quiet: bool,
        sources: OpenSources,
        parts: Parts,
        chosen: Sequence[_File],
    ) -> None:
        self._opened, self._parts, self._chosen = sources, parts, chosen
        super().__init__(asked, work, quiet)

    def opened(self) -> OpenSources:
        return self._opened

    def ids_are_text(self, which: int) -> None:
        self._parts.are_text(which)
        super().ids_are_text(which)

    def make_spools(self, bits: int | None = None) -> None:
        super().make_spools(0)

    def fill_spools(self) -> None:
        self._files: list[dict[str, Any]] = []
        readers = [self.sources.readers[one.source][one.number] for one in self._chosen]
        total = sum(reader.rows.size for reader in readers)
        with Bar("reading", total=total, unit="bytes", quiet=self.quiet) as bar:
            for one, reader in zip(self._chosen, readers, strict=True):
                self.findings = self.coder.findings = Findings()
                self.read_rows_of(reader, one.source, bar)
                self._files.append(
                    {
                        "source": one.source,
                        "file": self.sources.files[one.source][one.number].sealed().to_dict(),
                        "findings": self.findings.to_dict(),
                        "where": reader.selection.values,
                    }
                )

    def write(self, folder: Path, parts: Parts) -> dict[str, Any]:
        """Complete the folder of the part; returns what it says of itself."""
        learned = {}
        for name, ids in text_ids(self.coder).items():
            learned[name] = ids.learned
            path = folder / TEXTS.format(name)
            make_folder(path.parent)
            ids.texts().alias("text").to_frame().write_parquet(path)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        about = {
            "plan": digest_of(parts.plan),
            "integral": self.sources.integral,
            "hashed": self.coder.hashed,
            "files": self._files,
            "learned": learned,
            "checksums": {str(path.relative_to(folder)): checksum(path) for path in files},
        }
        write_json(folder / OF_PART, about)
        return about


def text_ids(coder: RowCoder) -> dict[str, Ids]:
    """The ids and categories of a coder that are texts, by the column of spools that has them."""
    all_ids = {"user": coder.users, "item": coder.items}
    all_ids |= {f"feature_{name}": ids for name, ids in coder.features.items()}
    return {name: ids for name, ids in all_ids.items() if ids.text}


class PartFiles:
    """A complete part.

    Args:
        path: its folder.
        about: what it says of itself.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, about

    def verify(self) -> None:
        """Compare all files with their checksums.

        Raises:
            FormatError: one differs, or is missing.
        """
        for name, expected in self.about["checksums"].items():
            file = self.path / name
            if not file.exists() or checksum(file) != expected:
                raise FormatError(
                    f"{file} is {'damaged' if file.exists() else 'missing'}; remove {self.path} "
                    "and run its --part again"
                )

    def recoding(self, coder: RowCoder) -> dict[str, NDArray[np.int64]]:
        """Learn the texts of this part as the next ones; column -> new code by code in the part."""
        found = {}
        for name, ids in text_ids(coder).items():
            texts = pl.read_parquet(self.path / TEXTS.format(name))["text"]
            new = ids.learn_again(texts, self.about["learned"][name])
            found[name] = np.concatenate([np.arange(ids.known), new])
        return found

    def rows(
        self, name: str, dtypes: Mapping[str, Any], coder: RowCoder, codes: Mapping[str, Array]
    ) -> Iterator[dict[str, Array]]:
        """Its rows as they were read, with new codes.

        Args:
            name: of the file.
            dtypes: of its columns.
            coder: that has learned the texts.
            codes: from :meth:`recoding`.
        """
        if not (self.path / name).exists():
            return
        for columns in blocks(self.path / name, dtypes):
            if "user" in codes:
                old = coder.user_codes(columns["user"])
                columns["user"] = coder.user_keys(codes["user"][old])
            items = "item" if "item" in columns else "values"
            if "item" in codes:
                columns[items] = codes["item"][columns[items]]
            if len(columns[items]):
                stretch(coder.item_range, columns[items])
            for column in columns.keys() & codes.keys() - {"user", "item"}:
                # Categories have the codes from 1 on.
                columns[column] = np.concatenate([[-1], codes[column]])[columns[column]] + 1
            yield columns


class JoinedSpooling(Spooling):
    """Takes the rows of all parts, as if their files were read one after the other.

    Args:
        asked, work, quiet: as for :class:`~limerank.data.prepare.spooling.Spooling`.
        parts: the parts, which are complete.
    """

    def __init__(self, asked: Asked, work: Path, quiet: bool, parts: Parts) -> None:
        self._parts = parts
        super().__init__(asked, work, quiet)

    def opened(self) -> OpenSources:
        return self._parts.sources(self.asked)

    def fill_spools(self) -> None:
        files: list[list[dict[str, Any]]] = [[] for _ in self.spec.events]
        lists = {} if self.lists is None else self.lists.dtypes
        with Bar("joining", total=self._parts.of, unit="parts", quiet=self.quiet) as bar:
            for part in self._parts.opened():
                part.verify()
                codes = part.recoding(self.coder)
                for columns in ahead(part.rows(EVENTS, self.spool.dtypes, self.coder, codes)):
                    self.spool.add(columns)
                for columns in ahead(part.rows(LISTS, lists, self.coder, codes)):
                    assert self.lists is not None
                    self.lists.add(columns)
                self.coder.hashed = self.coder.hashed or part.about["hashed"]
                for one in part.about["files"]:
                    files[one["source"]].append(one)
                bar.advance(1)
        for number, of in enumerate(files):
            begin = self.findings.rows
            for one in of:
                self.findings.add(one["findings"])
            self.check_where([one["where"] for one in of], number, begin)
        self._sealed = [[LogFile(**one["file"]) for one in of] for of in files]

    def sealed_files(self) -> list[list[LogFile]]:
        return self._sealed
