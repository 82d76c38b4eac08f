"""``limerank export``: what a store holds, as a log that the next model learns from."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest
import tomli_w

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import FormatError, SpecError
from limerank.models.config import TrainConfig
from limerank.serving.engine import Serving
from limerank.serving.export import export
from limerank.serving.messages import EventMessage, Rank, Shown
from limerank.serving.stores import SqliteStore
from limerank.training.trainer import train
from tests.catalogues import data, shop
from tests.stores import event, exposure
from tests.worlds import config_of, write_positives

DAY = 86_400_000
WINDOW = 1000.0


def fill(store, seed=0, users=5, days=3):
    """Random exposures of three items, and events of some shown and some other items."""
    rng = np.random.default_rng(seed)
    for user in ["u1", *range(users)]:
        times = np.sort(rng.integers(0, days * DAY, 20)).tolist()
        shown = [
            exposure(
                user, at, f"a.{k}", rng.choice(20, 3, replace=False).tolist(), values=[3, 2, 1]
            )
            for k, at in enumerate(times)
        ]
        store.show(shown)
        acted = [
            event(
                user,
                one.time + int(rng.integers(0, 2_000_000)),
                f"{user}-{k}",
                one.items[int(rng.integers(3))] if rng.random() < 0.7 else 99,
                labels={"click": 1.0, **({"watch": 2.5} if k % 3 else {})},
                features={"tab": "x"} if k % 2 else {},
                ranking=one.ranking if rng.random() < 0.3 else None,
            )
            for k, one in enumerate(shown)
            if rng.random() < 0.6
        ]
        store.append(acted)


@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path / "events.db") as opened:
        yield opened


def expected(store, since, until):
    """The rows, from all exposures and events at once."""
    found = []
    for user in store.users():
        shown = store.exposures(user, 0, 99 * DAY)
        acted: dict = {}
        for one in store.between(user, 0, 99 * DAY):
            near = [
                e for e in shown if one.item in e.items and 0 <= one.time - e.time <= 1000 * WINDOW
            ]
            named = [
                e
                for e in shown
                if e.ranking == one.ranking
                and one.item in e.items
                and abs(one.time - e.time) <= 1000 * WINDOW
            ]
            followed = (named or near[-1:] or [None])[0]
            if followed is not None:
                acted.setdefault((followed.ranking, one.item), []).append(one)
            elif since <= one.time < until:
                watch = one.labels.get("watch")
                found.append((str(user), str(one.item), one.time, "event", None, 1.0, watch, 1))
        for e in shown:
            if since <= e.time < until:
                for rank, item in enumerate(e.items):
                    after = acted.get((e.ranking, item), [])
                    watch = max((one.labels.get("watch", 0.0) for one in after), default=0.0)
                    click = float(bool(after))
                    found.append(
                        (str(user), str(item), e.time, "shown", rank + 1, click, watch, len(after))
                    )
    return sorted(found, key=str)


COLUMNS = ["user_id", "item_id", "time", "source", "position", "click", "watch", "outcomes"]


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_what_was_shown_and_what_followed(store, tmp_path, seed):
    fill(store, seed)
    done = export(store, tmp_path / "log.parquet", since=0, until=3 * DAY, window=WINDOW)
    frame = pl.read_parquet(tmp_path / "log.parquet")
    assert sorted(frame.select(COLUMNS).rows(), key=str) == expected(store, 0, 3 * DAY)
    assert done.shown == 6 * 60 and done.rankings == 6 * 20 and done.users == 6
    assert done.acted == frame.filter(source="shown", click=1.0).height > 9
    assert done.events == frame.filter(source="event").height > 5


def test_days_together_are_the_log(store, tmp_path):
    fill(store)
    days = []
    for day in range(3):
        at = {"since": day * DAY, "until": (day + 1) * DAY, "window": WINDOW}
        export(store, tmp_path / f"{day}.parquet", **at)
        days.append(pl.read_parquet(tmp_path / f"{day}.parquet").select(COLUMNS))
    export(store, tmp_path / "log.parquet", since=0, until=3 * DAY, window=WINDOW)
    complete = pl.read_parquet(tmp_path / "log.parquet").select(COLUMNS)
    assert sorted(pl.concat(days).rows(), key=str) == sorted(complete.rows(), key=str)
    assert all(len(day) for day in days)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_each_format_has_the_same_rows_each_time(store, tmp_path, ending):
    fill(store)
    read = {
        "parquet": pl.read_parquet,
        "csv": lambda path: pl.read_csv(path, infer_schema_length=None),
        "jsonl": pl.read_ndjson,
    }
    out = tmp_path / f"log.{ending}"
    export(store, out, since=0, until=3 * DAY, window=WINDOW)
    first = out.read_bytes()
    with pytest.raises(FormatError, match="already exists"):
        export(store, out, since=0, until=3 * DAY, window=WINDOW)
    export(store, out, since=0, until=3 * DAY, window=WINDOW, overwrite=True)
    assert out.read_bytes() == first
    assert [file.name for file in tmp_path.glob(".log*")] == [], "temporary files are removed"
    export(store, tmp_path / "other.parquet", since=0, until=3 * DAY, window=WINDOW)
    frame = read[ending](out).with_columns(pl.col("user_id", "item_id").cast(pl.String))
    other = pl.read_parquet(tmp_path / "other.parquet")
    assert frame.columns == other.columns
    assert frame.select(COLUMNS).rows() == other.select(COLUMNS).rows()


def test_names_of_columns_do_not_collide(store, tmp_path):
    labels = {"time": 1.0, "click": 1.0}
    features = {"click": "text", "position": 3, "mixed": 1}
    store.append([event(labels=labels, features=features), event(at=1, features={"mixed": "x"})])
    store.append([event(at=2, features={"mixed": 0.5})])
    export(store, tmp_path / "log.parquet", until=DAY)
    frame = pl.read_parquet(tmp_path / "log.parquet")
    assert frame["label_time"].to_list() == [1.0, None, None]
    assert frame["click"].to_list() == [1.0, None, None]
    assert frame["feature_click"].to_list() == ["text", None, None]
    assert frame["feature_position"].to_list() == [3, None, None]
    assert frame["mixed"].to_list() == ["1", "x", "0.5"]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"out": "log.txt"}, "expected one of .parquet, .csv, .jsonl"),
        ({"since": 5, "until": 5}, "nothing is between"),
        ({"window": 0}, "expected more than 0"),
        ({"describe": True, "until": 1}, "no label"),
    ],
)
def test_what_cannot_be_exported_is_refused(store, tmp_path, wrong, what):
    fill(store)
    out = tmp_path / wrong.pop("out", "log.parquet")
    with pytest.raises(SpecError, match=what):
        export(store, out, **wrong)
    assert [file.name for file in tmp_path.iterdir() if "log" in file.name] == []


def test_a_description_without_a_model(store, tmp_path):
    fill(store)
    done = export(store, tmp_path / "day.csv", since=0, until=3 * DAY, describe=True)
    spec = load_spec(done.description)
    assert [(one.name, one.kind) for one in spec.labels] == [
        ("click", "binary"),
        ("watch", "duration"),
    ]
    assert [source.shown for source in spec.events] == [True, False]
    assert spec.events[0].request == "request"
    assert {one.name: one.bias for one in spec.event_features} == {"tab": False, "position": True}
    prepare(spec, tmp_path / "data", base=tmp_path)
    assert Dataset(tmp_path / "data").manifest["counts"]["users"] == 6


def test_events_and_rankings_become_a_model(tmp_path):
    """Events posted, rankings shown, exported, prepared, trained."""
    of = shop("lime-mha")
    engine = Serving(of.run.path, of.index.path, SqliteStore(tmp_path / "events.db"))
    start = 1_700_500_000_000
    rng = np.random.default_rng(0)
    count = acted = 0
    for user in range(12):
        for step in range(4):
            at = start + step * DAY + 1000 * user
            body = {"user": user, "k": 5, "time": at, "exclude_seen": False, "log": step % 2 == 0}
            answer = engine.rank(Rank(**body))
            if step % 2 == 0:
                answer = answer.result(30)
            items = [one["item"] for one in answer["items"]]
            if step % 2:
                shown = {"user": user, "ranking": answer["ranking"], "items": items, "time": at}
                engine.shown(Shown(**shown)).result(30)
            count += len(items)
            item = items[int(rng.integers(len(items)))]
            more = {"ranking": answer["ranking"]} if step else {}
            label = {"click": 1, "watch": 3.0 + user}
            message = {"user": user, "item": item, "time": at + 5000, "labels": label, **more}
            engine.append([EventMessage(**message)]).result(30)
            acted += 1
    of_data = data().path
    done = export(engine.store, tmp_path / "day.parquet", until=start + 9 * DAY, like=of_data)
    engine.close()
    assert (done.shown, done.acted, done.events) == (count, acted, 0)
    spec, old = load_spec(done.description), load_spec(of_data / "spec.toml")
    assert (spec.items, spec.users, spec.history) == (old.items, old.users, old.history)
    prepare(spec, tmp_path / "data", base=tmp_path)
    dataset = Dataset(tmp_path / "data")
    assert sum(dataset.manifest["counts"]["impressions"].values()) == count
    assert len(dataset.requests["history_end"]) == 12 * 4
    run = train(
        dataset,
        tmp_path / "run",
        model=config_of("lime-mha", width=8, heads=1, links=2, hidden=4, **{"vectors": 0}),
        config=TrainConfig(epochs=1),
    )
    assert run.run == tmp_path / "run" and run.steps > 0 and math.isfinite(run.best)


def test_a_log_of_positives_stays_one(store, tmp_path):
    """What was shown and not chosen is no event of such a log; the rules of its label stay."""
    old = write_positives(tmp_path / "old")
    store.show([exposure("u1", 10, items=["i1", "i2"])])
    store.append(
        [
            event("u1", 20, "a", "i1", labels={"choice": 3.0}, features={"event": "purchase"}),
            event("u1", 30, "b", "i7", labels={"choice": 1.0}, features={"event": "view"}),
        ]
    )
    done = export(store, tmp_path / "day.jsonl", until=DAY, like=old)
    rows = [json.loads(line) for line in (tmp_path / "day.jsonl").read_text().splitlines()]
    assert [(one["item_id"], one["time"], one["request"]) for one in rows] == [
        ("i1", 20, "main.a"),
        ("i7", 30, None),
    ]
    spec = load_spec(done.description)
    (label,) = spec.labels
    assert (label.kind, label.weights, spec.events[0].shown) == (
        "positive",
        {"view": 1, "purchase": 3},
        True,
    )
    assert [one.name for one in spec.event_features] == ["event"]


def test_the_command(call, store, tmp_path):
    fill(store)
    store.close()
    out = tmp_path / "day.parquet"
    given = ["export", "--store", tmp_path / "events.db", "--out", out, "--since", "1970-01-01"]
    status, output, _ = call(*given, "--until", 3 * DAY, "--describe", "--quiet")
    assert status == 0 and "360 shown items of 120 rankings" in output
    assert f"Continue later with --since {3 * DAY}" in output and "day.toml" in output
    status, _, error = call(*given, "--store", tmp_path / "none.db")
    assert status == 2 and "no such file" in error and not (tmp_path / "none.db").exists()
    status, _, error = call(*given, "--until", "yesterday", "--overwrite")
    assert status == 2 and "--until" in error


def test_a_day_without_events_has_the_columns_of_the_description(store, tmp_path):
    """So one description reads all days, also those on which nothing was bought."""
    description = {
        "name": "shop",
        "events": [
            {"files": ["*.csv"], "time": "time", "time_unit": "ms", "where": {"source": ["shown"]}}
        ],
        "labels": [
            {"name": "click", "kind": "binary"},
            {"name": "watch", "kind": "duration"},
            {"name": "bought", "kind": "binary"},
        ],
        "event_features": [
            {"name": "tab", "kind": "categorical"},
            {"name": "age", "kind": "numeric"},
            {"name": "position", "kind": "numeric", "when": "impression", "bias": True},
        ],
    }
    like = tmp_path / "shop.toml"
    like.write_text(tomli_w.dumps(description))
    fill(store)
    export(store, tmp_path / "full.parquet", since=0, until=3 * DAY, window=WINDOW, like=like)
    export(store, tmp_path / "empty.csv", since=90 * DAY, until=91 * DAY, like=like)
    full, empty = pl.read_parquet(tmp_path / "full.parquet"), pl.read_csv(tmp_path / "empty.csv")
    assert empty.height == 0 and sorted(empty.columns) == sorted(full.columns)
    assert {"click", "watch", "bought", "tab", "age"} < set(full.columns)
    assert full.filter(source="shown")["bought"].unique().to_list() == [0.0]
    assert set(full["tab"]) == {None, "x"}


def test_a_log_never_appears_without_its_description(store, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device", "log.toml")

    store.append([event(at=5, labels={"click": 1})])
    monkeypatch.setattr("limerank.serving.export.job.write_spec", fail)
    with pytest.raises(FormatError, match=r"log\.csv cannot be written: No space"):
        export(store, tmp_path / "log.csv", until=10**9, describe=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "log"))] == []
