"""Folders and files are complete or absent."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from limerank import files
from limerank.errors import DataError, FormatError
from limerank.files import (
    check_output,
    make_folder,
    new_file,
    new_folder,
    read_json,
    remove_folder,
    sweep_folder,
    sync_directory,
    sync_file,
    write_json,
    writes_to,
)
from limerank.locks import held_alone
from tests.catalogues import shop


def test_a_folder_appears_when_it_is_complete(tmp_path):
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


def test_an_existing_folder_stays_without_overwrite(tmp_path):
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
    assert len(list(tmp_path.iterdir())) == 2  # the folder and its lock
    with new_folder(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_kill_in_mid_swap_loses_nothing(tmp_path):
    """A crash after the old folder was moved aside and before the new one was moved in: the old
    one is restored."""
    missing = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    pid = int(missing.stdout)
    aside = tmp_path / f".a.partial-{pid}-old"
    aside.mkdir()
    (aside / "x").write_text("old")
    with pytest.raises(FormatError, match="already exists"), new_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "x").read_text() == "old"


BUILD = """
import sys
from limerank.files import new_folder
with new_folder(sys.argv[1]) as partial:
    (partial / "x").write_text("1")
    print(partial, flush=True)
    sys.stdin.read()
"""


def test_a_live_build_is_left_alone_whatever_its_process_id(tmp_path):
    """Another container's process ids mean nothing here: its lock is what says that it lives."""
    command = [sys.executable, "-c", BUILD, str(tmp_path / "a")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen(command, text=True, **pipes)
    assert other.stdin is not None and other.stdout is not None
    partial = tmp_path / os.path.basename(other.stdout.readline().strip())
    assert not any(part.isdigit() and int(part) == other.pid for part in partial.name.split("-"))
    with new_folder(tmp_path / "a") as mine:
        (mine / "y").write_text("2")
    assert (partial / "x").exists()
    with pytest.raises(FormatError, match="already exists"), new_folder(tmp_path / "a"):
        pass
    other.kill()
    other.communicate()
    with new_folder(tmp_path / "a", overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_kill_in_mid_swap_puts_the_old_folder_back(tmp_path):
    """The present form: the lock lies beside both folders."""
    for name in ("", "-old"):
        (tmp_path / f".a.partial-12ab{name}").mkdir()
        (tmp_path / f".a.partial-12ab{name}" / "x").write_text(name)
    (tmp_path / ".a.partial-12ab.lock").touch()
    with pytest.raises(FormatError, match="already exists"), new_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "x").read_text() == "-old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_nobody_can_judge_is_left(tmp_path, monkeypatch):
    """A partial folder without a lock file, and any on a file system without locks."""
    foreign = tmp_path / ".a.partial-4242"
    foreign.mkdir()
    (tmp_path / ".a.partial-12ab").mkdir()
    (tmp_path / ".a.partial-12ab.lock").touch()

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with new_folder(tmp_path / "a"):
        pass
    assert foreign.is_dir() and (tmp_path / ".a.partial-12ab").is_dir()
    assert (tmp_path / "a").is_dir()


def test_a_file_that_blocks_a_folder_is_named(tmp_path):
    (tmp_path / "log.csv").write_text("a")
    with (
        pytest.raises(FormatError, match=r"log\.csv is a file; choose another folder"),
        new_folder(tmp_path / "log.csv" / "x" / "y"),
    ):
        pass
    with pytest.raises(FormatError, match=r"cannot be written.*choose another path"):
        check_output("/proc/nowhere/m.json")


def test_outputs_are_checked_before_they_are_written(tmp_path):
    assert check_output(tmp_path / "no" / "such" / "m.json", (".json",)).name == "m.json"
    assert list(tmp_path.iterdir()) == []
    assert check_output(tmp_path / "recs", (".parquet", ".csv")).name == "recs"
    with pytest.raises(FormatError, match=r"ends in \.parquet or \.csv"):
        check_output(tmp_path / "recs.xlsx", (".parquet", ".csv"))
    with pytest.raises(FormatError, match="is a folder, expected a file"):
        check_output(tmp_path)
    (tmp_path / "f").write_text("")
    with pytest.raises(FormatError, match=r"f is a file"):
        check_output(tmp_path / "f" / "m.json")


def test_reading_and_ranking_need_no_locks_and_building_says_so(tmp_path):
    """As on Windows, which has no fcntl."""
    of = shop("lime-mha")
    script = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from limerank import Recommender\n"
        "from limerank.files import new_folder\n"
        "run, index, data, out = sys.argv[1:]\n"
        "print(len(Recommender(run, index, data).rank(3, k=4)))\n"
        "with new_folder(out): pass\n"
    )
    paths = [of.run.path, of.index.path, of.data.path, tmp_path / "a"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "4\n"
    assert "has no POSIX file locks" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_json_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == read_json(path, "a test") == {"a": [1, None]}
    assert os.listdir(tmp_path) == ["a.json"]
    path.write_text('{"a":')
    with pytest.raises(FormatError, match="damaged"):
        read_json(path, "a test")
    path.write_text("7")
    with pytest.raises(FormatError, match="holds an int, expected an object"):
        read_json(path, "a test")
    with pytest.raises(FormatError, match="is not a test"):
        read_json(tmp_path / "b.json", "a test")


HOLD = """
import sys, time
from limerank.locks import held_alone
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


def test_a_folder_that_another_process_made_meanwhile_is_not_replaced(tmp_path):
    with (
        pytest.raises(FormatError, match="made by another process meanwhile"),
        new_folder(tmp_path / "out") as mine,
    ):
        (mine / "a").write_text("mine")
        with new_folder(tmp_path / "out") as others:
            (others / "a").write_text("theirs")
    assert (tmp_path / "out" / "a").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with new_folder(tmp_path / "out", overwrite=True) as mine:
        (mine / "a").write_text("mine")
    assert (tmp_path / "out" / "a").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_with_the_folder_and_leaves_nothing(tmp_path, code):
    with (
        pytest.raises(FormatError, match=r"above/out cannot be written: .*; free space there"),
        new_folder(tmp_path / "above" / "out") as folder,
    ):
        (folder / "a").write_text("some")
        raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def calls(monkeypatch):
    """Synchronisations, exchanges and removals of folders, in their order."""
    found, fsync, exchanged, rmtree = [], os.fsync, files._exchanged, files.shutil.rmtree

    def record_sync(descriptor):
        found.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def record_exchange(one, other):
        found.append(("exchange", other.name))
        return exchanged(one, other)

    def record_removal(path, *more, **options):
        found.append(("remove", files.Path(path).name[:5]))
        rmtree(path, *more, **options)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(files, "_exchanged", record_exchange)
    monkeypatch.setattr(files.shutil, "rmtree", record_removal)
    return found


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_linux
def test_folders_that_are_created_for_a_file_are_durable(tmp_path, calls):
    """Else an acknowledged file is lost with the folder that it lies in."""
    assert make_folder(tmp_path / "a" / "b") == [tmp_path / "a", tmp_path / "a" / "b"]
    assert calls == [("sync", tmp_path.name), ("sync", "a")]
    calls.clear()
    write_json(tmp_path / "a" / "c" / "x.json", {})
    assert calls[0] == ("sync", "a") and calls[-1] == ("sync", "c")


@needs_linux
def test_a_replaced_folder_is_removed_after_the_new_one_is_durable(tmp_path, calls):
    for _ in range(2):
        calls.clear()
        with new_folder(tmp_path / "out", overwrite=True) as partial:
            (partial / "x").write_text("1")
            assert calls[0] == ("sync", tmp_path.name), "the lock file, before the folder"
    where = calls.index(("exchange", "out"))
    assert calls[where + 1 : where + 3] == [("sync", tmp_path.name), ("remove", ".out.")]
    assert calls[-1] == ("sync", tmp_path.name), "before the lock file is removed"


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_EXCHANGES", {})
    for text in ("old", "new"):
        with new_folder(tmp_path / "out", overwrite=True) as partial:
            (partial / "x").write_text(text)
    assert (tmp_path / "out" / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_removed_now_is_removed_by_the_next_call(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "x")

    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", refuse)
        with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out"):
            1 / 0  # noqa: B018
    assert len(list(tmp_path.iterdir())) == 2, "the folder keeps its lock file"
    with new_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


WRITE = """
import sys
from limerank.files import new_file
with new_file(sys.argv[1]) as partial:
    partial.write_text("theirs")
    print(partial.name, flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_of_a_file_leaves_nothing_for_ever(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / ".x.json.partial-12ab").write_text("killed")
    (tmp_path / ".y.json.partial-12ab").write_text("of another file")
    command = [sys.executable, "-c", WRITE, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen(command, text=True, **pipes)
    assert other.stdout is not None
    theirs = other.stdout.readline().strip()
    write_json(path, {"mine": 1})
    assert sorted(os.listdir(tmp_path)) == sorted(["x.json", theirs, ".y.json.partial-12ab"])
    other.communicate("")
    assert path.read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == [".y.json.partial-12ab", "x.json"]


class ComputeError(Exception):
    """As Polars raises it."""


@pytest.mark.parametrize(
    "error",
    [
        ComputeError("parquet: underlying IO error: Input/output error (os error 5)"),
        OSError("40 requested and 12 written"),
        OSError("No space left on device (os error 28): /somewhere"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_errors_of_the_disk_that_libraries_raise_name_the_file(tmp_path, error):
    for write in (new_file, new_folder):
        with (
            pytest.raises(FormatError, match=r"out cannot be written: .*(check its disk|free)"),
            write(tmp_path / "out"),
        ):
            raise error
        with pytest.raises(ComputeError, match="of another kind"), write(tmp_path / "out"):
            raise ComputeError("of another kind")
        with pytest.raises(DataError, match="no space"), write(tmp_path / "out"):
            raise DataError("no space (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_removed_in_one_step(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    for name in ("a", "b"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text(name)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files.shutil, "rmtree", killed)
        remove_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    remove_folder(tmp_path / "out")
    remove_folder(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_was_cut_short_is_completed_by_the_next(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files.shutil, "rmtree", killed)
        remove_folder(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 2, "the folder, under another name, and its lock file"
    remove_folder(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_beside_a_complete_folder_is_removed(tmp_path):
    """A command that goes on with the folder makes no new one, which would remove it."""
    (tmp_path / "out").mkdir()
    for name in ("out", "other"):
        (tmp_path / f".{name}.partial-12ab").mkdir()
        (tmp_path / f".{name}.partial-12ab" / "x").write_text("left")
        (tmp_path / f".{name}.partial-12ab.lock").touch()
    (tmp_path / ".out.partial-34cd.lock").touch()
    with new_folder(tmp_path / "out", overwrite=True) as living:
        sweep_folder(tmp_path / "out")
        assert living.exists()
        others = [".other.partial-12ab", ".other.partial-12ab.lock"]
        expected = [*others, living.name, f"{living.name}.lock", "out"]
        assert sorted(os.listdir(tmp_path)) == sorted(expected)


@pytest.mark.parametrize("sync", [sync_file, sync_directory])
def test_a_synchronisation_that_fails_names_what_it_is_of(tmp_path, monkeypatch, sync):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path if sync is sync_directory else tmp_path / "x"
    (tmp_path / "x").touch()
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        sync(path)
    assert (raised.value.errno, raised.value.filename) == (errno.EIO, str(path))
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == descriptors, "it is closed all the same"


def test_a_block_that_writes_names_the_file_of_its_errors(tmp_path, files_of_at_most):
    path = tmp_path / "x"
    with (
        pytest.raises(FormatError, match="x cannot be written: File too large; free space there"),
        writes_to(path),
        files_of_at_most(10),
    ):
        path.write_text("more than ten characters")
    with pytest.raises(FormatError, match="of its own"), writes_to(path):
        raise FormatError("of its own")
