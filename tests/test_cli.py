"""The command line: the README's way on a CSV made by hand, and errors that say what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from limerank.config import ModelName
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


def test_the_readmes_way_with_ones_own_logs(shop, call):
    data, run, index = shop / "data", shop / "run", shop / "index"
    status, told, _ = call("prepare", shop / "shop.toml", "--out", data)
    assert status == 0
    assert "users 30" in told
    sizes = ("--set", "heads=2", "--set", "hidden=8", "--width", 16, "--links", 4, "--epochs", 2)
    status, told, _ = call("train", data, "--model", "lime-xor", "--out", run, *sizes)
    assert status == 0, told
    assert "best_click/auc" in told
    assert call("evaluate", run)[0] == 0
    assert call("index", run, "--out", index)[0] == 0
    status, told, _ = call(
        "rank", "--run", run, "--index", index, "--user", 17, "-k", 5, "--explain"
    )
    assert status == 0
    assert "because of" in told
    assert len(told.splitlines()) == 7
    status, told, _ = call(
        "rank", "--run", run, "--index", index, "--history", "3,7", "-k", 4, "--json"
    )
    assert status == 0
    ranked = [item["id"] for item in json.loads(told)["items"]]
    assert len(ranked) == 4
    assert not {3, 7} & set(ranked)
    assert call("report", run, "--out", shop / "page.html")[0] == 0
    new = shop / "new.csv"
    new.write_text("item_id,category,tags\n900,c1,a0|b1\n901,c2,a1\n")
    status, _, _ = call("index", run, "--items", new, "--out", shop / "new")
    assert status == 0
    status, told, _ = call("rank", "--run", run, "--index", shop / "new", "--user", 17, "--json")
    assert {item["id"] for item in json.loads(told)["items"]} == {900, 901}
    status, _, _ = call("index", run, "--items", new, "--merge", "--out", shop / "both")
    assert status == 0
    status, told, _ = call(
        "rank", "--run", run, "--index", shop / "both", "--user", 17, "-k", 99, "--seen", "--json"
    )
    assert {item["id"] for item in json.loads(told)["items"]} == {*range(40), 900, 901}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "nowhere.toml", "--out", "x"], "official layouts"),
        (["prepare", "movielens", "--out", "x"], "give the folder"),
        (["prepare", "spec.toml"], "give --out"),
        (["prepare", "spec.toml", "--out", "x", "--memory", "lots"], "no amount of memory"),
        (["train", "nothing", "--out", "x"], "is not a dataset"),
        (["train", "nothing", "--out", "x", "--set", "deep"], "expected NAME=VALUE"),
        (["train", "nothing", "--out", "x", "--model", "magic"], "lime-mha"),
        (["train", "nothing", "--out", "x", "--set", "magic=1"], "magic"),
        (["evaluate", "nothing"], "is not a run"),
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


def test_help_teaches(call):
    for command in ("prepare", "train", "evaluate", "index", "rank", "synth", "demo", "report"):
        status, told, _ = call(command, "--help")
        assert status == 0
        assert "--out" in told or command == "rank"


def test_help_names_every_model(call):
    _, told, _ = call("train", "--help")
    for name in get_args(ModelName):
        assert re.search(rf"[^-]\b{name}\b", told), name
