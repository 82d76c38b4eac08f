"""Runs with random weights and their indexes, that servers of a history serve.

The catalogue has one item for each event that a user can get, so that a ranking that leaves out
what the user has seen shows exactly which events it was computed from; and some witnesses, which
nobody sees, whose values show by which run.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limerank.data.dataset import Dataset
from limerank.index.building import build_index
from tests.catalogues import make_run
from tests.worlds import prepare_log

EVENTS, WITNESSES = 60, 4
"""Events of a user, at most; further items."""
ITEMS = EVENTS + WITNESSES
FIRST_LIVE = 1000
"""The lowest id of live items."""
ARMS = {"a": ("one", "two"), "b": ("three",)}
"""Arm -> the runs that it may serve; the first one at the start."""
LINKS = {"one": 3, "two": 4, "three": 5}
"""Run -> the number of its links."""


@dataclass(frozen=True)
class World:
    """The runs and their indexes, by name.

    Attributes:
        folder: of all.
        begin: time of the last event of the log, in milliseconds since 1970.
        fingerprints: run -> its fingerprint.
    """

    folder: Path
    begin: int
    fingerprints: dict[str, str]

    def run(self, name: str) -> Path:
        return self.folder / f"run-{name}"

    def copy_index(self, name: str, target: Path) -> Path:
        """Copy an index, for servers that change it."""
        path = target / f"index-{name}"
        if not path.exists():
            shutil.copytree(self.folder / f"index-{name}", path)
        return path


@functools.cache
def world() -> World:
    """The runs and indexes, built once per process."""
    held = tempfile.TemporaryDirectory(prefix="limerank-histories-")
    _held.append(held)
    folder = Path(held.name)
    data = Dataset(prepare_log(folder, items=ITEMS, users=10, history={"length": ITEMS}))
    fingerprints = {}
    for name, links in LINKS.items():
        settings: dict[str, Any] = {"model": "lime-mha", "width": 8, "hidden": 6, "links": links}
        # Servers whose clocks differ refresh counters at different times, and rank by them.
        run = make_run(folder / f"run-{name}", data, counter_hours=0, **settings)
        build_index(run, folder / f"index-{name}", data=data)
        fingerprints[name] = run.fingerprint
    return World(folder, int(data.manifest["summary"]["time"]["last"]), fingerprints)


_held: list[tempfile.TemporaryDirectory[str]] = []
