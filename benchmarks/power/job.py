"""What a job is: steps that change files, and what its files contain."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar


class MixtureError(AssertionError):
    """The files contain neither the old nor the new version."""


class Job(ABC):
    """Steps that change the files of a folder, each from one version to the next.

    A later format is one more subclass, and one line in :data:`benchmarks.power.jobs.JOBS`.

    Args:
        shared: a folder for what the job reads and does not change; the jobs of a process share it.
    """

    name: ClassVar[str]
    """In the rows."""
    steps: ClassVar[int]
    """How many there are."""
    temporary: ClassVar[re.Pattern[str]] = re.compile(r"\.partial|\.fresh|-old|\.rows-|\.live-")
    """Names of files that must not be left when the job is complete."""
    repeats: ClassVar[float] = 0.1
    """Share of the states of a power loss on which the job is done again."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared

    def set_up(self, root: Path) -> None:  # noqa: B027  # nothing to do for most jobs
        """Make the first version; ``root`` is an empty folder."""

    @abstractmethod
    def step(self, number: int, root: Path) -> None:
        """Go from version ``number`` to ``number + 1``. What an earlier attempt left may be
        there."""

    def run(self, root: Path, start: int, acknowledge: Callable[[int], None]) -> None:
        """All steps from version ``start`` on; ``acknowledge`` is called with each version that is
        complete, before the next step begins."""
        for number in range(start, self.steps):
            self.step(number, root)
            acknowledge(number + 1)

    @abstractmethod
    def version(self, root: Path) -> Any:
        """Everything that is promised of the files, read with the package's own code; comparable.

        Raises:
            MixtureError: it is neither the old nor the new version of something.
        """

    def tidy(self, root: Path) -> None:  # noqa: B027  # most steps write to the same paths
        """Write once more to each path whose temporary files only the next change removes."""

    def left(self, root: Path) -> list[str]:
        """Temporary files below ``root``."""
        found = (str(path.relative_to(root)) for path in root.rglob("*"))
        return sorted(name for name in found if self.temporary.search(name))


def tree_digest(folder: Path, leave_out: tuple[str, ...] = ()) -> str:
    """Identifies the names and bytes of all files of a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in leave_out:
            found.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
            found.update(path.read_bytes())
    return found.hexdigest()
