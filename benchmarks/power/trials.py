"""Trying a job: all states of a power loss, and all calls that may fail."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.power.disk import Disk, State, digest, write_state
from benchmarks.power.job import Job
from benchmarks.power.shim import Shim, calls_of
from limerank.cli.errors import USAGE, outcome

UNRECORDED = ("-shm",)
"""Endings of files that are written through a mapping and need not survive."""
LONGEST = 400
"""Characters of an error that are shown."""


@dataclass
class Tried:
    """What was tried of a job, and what went wrong.

    Attributes:
        calls: in the record, or that were made to fail.
        states: different states of the disk that were opened, or faults that were injected.
        again: after how many of them the job was done again.
        errors: one line for each failure.
    """

    calls: int = 0
    states: int = 0
    again: int = 0
    errors: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Fault:
    """A way in which calls fail."""

    name: str
    error: int
    later: bool = False
    short: bool = False


FAULTS = (
    Fault("EIO once", errno.EIO),
    Fault("ENOSPC once", errno.ENOSPC),
    Fault("EIO from then on", errno.EIO, later=True),
    Fault("ENOSPC from then on, after a half of a write", errno.ENOSPC, later=True, short=True),
)


class Trial:
    """Tries of one job, in a process that has the shim.

    Args:
        job: the job.
        work: an empty folder.
        seed: of everything that is drawn.
    """

    def __init__(self, job: Job, work: Path, seed: int = 0) -> None:
        self.job, self.seed, self.shim = job, seed, Shim()
        self.root, self.log = work / "root", work / "calls"
        self.root.mkdir(parents=True)
        job.set_up(self.root)
        self.first = Disk(self.root)
        self.versions = [self._version()]
        job.run(self.root, 0, lambda _: self.versions.append(self._version()))
        self.files = _names(self.root)

    def _version(self) -> Any:
        return self.job.version(self.root)

    def _reset(self, state: State | None = None) -> None:
        shutil.rmtree(self.root)
        self.root.mkdir()
        write_state(self.first.state(0) if state is None else state, self.root)

    # Power loss

    def record(self) -> Disk:
        """The disk with the record of the job; the shim must have seen everything."""
        self._reset()
        disk = Disk(self.root)
        self.shim.record(self.root, self.log)
        self.job.run(self.root, 0, lambda version: self.shim.note(str(version)))
        self.shim.off()
        for call in calls_of(self.log):
            disk.add(call)
        expected = {
            path: entry[:2]
            for path, entry in Disk(self.root).state(0).items()
            if not path.endswith(UNRECORDED)
        }
        found = {
            path: entry[:2]
            for path, entry in disk.state(len(disk.changes)).items()
            if not path.endswith(UNRECORDED)
        }
        differing = sorted(
            path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)
        )
        assert not differing, f"calls that the shim does not see changed {differing}"
        return disk

    def lose_power(self, draws: int, most: int | None = None) -> Tried:
        """Open the states that the disk may be in.

        Args:
            draws: states at random for each call.
            most: at most so many states, drawn from all; None: all.
        """
        disk = self.record()
        tried, rng = Tried(calls=len(disk.changes)), random.Random(self.seed)
        for end, what, state in self._states(disk, draws, most):
            tried.states += 1
            where = f"{self.job.name}: power lost before call {end}, {what}, seed {self.seed}"
            acknowledged = max(
                (int(note) for position, note in disk.notes.items() if position < end), default=0
            )
            repeat = rng.random() < self.job.repeats
            self._open(state, acknowledged, where, repeat, tried, disk)
        return tried

    def _states(self, disk: Disk, draws: int, most: int | None) -> Iterator[tuple[int, str, State]]:
        """States of the disk, each once for each number of steps that it must contain."""
        ends, rng = list(range(len(disk.changes) + 1)), random.Random(self.seed)
        if most is not None:
            rng.shuffle(ends)
        seen: set[tuple[str, int]] = set()
        for end in ends:
            acknowledged = sum(position < end for position in disk.notes)
            found = list(disk.states(end, self.seed, draws))
            if most is not None:  # a few of each call
                found = rng.sample(found, min(len(found), 3))
            for what, made in found:
                state = made()
                known = (digest(state), acknowledged)
                if known in seen:
                    continue
                seen.add(known)
                yield end, what, state
                if most is not None and len(seen) >= most:
                    return

    def _open(
        self, state: State, acknowledged: int, where: str, repeat: bool, tried: Tried, disk: Disk
    ) -> None:
        self._reset(state)
        try:
            version = self._version()
            reached = [
                number
                for number in range(acknowledged, min(acknowledged + 2, len(self.versions)))
                if self.versions[number] == version
            ]
            if not reached:
                others = [n for n, held in enumerate(self.versions) if held == version]
                tried.errors.append(
                    f"{where}: {acknowledged} steps were acknowledged, found the version of "
                    f"{others or 'none'}"
                )
                return
            if repeat:
                tried.again += 1
                self._again(reached[-1], where, tried)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is a failure to report
            tried.errors.append(f"{where}: {_shown(error)}")

    def _again(self, reached: int, where: str, tried: Tried) -> None:
        """Do the job again from a version; it must complete and leave nothing else."""
        self.job.run(self.root, reached, lambda _: None)
        if self._version() != self.versions[-1]:
            tried.errors.append(f"{where}: done again from step {reached}, it ends otherwise")
        left = self.job.left(self.root)
        if left:
            self.job.tidy(self.root)
            left = self.job.left(self.root)
        if left:
            tried.errors.append(f"{where}: done again, temporary files are left: {left}")

    # I/O errors

    def inject(self, fault: Fault, most: int | None = None) -> Tried:
        """Make each call fail, or ``most`` of them, drawn at random."""
        self._reset()
        self.shim.fail(self.root, 0, fault.error)
        self.job.run(self.root, 0, lambda _: None)
        tried = Tried(calls=self.shim.calls())
        self.shim.off()
        numbers = list(range(1, tried.calls + 1))
        if most is not None and most < len(numbers):
            numbers = sorted(random.Random(self.seed).sample(numbers, most))
        for number in numbers:
            tried.states += 1
            where = f"{self.job.name}: {fault.name} at call {number}"
            self._reset()
            acknowledged: list[int] = [0]
            self.shim.fail(self.root, number, fault.error, later=fault.later, short=fault.short)
            raised: Exception | None = None
            try:
                self.job.run(self.root, 0, acknowledged.append)
            except Exception as error:  # noqa: BLE001  # it is judged below
                raised = error
            finally:
                self.shim.off()
            if raised is not None:
                problem = _unclear(raised)
                if problem:
                    tried.errors.append(f"{where}: {problem}")
            elif acknowledged[-1] != self.job.steps:
                tried.errors.append(f"{where}: the job ended early without an error")
            try:
                version = self._version()
                last = acknowledged[-1]
                reached = [n for n in (last, last + 1) if self.versions[n : n + 1] == [version]]
                if not reached:
                    tried.errors.append(f"{where}: {last} steps were done, and it contains others")
                    continue
                tried.again += 1
                self._again(reached[-1], where, tried)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is a failure to report
                tried.errors.append(f"{where}: afterwards {_shown(error)}")
        return tried


def _names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def _unclear(error: Exception) -> str:
    """Why an error does not name its cause and what to do; empty if it does."""
    status, text = outcome(error, "job")
    if isinstance(error, OSError) and error.filename is None:
        return f"the error does not name the file: {_shown(error)}"
    causes = (os.strerror(errno.EIO), os.strerror(errno.ENOSPC), "disk", "full", "space")
    if status != USAGE:
        return f"an unexpected error: {_shown(error)}"
    if not any(cause in text for cause in causes):
        return f"the error does not name the cause: {_shown(error)}"
    if ";" not in text:
        return f"the error does not say what to do: {_shown(error)}"
    return ""


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"


def quiet() -> None:
    """Silence what failures that are wanted would print."""
    logging.getLogger("limerank").setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
