"""Power loss and I/O errors: a part of the states and faults that ``make power-loss`` tries.

The faults that it found are tests of their own in ``test_files.py``, ``test_sqlite_store.py`` and
elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.power.disk import SECTOR, Disk
from benchmarks.power.page import power
from benchmarks.power.shim import Call, available, compiled

ROOT = Path(__file__).resolve().parents[1]
needs_shim = pytest.mark.skipif(not available(), reason="needs Linux and a C++ compiler")


def tried(*options):
    """The result of the command, in a process of its own that has the shim."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.power", "--json", *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@needs_shim
def test_states_after_a_power_loss_and_failing_calls():
    found = tried(
        "--jobs", "files", "index changes", "event store", "export", "--states", 20, "--faults", 3
    )
    assert [error for one in found.values() for of in one.values() for error in of["errors"]] == []
    for name, one in found.items():
        assert one["power loss"]["states"] == 20 and one["power loss"]["calls"] > 50, name
        assert sum(of["states"] for of in one.values()) == 20 + 4 * 3, name


@needs_shim
def test_a_writer_that_does_not_synchronise_is_found(tmp_path):
    """The harness finds what it is for."""
    script = (
        "import sys; from pathlib import Path\n"
        "from benchmarks.power.job import Job\n"
        "from benchmarks.power.trials import FAULTS, Trial\n"
        "class Careless(Job):\n"
        "    name, steps = 'careless', 2\n"
        "    def step(self, number, root):\n"
        "        (root / 'new').write_text(f'{number}' * 2000)\n"
        "        (root / 'new').replace(root / 'value')\n"
        "    def version(self, root):\n"
        "        return (root / 'value').read_text() if (root / 'value').exists() else None\n"
        "trial = Trial(Careless(Path(sys.argv[1])), Path(sys.argv[1]) / 'work')\n"
        "print(*trial.lose_power(10).errors, sep='\\n')\n"
        "print(*trial.inject(FAULTS[2]).errors, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"LD_PRELOAD": str(compiled())},
    )
    errors = done.stdout
    assert "1 steps were acknowledged, found the version of [0]" in errors, done.stderr
    assert "found the version of none" in errors, "a name without its bytes"
    assert "the error does not name the file" in errors


def test_the_page_says_where_states_and_faults_are_a_sample():
    def row(job, states, drawn, faults, possible):
        metrics = {"calls": 70, "states_opened": states, "states_done_again": 9, "failures": 0}
        metrics |= {"states_drawn": drawn, "faults_injected": faults, "faults_possible": possible}
        versions = {"python": "3.11"}
        machine = {"processor": "one", "cores": 2}
        return {
            "case": {"job": job}, "metrics": metrics, "machine": machine, "versions": versions,
            "commit": "12ab",
        }  # fmt: skip

    page = power([row("files", 114, 0, 276, 276), row("training", 1000, 1, 80, 1280)])
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert lines == [
        "| files | 70 | 114 | 9 | 276 | 0 |",
        "| training | 70 | 1,000 (drawn) | 9 | 80 of 1,280 | 0 |",
        "| all | 140 | 1,114 | 18 | 356 of 1,556 | 0 |",
    ]


def disk_of(folder, *calls):
    disk = Disk(folder)
    for kind, *rest in calls:
        one, two, first, second = (*rest, 0, 0, "", b"")[:4]
        name = str(disk.folder / first) if first and kind != "N" else first
        if kind in "RXL":
            second = os.fsencode(disk.folder / second)
        disk.add(Call(kind, one, two, name, second))
    return disk


def states_of(disk, draws=200):
    return [
        {path: data for path, (_, data, _) in made().items()}
        for _, made in disk.states(len(disk.changes), 0, draws)
    ]


def test_states_of_a_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    inode = (tmp_path / "a").stat().st_ino
    folder = tmp_path.stat().st_ino
    data = b"x" * SECTOR + b"y" * SECTOR
    write = [("O", inode + 1, 0, "new"), ("W", inode + 1, 0, "", data)]

    found = states_of(disk_of(tmp_path, *write))
    contents = {state.get("new") for state in found}
    assert {None, b"", data, data[:SECTOR], bytes(SECTOR) + data[SECTOR:]} <= contents
    assert {state["a"] for state in found} == {b"old"}, "what nobody touches stays"

    rename = [("R", 0, 0, "new", "a")]
    found = states_of(disk_of(tmp_path, *write, ("S", inode + 1), *rename))
    assert {tuple(sorted(state.items())) for state in found} == {
        (("a", b"old"),),
        (("a", b"old"), ("new", data)),
        (("a", data),),
    }
    done = disk_of(tmp_path, *write, ("S", inode + 1), *rename, ("S", folder))
    assert states_of(done) == [{"a": data}], "nothing is pending"

    found = states_of(disk_of(tmp_path, *write, *rename))
    assert {"a": b""} in found, "a renaming may be there before the bytes are"
    torn = disk_of(tmp_path, ("W", inode, 0, "", data), ("S", inode), ("T", inode, 1))
    assert {state["a"] for state in states_of(torn)} == {data, b"x"}


def test_a_removal_may_come_before_an_earlier_renaming(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    inodes = {name: (tmp_path / name).stat().st_ino for name in ("old", "new")}
    disk = disk_of(tmp_path, ("X", 0, 0, "new", "old"), ("U", 0, 0, "new/file"))
    paths = [sorted(state) for state in states_of(disk)]
    assert ["new", "new/file", "old"] in paths, "the exchange is lost, the removal is not"
    synced = disk_of(
        tmp_path,
        ("X", 0, 0, "new", "old"),
        ("S", tmp_path.stat().st_ino),
        ("U", 0, 0, "new/file"),
        ("S", inodes["old"]),
    )
    assert states_of(synced) == [{"new": b"", "old": b"", "old/file": b"new"}]
