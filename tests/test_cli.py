"""The command line: the README's commands on a small CSV file, and errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from limerank.cli.errors import outcome
from limerank.models.registry import OF_THE_PACKAGE
from tests.worlds import write_csv

SPEC = """
name = "shop"

[[events]]
files = ["events.csv"]
user = "user_id"
item = "item_id"
time = "time"

[[labels]]
name = "click"
kind = "binary"
column = "clicked"

[[labels]]
name = "watch"
kind = "duration"
column = "seconds"

[items]
files = ["items.csv"]
id = "item_id"
features = [
    { name = "category", kind = "categorical" },
    { name = "tags", kind = "categorical", split = "|" },
]
"""


@pytest.fixture
def shop(tmp_path) -> Path:
    write_csv(tmp_path)
    (tmp_path / "shop.toml").write_text(SPEC)
    return tmp_path


def test_the_readmes_commands_on_csv_logs(shop, call):
    data, run, index = shop / "data", shop / "run", shop / "index"
    status, output, _ = call("prepare", shop / "shop.toml", "--out", data)
    assert status == 0
    assert "users 30" in output
    sizes = ("--set", "heads=2", "--set", "hidden=8", "--width", 16, "--links", 4, "--epochs", 2)
    status, output, _ = call("train", data, "--model", "lime-xor", "--out", run, *sizes)
    assert status == 0, output
    assert "best validation click/calibrated_ne" in output
    assert "validation of these weights: click AUC 0." in output
    assert "before calibration" in output
    assert call("evaluate", run)[0] == 0
    assert call("index", run, "--out", index)[0] == 0
    status, output, _ = call(
        "rank", "--run", run, "--index", index, "--user", 17, "-k", 5, "--explain"
    )
    assert status == 0
    assert "because of" in output
    assert len(output.splitlines()) == 7
    status, output, _ = call(
        "rank", "--run", run, "--index", index, "--history", "3,7", "-k", 4, "--json"
    )
    assert status == 0
    ranked = [item["id"] for item in json.loads(output)["items"]]
    assert len(ranked) == 4
    assert not {3, 7} & set(ranked)
    assert call("report", run, "--out", shop / "page.html")[0] == 0
    new = shop / "new.csv"
    new.write_text("item_id,category,tags\n900,c1,a0|b1\n901,c2,a1\n")
    status, _, _ = call("index", run, "--items", new, "--out", shop / "new")
    assert status == 0
    status, output, _ = call("rank", "--run", run, "--index", shop / "new", "--user", 17, "--json")
    assert {item["id"] for item in json.loads(output)["items"]} == {900, 901}
    status, _, _ = call("index", run, "--items", new, "--merge", "--out", shop / "both")
    assert status == 0
    status, output, _ = call(
        "rank", "--run", run, "--index", shop / "both", "--user", 17, "-k", 99, "--seen", "--json"
    )
    assert {item["id"] for item in json.loads(output)["items"]} == {*range(40), 900, 901}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "nowhere.toml", "--out", "x"], "public layouts"),
        (["prepare", "movielens", "--out", "x"], "give the folder"),
        (["prepare", "spec.toml"], "give --out"),
        (
            ["prepare", "a.toml", "--out", "x", "-o", "split=position"],
            "-o is for public layouts; edit [split] in a.toml",
        ),
        (["prepare", "spec.toml", "--out", "x", "--memory", "lots"], "not an amount of memory"),
        (["prepare", "spec.toml", "--out", "x", "--memory", "-1GiB"], "not an amount of memory"),
        (["train", "nothing", "--out", "x"], "is not a dataset"),
        (["fill", "x", "--data", "nothing"], "is not a dataset"),
        (["train", "nothing", "--out", "x", "--set", "deep"], "expected NAME=VALUE"),
        (["train", "nothing", "--out", "x", "--model", "magic"], "lime-mha"),
        (["train", "nothing", "--out", "x", "--set", "magic=1"], "magic"),
        (["train", "nothing", "--out", "x", "--set", "epocs=1"], "did you mean 'epochs'?"),
        (["train", "nothing", "--out", "x", "--set", "task_weigths={}"], "mean 'task_weights'?"),
        (["train", "nothing", "--out", "x", "--model", "lime-mah"], "did you mean 'lime-mha'?"),
        (["train", "nothing", "--out", "x", "--set", "places=3"], "no setting 'places'"),
        (["train", "nothing", "--out", "x", "--set", "links=3", "--links", "4"], "--links alone"),
        (["train", "nothing", "--out", "x", "--set", "clip=3", "--set", "clip=4"], "set twice"),
        (["train", "nothing", "--out", "x", "--set", "lr=1"], "it is called learning_rate here"),
        (["train", "nothing", "--out", "x", "--set", "embedding_dim=8"], "called width here"),
        (["train", "nothing", "--out", "x", "--lr", "1"], "it is called --learning-rate here"),
        (["train", "nothing", "--out", "x", "--n-heads", "4"], "use --set heads=VALUE"),
        (["train", "nothing", "--out", "x", "--dropout=0.2"], "use --set dropout=VALUE"),
        (["train", "nothing", "--out", "x", "--threads", "0"], "--threads is 0"),
        (["prepare", "movielense", "dir", "--out", "x"], "did you mean 'movielens'?"),
        (["prepare", "movielens", ".", "--out", "x", "-o", "splitt=time"], "did you mean 'split'?"),
        (["prepare", ".", "--out", "x"], "is a folder, expected a dataset description"),
        (["evaluate", "nothing"], "is not a run"),
        (["report", "nothing", "--out", "page.pdf"], "ends in .html"),
        (["rank", "--run", "a", "--index", "b", "--users", "1", "--out", "r.xlsx"], "or .csv"),
        (["rank", "--run", "a", "--index", "b", "--out", "x.csv"], "go with --all-users"),
        (["rank", "--run", "a", "--index", "b", "--skip-unknown"], "goes with --candidates"),
        (["serve", "--run", "a", "--index", "b", "--state", "windw"], "did you mean 'window'?"),
        (
            ["serve", "--run", ".", "--index", ".", "--keys", "none.txt"],
            "--keys none.txt: no such file",
        ),
        (["serve", "--run", ".", "--index", ".", "--open", "--port", "99999"], "port is 99999"),
        (["serve", "--run", ".", "--index", ".", "--set", "body_byte=1"], "mean 'body_bytes'?"),
        (["serve", "--run", ".", "--index", ".", "--set", "port=1"], "use the option --port"),
        (["serve", "--run", ".", "--index", ".", "--no-keys", "--set", "waiting=0"], "waiting is"),
        (["demo", "--serve", "--port", "-1"], "--port is -1"),
        (["rank", "--run", "a", "--index", "b", "--candidates", "@none"], "cannot read"),
    ],
)
def test_mistakes_are_named(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = call(*arguments)
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "x").exists()


SMALL = ("--model", "two-tower", "--width", 8, "--epochs", 1, "--quiet")


@pytest.fixture
def data(shop, call) -> Path:
    assert call("prepare", shop / "shop.toml", "--out", shop / "data", "--quiet")[0] == 0
    return shop / "data"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "gpu"], "no device 'gpu'; expected cpu, cuda"),
        (["--set", 'task_weights={"klick": 0.1}'], "did you mean 'click'?"),
        (["--set", "metric=click/auk"], "did you mean 'click/auc'?"),
        (["--set", 'task_weights={"click": NaN}'], "should be a finite number"),
    ],
)
def test_a_training_that_cannot_start_leaves_nothing(data, call, more, message):
    status, _, error = call("train", data, "--out", data.parent / "run", *SMALL, *more)
    assert status == 2 and error.startswith("error: ") and message in error
    assert not (data.parent / "run").exists()


def test_a_folder_in_a_file_and_a_folder_of_something_else_are_refused(data, call):
    """Before the work; --overwrite replaces a run, a dataset or a demo, and nothing else."""
    shop = data.parent
    assert call("train", data, "--out", shop / "run", *SMALL)[0] == 0
    before = sorted(path.name for path in shop.iterdir())
    for command in (
        ["prepare", shop / "shop.toml", "--out", shop / "events.csv" / "x"],
        ["train", data, "--out", shop / "events.csv" / "x", *SMALL],
        ["synth", "--out", shop / "events.csv" / "x"],
        ["demo", "--out", shop / "events.csv" / "x"],
        ["rank", "--run", "a", "--index", "b", "--users", "1", "--out", shop / "events.csv" / "x"],
        ["index", shop / "run", "--out", shop / "events.csv" / "x"],
    ):
        status, _, error = call(*command)
        assert status == 2 and "events.csv is a file" in error, command
    for command in (
        ["prepare", shop / "shop.toml", "--out", shop, "--overwrite"],
        ["train", data, "--out", shop, *SMALL, "--overwrite"],
        ["synth", "--out", shop, "--overwrite"],
        ["demo", "--out", shop, "--overwrite"],
    ):
        status, _, error = call(*command)
        assert status == 2 and "has other contents" in error, command
    assert sorted(path.name for path in shop.iterdir()) == before


def test_a_port_in_use_is_found_before_the_demo_works(tmp_path, call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, output, error = call("demo", "--serve", "--port", port, "--out", tmp_path / "demo")
    assert (status, output) == (2, "") and str(port) in error and len(error.splitlines()) == 1
    assert not (tmp_path / "demo").exists()


PATCHED = """
import importlib, os, signal, sys
module, name, how, *sys.argv[1:] = sys.argv[1:]
module, _, owner = module.partition(":")
module = importlib.import_module(module)
owner = getattr(module, owner) if owner else module
before = getattr(owner, name)
def patched(*given, **named):
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        held = given  # a frame that an error holds
        raise ZeroDivisionError("a fault\\nof two lines")
    return before(*given, **named)
setattr(owner, name, patched)
from limerank.cli.main import main
main()
"""


def patched(where: str, name: str, how: str, *command: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which a function is interrupted or broken."""
    return subprocess.run(
        [sys.executable, "-c", PATCHED, where, name, how, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_ctrl_c_says_how_to_go_on(data, call, monkeypatch):
    shop = data.parent
    assert call("train", data, "--out", shop / "run", *SMALL)[0] == 0

    def interrupt(*_given, **_named):
        raise KeyboardInterrupt

    for function, how_on, *command in (
        ("limerank.data.prepare.job.learn", "the same command again to start over",
         "prepare", shop / "shop.toml", "--out", shop / "again", "--quiet"),
        ("limerank.training.trainer.Trainer._after_step", "to resume from the last checkpoint",
         "train", data, "--out", shop / "cut", *SMALL),
        ("limerank.index.building._write_ids", "to resume a build",
         "index", shop / "run", "--out", shop / "index", "--quiet"),
    ):  # fmt: skip
        with monkeypatch.context() as patched_here:
            patched_here.setattr(function, interrupt)
            status, output, error = call(*command)
        assert (status, output) == (130, ""), error
        assert error.startswith("interrupted: ") and how_on in error
        assert len(error.splitlines()) == 1
        assert call(*command)[0] == 0  # and so it does
    # The signal itself, in a process that holds objects of the C++ library.
    rank = ["rank", "--run", shop / "run", "--index", shop / "index", "--all-users", "--quiet"]
    rank += ["--out", shop / "recs.parquet"]
    done = patched("limerank.ranking.bulk", "_ranked", "interrupt", *rank)
    assert (done.returncode, done.stdout) == (130, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("interrupted: ") and "to resume the output of --all-users" in line
    assert call(*rank)[0] == 0


def test_an_unexpected_error_is_one_line_and_its_trace_a_file(data, call):
    shop = data.parent
    assert call("train", data, "--out", shop / "run", *SMALL[2:])[0] == 0
    assert call("index", shop / "run", "--out", shop / "index", "--quiet")[0] == 0
    rank = ["rank", "--run", shop / "run", "--index", shop / "index", "--user", 3]
    done = patched("limerank.ranking.recommender:Recommender", "rank", "fail", *rank)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()  # and none of nanobind's
    found = re.fullmatch(
        r"error: ZeroDivisionError: a fault of two lines \(unexpected; the trace is in (.*)\)", line
    )
    assert found is not None, line
    trace = Path(found[1])
    assert "Traceback" in trace.read_text() and "in patched" in trace.read_text()
    trace.unlink()
    done = patched("limerank.ranking.recommender:Recommender", "rank", "fail", "--debug", *rank)
    assert "Traceback" in done.stderr and "in patched" in done.stderr
    Path(done.stderr.rsplit("trace is in ", 1)[1].strip().removesuffix(")")).unlink()


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "free some space"), (errno.EIO, "check the disk")]
)
def test_an_error_of_the_disk_says_what_to_do(code, advice):
    """One that no writer of the package has put into words, such as that of a library."""
    status, text = outcome(OSError(code, os.strerror(code), "runs/a"), "train")
    assert status == 2 and text.startswith(f"runs/a: {os.strerror(code)}; {advice}")


def test_what_is_held_at_the_end_is_no_leak(data, call):
    """Of nanobind's: an object that nobody frees, as frames and modules do."""
    shop = data.parent
    assert call("train", data, "--out", shop / "run", *SMALL[2:])[0] == 0
    assert call("index", shop / "run", "--out", shop / "index", "--quiet")[0] == 0
    script = (
        "import ctypes, sys; from limerank import Recommender\n"
        "held = Recommender(sys.argv[1], sys.argv[2]).scorer._native\n"
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))\n"
    )
    command = [sys.executable, "-c", script, str(shop / "run"), str(shop / "index")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_candidates_are_named_or_skipped_and_counted(data, call):
    shop = data.parent
    assert call("train", data, "--out", shop / "run", *SMALL)[0] == 0
    assert call("index", shop / "run", "--out", shop / "index", "--quiet")[0] == 0
    rank = ["rank", "--run", shop / "run", "--index", shop / "index", "--user", 3, "--seen"]
    status, _, error = call(*rank, "--candidates", "7,nobody,900")
    assert status == 2 and "2 of 3 candidates are not in the index" in error and "nobody" in error
    status, output, _ = call(*rank, "--candidates", "7,nobody,900", "--skip-unknown")
    assert status == 0 and "2 candidates were skipped" in output
    status, output, _ = call(*rank, "--candidates", "nobody,7,8", "--skip-unknown", "--json")
    found = json.loads(output)
    assert found["skipped"] == 1 and {item["id"] for item in found["items"]} == {7, 8}
    status, output, _ = call(*rank, "--candidates", "nobody", "--skip-unknown")
    assert status == 0 and "nothing is left to rank" in output


def test_the_ending_decides_what_is_written(data, call):
    import polars as pl

    shop = data.parent
    assert call("train", data, "--out", shop / "run", *SMALL)[0] == 0
    assert call("index", shop / "run", "--out", shop / "index", "--quiet")[0] == 0
    rank = ["rank", "--run", shop / "run", "--index", shop / "index", "--users", "3,5", "-k", 4]
    for name in ("recs.csv", "recs.parquet", "recs"):
        assert call(*rank, "--out", shop / "new" / name, "--quiet")[0] == 0
    assert (shop / "new" / "recs.csv").read_text().startswith("user,rank,item,value,click,watch\n")
    table = pl.read_parquet(shop / "new" / "recs.parquet")
    assert pl.read_csv(shop / "new" / "recs.csv")["item"].to_list() == table["item"].to_list()
    assert pl.read_parquet(shop / "new" / "recs").equals(table)
    assert sorted(path.name for path in (shop / "new").iterdir()) == [
        "recs", "recs.csv", "recs.parquet",
    ]  # fmt: skip


def test_the_version(call):
    from importlib.metadata import version

    import limerank

    assert call("--version")[:2] == (0, f"limerank {version('limerank')}\n")
    assert limerank.__version__ == version("limerank")


def test_help_teaches(call):
    for command in ("prepare", "train", "evaluate", "index", "rank", "synth", "demo", "report"):
        status, output, _ = call(command, "--help")
        assert status == 0
        assert "--out" in output or command == "rank"


def test_help_names_every_model(call):
    _, output, _ = call("train", "--help")
    for name in OF_THE_PACKAGE:
        assert re.search(rf"[^-]\b{name}\b", output), name


def test_the_next_command_can_be_pasted_where_names_have_spaces(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{n % 9},{n % 7},{1_700_000_000 + 3600 * n},{n % 2}" for n in range(300)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,time,click", *rows]) + "\n")
    (tmp_path / "spec.toml").write_text(
        'name = "shop"\n[[events]]\nfiles = ["log.csv"]\ntime = "time"\n'
        '[[labels]]\nname = "click"\nkind = "binary"\n'
    )

    def after(*arguments: str) -> list[str]:
        status, output, error = call(*arguments, "-q")
        assert status == 0, error
        return shlex.split(output.rpartition("Next: limerank ")[2])

    data, run, index = "data/my shop", "runs/my shop", "index/my shop"
    assert after("prepare", "spec.toml", "--out", data)[:2] == ["train", data]
    trained = after("train", data, "--model", "popularity", "--epochs", "1", "--out", run)
    assert trained == ["evaluate", f"{run};", "limerank", "index", run, "--out", index]
    assert after("index", run, "--out", index)[:5] == ["rank", "--run", run, "--index", index]
    assert after("fill", "my store.db", "--data", data)[-2:] == ["my store.db", "--no-keys"]
    assert after("prepare", "spec.toml", "--write-spec", "my spec.toml")[1] == "my spec.toml"
    few = ("--users", "20", "--items", "64", "--events", "400")
    assert after("synth", *few, "--out", "my log")[:2] == ["prepare", "my log/spec.toml"]
