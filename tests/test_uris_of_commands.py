"""Every command takes URIs in place of paths, and so do the functions of Python."""

from __future__ import annotations

import inspect
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import BaseModel

import limerank
from limerank.cli.app import COMMANDS, command_of
from limerank.cli.uris import USES
from limerank.errors import FingerprintError, FormatError, StorageError
from limerank.serving.stores import SqliteStore
from limerank.storage import systems, uris
from limerank.storage.fetching import fetch
from limerank.storage.uris import parse_uri
from tests.s3_server import S3
from tests.stores import event, exposure

SPEC = """
name = "shop"
[[events]]
files = ["log"]
user = "user"
item = "item"
time = "time"
[[labels]]
name = "click"
kind = "binary"
[items]
files = ["items.csv"]
id = "item"
[[items.features]]
name = "brand"
kind = "categorical"
"""


@pytest.fixture
def bucket(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with a log, an item table and a description."""
    monkeypatch.setenv("LIMERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    bucket = s3.bucket("b-" + tmp_path.name.replace("_", "-"))
    rng = np.random.default_rng(3)
    log = pl.DataFrame(
        {
            "user": rng.integers(0, 12, 400),
            "item": rng.integers(0, 20, 400),
            "time": 1_700_000_000 + 3600 * np.arange(400),
            "click": rng.integers(0, 2, 400),
        }
    )
    items = pl.DataFrame({"item": range(20), "brand": [f"b{k % 3}" for k in range(20)]})
    for name, text in (
        ("log/day.csv", log.write_csv()),
        ("items.csv", items.write_csv()),
        ("spec.toml", SPEC),
    ):
        systems.write(parse_uri(f"{bucket}/{name}"), [text.encode()])
    return bucket


def test_from_a_log_to_rankings_without_a_local_path(bucket, call, tmp_path, monkeypatch):
    def run(*arguments: str) -> str:
        status, output, error = call(*arguments)
        assert status == 0, error
        assert str(tmp_path) not in output
        return str(output)

    data, trained, index = (f"{bucket}/{name}" for name in ("data", "runs/popular", "index"))
    assert f"limerank train {data}" in run("prepare", f"{bucket}/spec.toml", "--out", data, "-q")
    assert f"limerank index {trained}" in run(
        "train", data, "--model", "popularity", "--out", trained, "--epochs", "1", "-q"
    )
    config = json.loads((fetch(trained) / "config.json").read_text())
    assert config["data"] == data
    # As on another machine, whose cache is empty.
    monkeypatch.setenv("LIMERANK_CACHE", str(tmp_path / "other"))
    run("evaluate", trained, "-q", "--lists", "0")
    assert (fetch(trained) / "metrics.json").exists()
    run("index", trained, "--out", index, "-q")
    assert f"{index}: 2 removed; 18 items" in run(
        "index", trained, "--out", index, "--remove", "3,4", "-q"
    )
    assert f"{index} is intact: 18 items" in run("index", trained, "--out", index, "--verify")
    ranked = json.loads(
        run("rank", "--run", trained, "--index", index, "--user", "5", "-k", "18", "--json")
    )
    out = f"{bucket}/recs.parquet"
    several = run(
        "rank", "--run", trained, "--index", index, "--all-users", "-k", "3", "--out", out
    )
    assert f"{out}: the best 3" in several
    assert pl.read_parquet(fetch(out)).columns[:4] == ["user", "rank", "item", "value"]
    run("report", trained, "--out", f"{bucket}/report.html")
    assert b"<html" in systems.read(parse_uri(f"{bucket}/report.html"), 1 << 24)
    limerank.publish(fetch(trained), f"{bucket}/copy")
    run("compare", trained, "--with", f"{bucket}/copy", "-q", "--resamples", "10")
    status, _, error = call("train", data, "--out", trained, "--model", "popularity", "-q")
    assert status == 2 and f"{trained} is published already; pass --overwrite" in error
    # The same by Python.
    recommender = limerank.Recommender(trained, index)
    found = [one["id"] for one in ranked["items"]]
    assert [one.id for one in recommender.rank(5, k=18).items] == found
    assert len(limerank.Dataset(data).item_ids) == 20
    assert limerank.load_run(trained).fingerprint == recommender.run.fingerprint
    limerank.prepare(f"{bucket}/spec.toml", f"{bucket}/again")
    limerank.prepare(tomllib.loads(SPEC), f"{bucket}/third", base=Path(bucket))
    for other in ("again", "third"):
        assert (fetch(f"{bucket}/{other}") / "events/item.npy").read_bytes() == (
            fetch(data) / "events/item.npy"
        ).read_bytes()


def popular(folder: Path, **items: list[Any]) -> tuple[Path, Path]:
    """A run and its index, of a log of 20 items that is prepared without files."""
    rng = np.random.default_rng(3)
    log = {
        "user": rng.integers(0, 12, 400),
        "item": rng.integers(0, 20, 400),
        "time": 1_700_000_000 + 3600 * np.arange(400),
        "click": rng.integers(0, 2, 400),
    }
    spec = {
        "name": "shop",
        "events": [{"user": "user", "item": "item", "time": "time"}],
        "labels": [{"name": "click", "kind": "binary"}],
        "items": {"id": "item", "features": [{"name": "brand", "kind": "categorical"}]},
    }
    table = pl.DataFrame({"item": range(20), "brand": [f"b{k % 3}" for k in range(20)], **items})
    limerank.prepare(spec, folder / "data", events=pl.DataFrame(log), items=table)
    limerank.train(folder / "data", folder / "run", model="popularity", config={"epochs": 1})
    limerank.build_index(folder / "run", folder / "index")
    return folder / "run", folder / "index"


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_python_opens_what_is_published(request, tmp_path, monkeypatch, scheme):
    """An index, a run, a recommender and states by URI, each also as a ``Path`` of it."""
    monkeypatch.setenv("LIMERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    if scheme == "s3":
        base = request.getfixturevalue("s3").bucket("python-opens")
    else:
        base = f"file://{tmp_path}/storage"
    run, index = popular(tmp_path / "here")
    at_run, at_index = f"{base}/runs/mine", f"{base}/index/mine"
    limerank.publish(run, at_run)
    limerank.publish(index, Path(at_index))
    expected = limerank.Index(index)
    for given in (at_index, Path(at_index)):
        for opened in (limerank.Index(given), limerank.Index.open(given, expected.fingerprint)):
            assert opened.path == fetch(at_index) and opened.path != index
            np.testing.assert_array_equal(opened.vectors, expected.vectors)
        trained = limerank.load_run(Path(at_run))
        assert trained.fingerprint == expected.fingerprint
        store = limerank.SqliteStore(tmp_path / "events.db")
        states = limerank.UserStates(at_run, given, store)
        assert states.ready(None).state is not None
        store.close()
    data = tmp_path / "here" / "data"
    ranked = [
        limerank.Recommender(*of, data).rank(5, k=7).items
        for of in ((run, index), (Path(at_run), at_index), (trained, opened))
    ]
    assert ranked[0] == ranked[1] == ranked[2]
    with pytest.raises(FingerprintError, match="was built by the model"):
        limerank.Index.open(at_index, "another")
    missing = {"s3": "none is not there.*publish a dataset", "file": "none is not an index"}[scheme]
    with pytest.raises((StorageError, FormatError), match=missing):
        limerank.Index(f"{base}/index/none")
    # What is opened from a URI stands for it: the version there changes, and the cache does not.
    limerank.remove_items(opened, [3, 4])
    assert limerank.Index(at_index).items == 18
    assert opened.items == limerank.Index(opened.path).items == 20
    limerank.remove_items(opened.path, [5])  # one version after the other
    assert limerank.Index(at_index).items == 17
    uris._names.clear()  # as in another process
    with pytest.raises(FormatError, match=r"is a fetched folder in the cache.*give its URI"):
        limerank.remove_items(opened.path, [6])


LOCAL = {
    "SqliteStore": {"path"},  # a database is written in place
    "fetch": {"uri"},  # these two are what the others call
    "publish": {"folder", "uri"},
    "load_spec": {"path"},  # read without the cache, with names of files as URIs
    "prepare": {"base"},  # likewise
}
"""Name of Python -> its paths that are not fetched into the cache."""


def test_every_path_of_python_may_be_a_uri():
    for name in limerank.__all__:
        of = getattr(limerank, name)
        if isinstance(of, type) and issubclass(of, (Exception, BaseModel)):
            continue
        call = of.__init__ if isinstance(of, type) else of
        paths = {
            one.name
            for one in inspect.signature(call).parameters.values()
            if re.search("Path|ItemSource", str(one.annotation))
        }
        if name in ("add_items", "update_items", "put_items", "remove_items"):
            continue  # they call change_items
        assert paths - LOCAL.get(name, set()) <= set(getattr(call, "uris", {})), name


def test_options_that_are_local_say_so(call, bucket):
    status, _, error = call("serve", "--keys", f"{bucket}/keys", "--arm", "a=r,i,1")
    assert status == 2 and "--keys takes a local path, not a URI" in error
    status, _, error = call(
        "index", "run", "--out", f"{bucket}/index", "--part", "1/2", "--data", "data"
    )
    assert status == 2 and "need a folder that all processes share" in error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("s3://", "s3:/// has no bucket; expected s3://BUCKET/PATH"),
        ("s3:///data/shop", "s3:///data/shop has no bucket"),
        ("file://data/shop", "names the host 'data'; expected file:///PATH"),
    ],
)
@pytest.mark.parametrize("option", [["--out={}"], ["--out", "{}"]])
def test_a_uri_without_its_bucket_or_with_a_host_is_no_local_folder(
    call, tmp_path, monkeypatch, given, message, option
):
    monkeypatch.chdir(tmp_path)
    status, _, error = call("synth", *(part.format(given) for part in option), "--users", "5")
    assert status == 2 and message in error
    assert not any(tmp_path.iterdir())


def test_publish_and_pull_say_what_is_no_uri_and_what_is_not_there(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("{}")
    (tmp_path / "file").write_text("text")
    status, _, error = call("publish", "index", "copies/index", "-q")
    assert status == 2 and "copies/index is not a URI" in error
    proposed = f"file://{tmp_path}/copies/index"
    assert f"such as {proposed} for a folder" in error
    wrong = {"none": "is not there", "file": "is a file", "index": "was not published"}
    for name, message in wrong.items():
        status, _, error = call("pull", f"file://{tmp_path}/{name}", "--out", "here", "-q")
        assert status == 2 and f"{tmp_path}/{name} {message}; expected a folder" in error
    assert call("publish", "index", proposed, "-q")[0] == 0
    assert call("pull", proposed, "--out", "here", "-q")[0] == 0
    assert (tmp_path / "here" / "manifest.json").read_text() == "{}"


def test_every_use_names_a_parameter_of_its_command():
    assert USES.keys() <= set(COMMANDS)
    for command, uses in USES.items():
        assert uses.keys() <= {one.name for one in command_of(command).params}


def test_a_description_is_published_beside_the_log_that_it_describes(bucket, call, tmp_path):
    with SqliteStore(tmp_path / "events.db") as store:
        store.show([exposure(k, 1_700_000_000_000 + k, f"main.{k}") for k in range(5)])
        store.append([event(k, 1_700_000_001_000 + k, labels={"click": 1.0}) for k in range(3)])
    out = f"{bucket}/days/first.parquet"
    export = ("export", "--store", str(tmp_path / "events.db"), "--out", out, "--describe", "-q")
    assert call(*export)[0] == 0
    written = systems.read(parse_uri(f"{bucket}/days/first.toml"), 1 << 16).decode()
    assert '"first.parquet"' in written and str(tmp_path) not in written
    status, _, _ = call("prepare", f"{bucket}/days/first.toml", "--out", str(tmp_path / "data"))
    assert status == 0
    # Neither file is replaced without being asked for.
    assert call(*export)[0] == 2
    systems.remove(parse_uri(out))
    status, _, error = call(*export)
    assert status == 2 and "first.toml exists" in error
    assert call(*export, "--overwrite")[0] == 0
