"""The folder of the parts of a log: what they are parts of, and which are complete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from limerank.data.prepare.asked import Asked
from limerank.data.prepare.logfiles import LogFile
from limerank.data.prepare.opening import OpenSources
from limerank.errors import FormatError
from limerank.files import (
    check_output,
    sweep_folder,
    sync_directory,
    writes_to,
)
from limerank.parts import (
    Part,
    check_complete,
    check_same,
    digest_of,
    parts_folder,
    read_plan,
    read_sealed,
    settled,
)

FORMAT = 2
"""Version of the folder of parts."""
PLAN, OF_PART = "plan.json", "part.json"
TEXT = ("items-are-text", "users-are-text")
"""Marks in the folder of parts."""


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
            plan = read_plan(folder / PLAN, "a log in parts", FORMAT)
        else:
            sources = OpenSources(asked)
            job = _job(asked, sources.files, of)
            plan = settled(
                folder / PLAN,
                {
                    "format": FORMAT,
                    "job": job,
                    "integral": sources.integral,
                    "log": _listed(sources.files),
                    "tables": _listed(_tables(asked)),
                },
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
        return cls(folder, read_plan(folder / PLAN, "a log in parts", FORMAT))

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
        held = self.plan["job"]
        if held["description"] == job["description"]:
            for what, files in (("log", found.files), ("tables", _tables(asked))):
                self._check_files(self.plan[what], _listed(files))
        check_same(self.folder, held, job)
        return found

    def _check_files(self, held: dict[str, str], files: dict[str, str]) -> None:
        names = [name for name in {**held, **files} if held.get(name) != files.get(name)]
        if names:
            changed = names[0]
            if changed not in held:
                what = "is new"
            else:
                what = "has changed" if changed in files else "is missing"
            raise FormatError(
                f"{self.folder} holds parts of another log: {changed} {what} since the first of "
                f"them was read. Put the files back, or remove {self.folder} to start over"
            )

    def complete(self, number: int) -> dict[str, Any] | None:
        """What a part says of itself; None where it has to be read (again).

        Raises:
            FormatError: it is damaged, or has another plan.
        """
        part = Part(number, self.of)
        path = self.folder / part.folder
        if not path.exists():
            return None
        again = f"Remove {path}, and run --part {part} again"
        found = read_sealed(path / OF_PART, "a part of a log", again)
        if found.get("plan") != self._digest:
            raise FormatError(
                f"{path} was read for another plan than {self.folder / PLAN}. {again}"
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


def _job(asked: Asked, files: Sequence[Sequence[LogFile]], of: int) -> dict[str, Any]:
    """What all parts have to agree on."""
    earlier = asked.earlier
    return {
        "parts": of,
        "description": digest_of(asked.inputs.spec.model_dump(mode="json")),
        "files": [len(of_source) for of_source in files],
        "earlier": None if earlier is None else digest_of(earlier.manifest),
        "extend": asked.events is not None,
        "since": asked.since,
        "memory": asked.memory,
    }


def _tables(asked: Asked) -> list[list[LogFile]]:
    """The files of the tables of items and users."""
    of = asked.inputs.table_files
    return [[LogFile.of(path) for path in of(what)] for what in ("items", "users")]


def _listed(files: Iterable[Iterable[LogFile]]) -> dict[str, str]:
    """What each file is known by, and the digest of its size and time of change."""
    return {one.key: digest_of(one.to_dict()) for of_source in files for one in of_source}
