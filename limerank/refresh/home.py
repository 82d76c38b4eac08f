"""The folder of the daily loop: its cycles, what is live, and what went before.

    live                     link to the folder of the published cycle, for serve --watch; during a
                             rollout to the folder served/ of the cycle that is rolled out
    record.json              version, published cycles, the rollout, and what became of each cycle
    lock                     held while a cycle or a rollback runs
    cycles/000007/
        cycle.json           when it began, and the cycle that was live then
        data/ run/ index/    its dataset, run and index, each complete or absent
        evaluation.json      the new model on the newest data
        comparison.json      the new and the current model there
        verdict.json         whether the new model goes live, and why
        served/              of a rollout: links run, index and data to those that are live, and
                             arms.json, which names both arms and their shares

A cycle that is not in ``record.json`` is unfinished; the next call continues it. The record is
written first; publishing is then one rename of the link ``live``, so that a server finds a run and
an index of the same cycle at any time.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from limerank.data.exposures import ARMS_FILE, MAIN
from limerank.errors import FormatError
from limerank.files import make_folder, read_json, sync_directory, write_json

VERSION = 1
"""Version of ``record.json`` and ``cycle.json``."""
MOST_RECORDED = 1000
"""Cycles in the record, at most; the oldest are dropped."""

Outcome = Literal["published", "refused", "rolled back", "rolling out"]
NEW = "new"
"""The arm of a model that is rolled out; the live model's is ``limerank.data.exposures.MAIN``."""


@dataclass(frozen=True)
class Rollout:
    """A model that a share of the users gets, beside the live one.

    Attributes:
        cycle: its cycle.
        share: of the users.
        since: when it began, in milliseconds since 1970.
    """

    cycle: str
    share: float
    since: int


@dataclass(frozen=True)
class Entry:
    """What became of a cycle.

    Attributes:
        cycle: its name.
        outcome: "published"; "refused", by the checks of the data or by the gate; "rolling out"; or
            "rolled back", after it was published or rolled out.
        reasons: why it was refused, or what was looked at.
        data: whether the next cycle may extend its dataset.
        began, ended: ISO 8601, UTC.
        seconds: step -> how long it took.
        exported: the time until which a store was exported, in milliseconds since 1970; None where
            nothing was exported.
    """

    cycle: str
    outcome: Outcome
    reasons: tuple[str, ...]
    data: bool
    began: str
    ended: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    exported: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "reasons": list(self.reasons), "seconds": dict(self.seconds)}


class Home:
    """The folder of a daily loop.

    Args:
        path: the folder; it is made on first use.

    Raises:
        FormatError: its record is damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cycles = path / "cycles"
        self.entries: list[Entry] = []
        self.published: list[str] = []
        self.rollout: Rollout | None = None
        if (path / "record.json").exists():
            values = read_json(path / "record.json", "the record of a daily loop")
            _check_version(path / "record.json", values)
            try:
                self.published = [str(name) for name in values["published"]]
                if (rollout := values.get("rollout")) is not None:
                    self.rollout = Rollout(**rollout)
                self.entries = [
                    Entry(**{**one, "reasons": tuple(one["reasons"])}) for one in values["cycles"]
                ]
            except (KeyError, TypeError):
                raise FormatError(
                    f"{path / 'record.json'} is damaged; restore it from a backup, or begin in a "
                    "new folder"
                ) from None

    @property
    def live(self) -> str | None:
        """The published cycle."""
        return self.published[-1] if self.published else None

    def folder(self, cycle: str) -> Path:
        return self.cycles / cycle

    def latest_data(self) -> Path | None:
        """The newest dataset that may be extended."""
        for entry in reversed(self.entries):
            folder = self.folder(entry.cycle) / "data"
            if entry.data and folder.exists():
                return folder
        return None

    @property
    def exported(self) -> int | None:
        """The time until which a store was exported."""
        times = [entry.exported for entry in self.entries if entry.exported is not None]
        return max(times, default=None)

    def begin(self) -> str:
        """The cycle that is unfinished, or a new one."""
        known = {entry.cycle for entry in self.entries} | set(self.published)
        make_folder(self.cycles)
        for name in sorted(one.name for one in self.cycles.iterdir() if one.name.isdecimal()):
            if name not in known and (self.folder(name) / "cycle.json").exists():
                return name
        last = max((int(entry.cycle) for entry in self.entries), default=0)
        name = f"{last + 1:06d}"
        folder = self.folder(name)
        if folder.exists():  # of a process that was killed while it dropped the cycle
            shutil.rmtree(folder)
        folder.mkdir()
        write_json(
            folder / "cycle.json",
            {"version": VERSION, "began": now(), "current": self.live, "seconds": {}},
        )
        sync_directory(self.cycles)
        return name

    def read_cycle(self, cycle: str) -> dict[str, Any]:
        """``cycle.json``."""
        path = self.folder(cycle) / "cycle.json"
        values = read_json(path, "a cycle of a daily loop")
        _check_version(path, values)
        return values

    def drop(self, cycle: str) -> None:
        """Remove an unfinished cycle. It is none any more before the first of its parts goes."""
        folder = self.folder(cycle)
        (folder / "cycle.json").unlink()
        sync_directory(folder)
        shutil.rmtree(folder)

    def finish(self, entry: Entry, rollout: Rollout | None = None) -> None:
        """Record what became of a cycle, and publish it where it is to go live, or begin its
        rollout."""
        if entry.outcome == "published":
            self.published.append(entry.cycle)
        if entry.outcome == "rolling out":
            assert rollout is not None
            self._prepare_rollout(rollout)
            self.rollout = rollout
        self.entries.append(entry)
        self._write()
        self.settle()

    def settle(self) -> None:
        """Point the link ``live`` to the cycle that the record names, in one step. A process that
        was killed between the two leaves the link as it was."""
        live = self.path / "live"
        if self.live is None:
            return
        target = Path("cycles") / self.live
        if self.rollout is not None:
            target = Path("cycles") / self.rollout.cycle / "served"
        if live.is_symlink() and Path(os.readlink(live)) == target:
            return
        if live.exists() and not live.is_symlink():
            raise FormatError(f"{live} is no link; move it away: it is where what is live is found")
        for left in self.path.glob(".live-*"):  # of a killed process: this one holds the lock
            left.unlink()
        link = self.path / f".live-{secrets.token_hex(4)}"
        os.symlink(target, link, target_is_directory=True)
        link.replace(live)
        sync_directory(self.path)

    def _prepare_rollout(self, rollout: Rollout) -> None:
        """Write the folder that a server watches during a rollout; nothing points to it yet."""
        folder = self.folder(rollout.cycle) / "served"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for what in ("run", "index", "data"):
            os.symlink(Path("..") / ".." / str(self.live) / what, folder / what)
        arms = {
            MAIN: {"share": 1 - rollout.share, "run": "run", "index": "index"},
            NEW: {"share": rollout.share, "run": "../run", "index": "../index"},
        }
        write_json(folder / ARMS_FILE, {"arms": arms})
        sync_directory(self.folder(rollout.cycle))

    def promote(self) -> tuple[str | None, str]:
        """Give all users the model that is rolled out; returns the cycle that was live, and the
        one that is.

        Raises:
            FormatError: there is no rollout.
        """
        if self.rollout is None:
            raise FormatError(
                f"{self.path} has no rollout: a cycle begins one where [publish] has a share "
                "below 1"
            )
        left, found = self.live, self.rollout.cycle
        self._end_rollout("published")
        return left, found

    def _end_rollout(self, outcome: Outcome) -> None:
        assert self.rollout is not None
        cycle, self.rollout = self.rollout.cycle, None
        if outcome == "published":
            self.published.append(cycle)
        self._set_outcome(cycle, outcome)
        self._write()
        self.settle()

    def _set_outcome(self, cycle: str, outcome: Outcome) -> None:
        self.entries = [
            Entry(**{**vars(one), "outcome": outcome}) if one.cycle == cycle else one
            for one in self.entries
        ]

    def roll_back(self) -> tuple[str, str]:
        """End a rollout, or make the cycle live that was live before; returns the cycle that users
        had, and the one that they have.

        Raises:
            FormatError: there is none, or its run or its index is no longer there.
        """
        if self.rollout is not None:
            left = self.rollout.cycle
            self._end_rollout("rolled back")
            return left, str(self.live)
        if len(self.published) < 2:
            raise FormatError(
                f"{self.path} has {len(self.published)} published cycles; expected two or more, to "
                "go back to the one before"
            )
        left, found = self.published[-1], self.published[-2]
        for what in ("run", "index"):
            if not (self.folder(found) / what).exists():
                raise FormatError(
                    f"{self.folder(found) / what} is no longer there; raise keep, and publish a "
                    "new cycle with limerank refresh"
                )
        self.published.pop()
        self._set_outcome(left, "rolled back")
        self._write()
        self.settle()
        return left, found

    def sweep(self, keep: int) -> None:
        """Remove what no later cycle and no rollback needs: all but the newest ``keep`` published
        runs and indexes and that of a rollout, and all but the newest usable dataset."""
        retained = set(self.published[-keep:])
        if self.rollout is not None:
            retained.add(self.rollout.cycle)
        newest = self.latest_data()
        for entry in self.entries:
            folder = self.folder(entry.cycle)
            if not folder.exists():
                continue
            if entry.cycle not in retained:
                for what in ("run", "index"):
                    shutil.rmtree(folder / what, ignore_errors=True)
            if folder / "data" != newest:
                shutil.rmtree(folder / "data", ignore_errors=True)
        for entry in self.entries[:-MOST_RECORDED]:
            if entry.cycle not in retained:
                shutil.rmtree(self.folder(entry.cycle), ignore_errors=True)
        self.published = self.published[-keep:]
        self._write()

    def _write(self) -> None:
        write_json(
            self.path / "record.json",
            {
                "version": VERSION,
                "published": self.published,
                "rollout": None if self.rollout is None else vars(self.rollout),
                "cycles": [entry.to_dict() for entry in self.entries[-MOST_RECORDED:]],
            },
        )


def now() -> str:
    """The present, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_version(path: Path, values: Mapping[str, Any]) -> None:
    if values.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {values.get('version')!r:.40}, expected {VERSION}: another "
            "version of limerank wrote it; run that one, or begin in a new folder"
        )
