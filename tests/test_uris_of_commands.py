"""Every command takes URIs in place of paths, and so do the functions of Python."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import limerank
from limerank.cli.app import COMMANDS, command_of
from limerank.cli.uris import USES
from limerank.storage import systems
from limerank.storage.fetching import fetch
from limerank.storage.uris import parse_uri
from tests.s3_server import S3

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
    assert (fetch(f"{bucket}/again") / "events/item.npy").read_bytes() == (
        fetch(data) / "events/item.npy"
    ).read_bytes()


def test_options_that_are_local_say_so(call, bucket):
    status, _, error = call("serve", "--watch", f"{bucket}/live", "--no-keys", "--arm", "a=r,i,1")
    assert status == 2 and "--watch takes a local path, not a URI" in error
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
