"""Folders and files are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from limerank.errors import FormatError
from limerank.files import held_alone, new_folder, read_json, write_json


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with new_folder(tmp_path / "a" / "b") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "x").read_text() == "1"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("1")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept_unless_told(tmp_path):
    with new_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("1")
    with (
        pytest.raises(FormatError, match="already exists; pass --overwrite"),
        new_folder(tmp_path / "a"),
    ):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a", overwrite=True):
        1 / 0  # noqa: B018
    assert (tmp_path / "a" / "x").read_text() == "1"
    with new_folder(tmp_path / "a", overwrite=True) as partial:
        (partial / "y").write_text("2")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["y"]


def test_a_kill_leaves_nothing_that_looks_finished_and_is_swept_up(tmp_path):
    script = (
        "import os, sys; from limerank.files import new_folder\n"
        "with new_folder(sys.argv[1]) as partial:\n"
        "    (partial / 'x').write_text('1'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], check=False)
    assert not (tmp_path / "a").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_kill_in_mid_swap_loses_nothing(tmp_path):
    """The old folder stands aside and the new one is not yet in place: the old one comes back."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    pid = int(gone.stdout)
    aside = tmp_path / f".a.partial-{pid}-old"
    aside.mkdir()
    (aside / "x").write_text("old")
    with pytest.raises(FormatError, match="already exists"), new_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "x").read_text() == "old"


def test_json_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == read_json(path, "a test") == {"a": [1, None]}
    assert os.listdir(tmp_path) == ["a.json"]
    path.write_text('{"a":')
    with pytest.raises(FormatError, match="damaged"):
        read_json(path, "a test")
    with pytest.raises(FormatError, match="is not a test"):
        read_json(tmp_path / "b.json", "a test")


HOLD = """
import sys, time
from limerank.files import held_alone
with held_alone(sys.argv[1], "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_alone_and_dies_with_its_process(tmp_path):
    lock = tmp_path / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with (
        pytest.raises(FormatError, match=rf"somebody is here \(process {other.pid}\); wait"),
        held_alone(lock, "somebody is here"),
    ):
        pass
    other.kill()
    other.communicate()
    with held_alone(lock, "somebody is here"):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_a_file_system_without_locks_keeps_nobody_away(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held_alone(tmp_path / "lock", "somebody"), held_alone(tmp_path / "lock", "somebody"):
        pass
