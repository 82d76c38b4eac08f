"""Folders and files are whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from limerank.errors import FormatError
from limerank.files import new_folder, read_json, write_json


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
