"""`prepare`: compared with a slow reference on random logs, and looked at case by case."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limerank.data.prepare import gaps, prepare
from limerank.data.prepare.gaps import MOST_TOGETHER, Grouping
from limerank.data.prepare.holdout import uniform
from limerank.data.prepare.partition import shuffle
from limerank.data.spec import Spec
from limerank.data.summary import DatasetSummary
from limerank.errors import DataError, FormatError

MIB = 1 << 20
EVENTS = {"user": "user", "item": "item", "time": "time", "time_unit": "ms"}
CLICK = {"name": "click", "kind": "binary"}


def make_spec(**values: Any) -> Spec:
    base: dict[str, Any] = {
        "name": "test",
        "events": [{**EVENTS, "files": ["log.parquet"]}],
        "labels": [CLICK],
    }
    return Spec.model_validate({**base, **values})


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time of hundreds of tiny datasets."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class View:
    """A dataset folder with its ids put back, to be compared with plain rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = json.loads((path / "dataset.json").read_text())
        self.users = pl.read_parquet(path / "vocab/users.parquet")["id"].to_list()
        self.items = pl.read_parquet(path / "vocab/items.parquet")["id"].to_list()
        self.events = {p.stem: np.load(p) for p in (path / "events").glob("*.npy")}
        self.requests = {p.stem: np.load(p) for p in (path / "requests").glob("*.npy")}
        retained = path / "history/rows.npy"
        self.retained = np.load(retained) if retained.exists() else None
        self.train_count = np.load(path / "items/train_count.npy")

    def array(self, name: str) -> np.ndarray:
        return np.load(self.path / f"{name}.npy")

    def vocab(self, name: str) -> dict[str, int]:
        frame = pl.read_parquet(self.path / f"vocab/{name}.parquet")
        return dict(zip(frame["value"].to_list(), frame["code"].to_list(), strict=True))

    def rows(self, names: list[str]) -> list[tuple[Any, ...]]:
        """All events as (item id, time, ...), in order."""
        item = [self.items[k] for k in self.events["item"]]
        return list(
            zip(item, *(self.events[name].tolist() for name in ["time", *names]), strict=True)
        )

    def request_list(self) -> list[dict[str, Any]]:
        """Each request with its user, impressions, history (event rows) and split."""
        result = []
        for k in range(len(self.requests["user"])):
            one = {name: int(array[k]) for name, array in self.requests.items()}
            history = range(one["history_start"], one["history_end"])
            rows = list(history) if self.retained is None else self.retained[list(history)].tolist()
            impressions = list(range(one["first"], one["first"] + one["count"]))
            user = self.users[one["user"]]
            result.append(
                {"user": user, "rows": impressions, "history": rows, "split": one["split"]}
            )
        return result


def run(folder: Path, spec: Spec, **options: Any) -> View:
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    prepare(spec, out, base=folder, **options)
    return View(out)


def write(folder: Path, rows: list[dict[str, Any]], name: str = "log.parquet") -> None:
    frame = pl.DataFrame(rows, infer_schema_length=None)
    path = folder / name
    if name.endswith(".parquet"):
        frame.write_parquet(path)
        return
    text = frame.write_csv(separator="\t" if ".tsv" in name else ",").encode()
    if name.endswith(".gz"):
        text = gzip.compress(text)
    elif name.endswith(".zst"):
        text = pa.Codec("zstd").compress(text, asbytes=True)
    path.write_bytes(text)


def log(*rows: tuple[Any, ...], columns: str = "user item time click") -> list[dict[str, Any]]:
    return [dict(zip(columns.split(), row, strict=True)) for row in rows]


def same(a: Path, b: Path) -> None:
    """Two dataset folders hold the same arrays and vocabularies."""
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file())
    # These hold values of the log as they are written.
    written = ("log/items.", "log/users.parquet", "log/unknown_")
    for name in names:
        if name.startswith(written):
            continue
        if name.endswith(".npy"):
            np.testing.assert_array_equal(np.load(a / name), np.load(b / name), err_msg=name)
        elif name.endswith(".parquet"):
            assert pl.read_parquet(a / name).equals(pl.read_parquet(b / name)), name


# The reference


def reference(
    rows: list[dict[str, Any]],
    spec: Spec,
    hidden: list[dict[str, Any]] = (),
    grouping: Grouping | None = None,
    most_together: int = MOST_TOGETHER,
) -> dict[str, Any]:
    """What `prepare` must make of good rows with a click, a watch time and maybe a request id.

    Impressions without an id share requests by `grouping`, or by the description.
    """
    if grouping is None:
        assert spec.requests.gap is not None and spec.requests.size is not None
        grouping = Grouping(spec.requests.gap * 1000 if spec.clock else None, spec.requests.size)
    users: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for number, (source, shown) in enumerate(((rows, True), (hidden, False))):
        for position, row in enumerate(source):
            event = {**row, "shown": shown, "position": (number, position)}
            users[row["user"]].append(event)
    duplicates = 0
    for user, events in users.items():
        events.sort(key=lambda e: (e["time"], e["shown"], e["position"]))
        seen, retained = set(), []
        for e in events:
            key = (e["item"], e["time"], e["click"], np.float32(e["watch"]), e["shown"])
            duplicates += key in seen
            if key not in seen:
                retained.append(e)
            seen.add(key)
        users[user] = retained
    reference_pages(users, grouping)
    reference_splits(users, spec)
    requests = []
    for user, events in users.items():
        run = part = 0  # impressions since a boundary of the log; how often `size` divided them
        for last, e in pairwise([None, *events]):
            if not e["shown"]:
                continue
            joined = (
                last is not None
                and last["shown"]
                and e["split"] == last["split"]
                and e.get("request") == last.get("request")
            )
            free = e.get("request") is None
            if joined and free and grouping.gap is not None:
                joined = e["time"] - last["time"] <= grouping.gap
            run, part = (run + 1, part) if joined else (1, 0)
            page = not joined or e["page"] != last["page"]
            if joined and free and grouping.together is None:
                joined = (run - 1) % grouping.size > 0
            elif joined and free and page:
                joined = (run - 1) // grouping.size == part
            elif joined and free:
                joined = len(requests[-1]["events"]) % most_together > 0
            if page:
                part = (run - 1) // grouping.size
            if not joined:
                requests.append({"user": user, "events": [], "split": e["split"]})
            requests[-1]["events"].append(e)
    for request in requests:
        start = request["events"][0]["time"]
        request["history"] = [
            e
            for e in users[request["user"]]
            if e["time"] < start and (spec.history.keep is None or e["click"])
        ]
    count = Counter(
        e["item"] for ev in users.values() for e in ev if e["shown"] and e["split"] == 0
    )
    trained = {e["item"] for events in users.values() for e in events if e["split"] == 0}
    return {
        "users": dict(users),
        "requests": requests,
        "count": count,
        "trained": trained,
        "duplicates": duplicates,
    }


def reference_pages(users: dict[Any, list[dict[str, Any]]], grouping: Grouping) -> None:
    """Number the units of each user that no split by position divides: `unit` counts requests with
    ids, pages and single impressions; `page` counts pages alone."""
    for events in users.values():
        unit, page, last, before = -1, 0, None, None
        for e in events:
            if e["shown"]:
                far = grouping.together is None or before is None or not before["shown"]
                far = far or e["time"] - before["time"] > grouping.together
                page += far or e.get("request") != before.get("request")
                if e.get("request") is not None:
                    unit += last is None or last.get("request") != e["request"]
                else:
                    unit += last is None or last.get("request") is not None or far
                last = e
            e["unit"], e["page"] = unit, page
            before = e


def reference_splits(users: dict[Any, list[dict[str, Any]]], spec: Spec) -> None:
    """Give each event its split."""
    times = sorted(e["time"] for events in users.values() for e in events if e["shown"])
    split = spec.split
    shares = (split.train, split.train + split.validation)
    cuts = [times[min(int(share * len(times) + 1e-9), len(times) - 1)] for share in shares]
    for user, events in users.items():
        total = max(e["unit"] for e in events) + 1
        borders = [math.floor(share * total + 1e-9) for share in shares]
        if min(borders[0], borders[1] - borders[0], total - borders[1]) == 0:
            chance = float(uniform(shuffle(np.array([user])))[0])
            borders = [math.floor(share * total + chance) for share in shares]
        if split.leave_last is not None:
            few = total < 2 * split.leave_last + 1
            borders = [total if few else total - k * split.leave_last for k in (2, 1)]
        following = 2
        for e in reversed(events):
            if spec.split_rule == "time":
                e["split"] = sum(e["time"] >= cut for cut in cuts)
                continue
            if e["shown"] and spec.split_rule == "column":
                following = ["train", "validation", "test"].index(e["fold"])
            elif e["shown"]:
                following = sum(e["unit"] >= border for border in borders)
            e["split"] = following


def plain(e: dict[str, Any]) -> tuple[Any, ...]:
    return (e["item"], e["time"], int(e["click"]), float(np.float32(e["watch"])))


def compare(view: View, expected: dict[str, Any]) -> None:
    rows = view.rows(["label_click", "label_watch"])
    assert set(view.users) == set(expected["users"])
    at = 0
    for user in view.users:
        events = [plain(e) for e in expected["users"][user]]
        assert rows[at : at + len(events)] == events
        at += len(events)
    assert at == len(rows)
    found = defaultdict(list)
    for request in view.request_list():
        found[request["user"]].append(
            (
                [rows[k] for k in request["rows"]],
                [rows[k] for k in request["history"]],
                request["split"],
            )
        )
    wanted = defaultdict(list)
    for request in expected["requests"]:
        wanted[request["user"]].append(
            (
                [plain(e) for e in request["events"]],
                [plain(e) for e in request["history"]],
                request["split"],
            )
        )
    assert found == wanted
    assert view.manifest["summary"]["dropped"].get("duplicate row", 0) == expected["duplicates"]
    trained = view.items[: view.manifest["encoding"]["trained_items"]]
    assert set(trained) == expected["trained"]
    counts = {item: int(n) for item, n in zip(view.items, view.train_count, strict=True) if n}
    assert counts == dict(expected["count"])
    order = [(-view.train_count[k], item) for k, item in enumerate(trained)]
    assert order == sorted(order)


def random_rows(
    rng: random.Random, n: int, users: int, items: int, requests: bool
) -> list[dict[str, Any]]:
    rows = []
    for _ in range(n):
        row: dict[str, Any] = {
            "user": rng.randrange(users) * 7919,
            "item": rng.randrange(items) * 1_000_003,
            "time": 1_600_000_000_000 + rng.randrange(n) * 60_000,
            "click": rng.randrange(2),
            "watch": rng.choice([0.0, 0.5, 1.25, 3.0]),
        }
        if requests:
            row["request"] = rng.choice([None, 1, 2, 3])
        row["fold"] = rng.choice(["train", "train", "validation", "test"])
        rows.append(row)
    return rows


def random_spec(
    rng: random.Random,
    requests: bool,
    hidden: bool,
    ending: str = "parquet",
    chosen: bool = False,
) -> Spec:
    shares = {"train": 0.6, "validation": 0.2}
    rules = [{"by": "time", **shares}, {"by": "position", **shares}]
    rules += [{"leave_last": 1}, {"leave_last": 2}, {"column": "fold"}]
    source = {**EVENTS, "files": [f"log.{ending}"], "request": "request" if requests else None}
    sources = [source]
    if hidden:
        sources.append({**EVENTS, "files": [f"hidden.{ending}"], "shown": False})
    return make_spec(
        events=sources,
        labels=[CLICK, {"name": "watch", "kind": "duration"}],
        split=rng.choice(rules),
        requests={} if chosen else {"gap": 300.0, "size": 4},
        history={"keep": rng.choice([None, "click"])},
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_prepare_agrees_with_the_reference(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("reference")
    requests, hidden, chosen = (rng.random() < 0.5 for _ in range(3))
    n = rng.choice([3, 30, 200])
    rows = random_rows(rng, n, rng.choice([1, 5, 20]), 10, requests)
    extra = random_rows(rng, n // 2 + 1, 10, 15, False) if hidden else []
    write(folder, rows)
    if hidden:
        write(folder, extra, "hidden.parquet")
    spec = random_spec(rng, requests, hidden, chosen=chosen)
    grouping = Grouping(300_000.0, rng.choice([1, 2, 3]), rng.choice([0, 60_000]))
    most = rng.choice([2, 3, 128])
    expected = reference(rows, spec, extra, grouping if chosen else None, most)
    with pytest.MonkeyPatch.context() as patch:
        if chosen:
            patch.setattr(gaps.Gaps, "grouping", lambda *_: grouping)
        patch.setattr("limerank.data.prepare.requests.MOST_TOGETHER", most)
        if not any(request["split"] == 0 for request in expected["requests"]):
            with pytest.raises(DataError, match="training window holds no impressions"):
                run(folder, spec)
            return
        compare(run(folder, spec), expected)


def test_many_partitions_make_the_same_dataset(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = random_rows(rng, 9000, 900, 50, True)
    write(tmp_path, rows)
    spec = random_spec(rng, True, False)
    one = run(tmp_path, spec)
    many = run(tmp_path, spec, memory=8 * MIB)
    same(one.path, many.path)
    compare(many, reference(rows, spec))


def test_partitions_that_turn_out_too_large_are_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limerank.data.prepare.spooling import Spooling

    lists = [
        {"user": k % 50, "item": list(range(k % 5 + 1)), "time": 10**12 + k} for k in range(500)
    ]
    rows = random_rows(random.Random(2), 2000, 90, 50, False)
    for row in rows:
        row["user"] //= 7919
    write(tmp_path, rows)
    write(tmp_path, lists, "lists.parquet")
    more = {**EVENTS, "files": ["lists.parquet"], "lists": True, "constant": {"click": 1}}
    spec = make_spec(events=[{**EVENTS, "files": ["log.parquet"]}, more])
    one = run(tmp_path, spec)
    make = Spooling.make_spools

    def limited(spools: Spooling) -> None:
        make(spools)
        spools.part_limit = 100

    monkeypatch.setattr(Spooling, "make_spools", limited)
    same(one.path, run(tmp_path, spec).path)


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "csv.zst", "tsv.gz"])
def test_formats_make_equal_datasets(tmp_path: Path, ending: str) -> None:
    rng = random.Random(3)
    rows = random_rows(rng, 300, 12, 20, True)
    for row in rows:
        row["tab"] = rng.choice(["home", "search", None])
    write(tmp_path, rows)
    write(tmp_path, rows, f"log.{ending}")
    tab = [{"name": "tab", "kind": "categorical", "when": "context"}]
    a, b = (
        random_spec(random.Random(4), True, False, e).model_copy(
            update={"event_features": make_spec(event_features=tab).event_features}
        )
        for e in ("parquet", ending)
    )
    same(run(tmp_path, a).path, run(tmp_path, b).path)


def test_text_ids_and_integer_ids_give_the_same_events(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = random_rows(rng, 400, 15, 20, True)
    spec = random_spec(rng, True, False)
    write(tmp_path, rows)
    numbers = run(tmp_path, spec)
    texts = [{**r, "user": f"u{r['user']}", "item": f"i{r['item']}"} for r in rows]
    write(tmp_path, texts)
    compare(run(tmp_path, spec), reference(texts, spec))
    compare(numbers, reference(rows, spec))


def test_several_files_and_patterns(tmp_path: Path) -> None:
    rng = random.Random(6)
    rows = random_rows(rng, 300, 10, 10, False)
    (tmp_path / "days").mkdir()
    for k in range(3):
        write(tmp_path, rows[100 * k : 100 * k + 100], f"days/{k}.parquet")
    spec = random_spec(rng, False, False)
    pattern = make_spec(
        **{**spec.model_dump(), "events": [{**EVENTS, "files": ["days/*.parquet"]}]}
    )
    compare(run(tmp_path, pattern), reference(rows, spec))


@pytest.mark.parametrize("late", ["x9", "007", "+5"])
def test_ids_that_turn_out_to_be_text_late_in_a_csv(tmp_path: Path, late: str) -> None:
    lines = ["user,item,time,click"]
    lines += [f"{k % 50},{k % 70},{k},{k % 2}" for k in range(2000)] + [f"{late},5,3000,1"]
    lines += ["7,8,3001,0"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    view = run(tmp_path, make_spec(events=[{**EVENTS, "files": ["log.csv"]}]))
    assert {late, "7", "49"} <= set(view.users)
    assert len(view.users) == 51
    assert all(isinstance(item, int) for item in view.items)


def test_a_float_column_of_integer_ids(tmp_path: Path) -> None:
    write(tmp_path, log((1.0, 10, 1, 1), (2.0, 10, 2, 0), (None, 10, 3, 0), (1.0, 20, 4, 1)))
    view = run(tmp_path, make_spec(checks={"max_bad_share": 0.5}))
    assert sorted(view.users) == [1, 2]
    assert view.manifest["summary"]["dropped"] == {"missing user id": 1}


def test_ids_beyond_int64_become_text(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        log((2**63 + 5, 1, 1, 1), (3, 1, 2, 0)), schema_overrides={"user": pl.UInt64}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    assert sorted(run(tmp_path, make_spec()).users) == ["3", str(2**63 + 5)]


# Dirt


def test_bad_rows_are_counted_by_reason(tmp_path: Path) -> None:
    lines = ["user,item,time,click,watch"]
    lines += [f"{k % 7},{k % 11},{1000 + k},{k % 2},{k / 10}" for k in range(100)]
    lines += [
        ",1,1,1,1",  # no user
        "1,,1,1,1",  # no item
        "1,1,,1,1",  # no time
        "1,1,soon,1,1",  # no time either
        "1,1,1,,1",  # no label
        "1,1,1,NaN,1",
        "1,1,1,2,1",  # neither 0 nor 1
        "1,1,1,1,-3",  # a negative duration
        "1,1,1,1,",
        "1,1,1,1",  # too few fields
        "1,1,1,1,1,1",  # too many
        ",,,,",  # one reason for each row
        "0,0,1000,0,0.0",  # as the first
    ]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    values = {
        "events": [{**EVENTS, "files": ["log.csv"]}],
        "labels": [CLICK, {"name": "watch", "kind": "duration"}],
    }
    view = run(tmp_path, make_spec(**values, checks={"max_bad_share": 0.2}))
    summary = view.manifest["summary"]
    assert summary["dropped"] == {
        "missing user id": 2,
        "missing item id": 1,
        "missing or unparsable time": 2,
        "missing label click": 2,
        "label click is neither 0 nor 1": 1,
        "negative watch": 1,
        "missing label watch": 1,
        "unparsable line": 2,
        "duplicate row": 1,
    }
    assert summary["rows"] == 113
    assert summary["bad"] == 12
    assert summary["noted"] == {"row out of order, sorted": 1}
    assert view.manifest["counts"]["events"] == 100
    text = DatasetSummary.of(view.manifest).text()
    assert "negative watch" in text
    with pytest.raises(DataError, match=r"12 of 113 rows \(10.6 %\) are bad") as caught:
        run(tmp_path, make_spec(**values))
    assert "2  unparsable line" in str(caught.value)
    assert "negative watch" in str(caught.value)


def test_a_missing_column_is_an_error_that_lists_the_columns_found(tmp_path: Path) -> None:
    write(tmp_path, log((1, 1, 1, 1), columns="user item when click"))
    with pytest.raises(
        DataError, match=r"no column 'time'; columns found: user, item, when, click"
    ):
        run(tmp_path, make_spec())
    write(tmp_path, log((1, 1, 1, 1), columns="user item when click"), "log.csv.gz")
    with pytest.raises(DataError, match="columns found: user, item, when, click"):
        run(tmp_path, make_spec(events=[{**EVENTS, "files": ["log.csv.gz"]}]))
    write(tmp_path, log((1, 1, 1, 1)))
    write(tmp_path, [{"id": 1, "genre": "a"}], "items.csv")
    table = {"files": ["items.csv"], "features": [{"name": "genres", "kind": "categorical"}]}
    with pytest.raises(
        DataError, match=r"items.csv has no column 'genres'; columns found: id, gen"
    ):
        run(tmp_path, make_spec(items=table))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file matches 'log.parquet'"):
        run(tmp_path, make_spec())
    (tmp_path / "log.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        run(tmp_path, make_spec())
    (tmp_path / "log.csv").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read as csv"):
        run(tmp_path, make_spec(events=[{**EVENTS, "files": ["log.csv"]}]))
    (tmp_path / "log.csv").write_bytes(b"user,item,time,click\n")
    with pytest.raises(DataError, match="no usable events"):
        run(tmp_path, make_spec(events=[{**EVENTS, "files": ["log.csv"]}]))
    assert not list(tmp_path.glob("out-*"))
    assert not list(tmp_path.glob(".out-*"))


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes("user,item,time,click\né,1,1,1\n".encode("latin1"))
    with pytest.raises(DataError, match=r"log.csv cannot be read as csv.*give the file's encoding"):
        run(tmp_path, make_spec(events=[{**EVENTS, "files": ["log.csv"]}]))


def test_columns_of_a_wrong_type(tmp_path: Path) -> None:
    write(tmp_path, [{"user": 1, "item": [1, 2], "time": 1, "click": 1}])
    with pytest.raises(DataError, match="set lists = true"):
        run(tmp_path, make_spec())
    write(tmp_path, [{"user": 1, "item": 1, "time": 1, "click": [1]}])
    with pytest.raises(DataError, match=r"'click' holds List.*expected numbers"):
        run(tmp_path, make_spec())
    write(tmp_path, [{"user": 1, "item": 1, "time": 1, "click": 1, "tags": ["a", "b"]}])
    for kind in ("categorical", "numeric"):
        feature = {"name": "tag", "kind": kind, "column": "tags"}
        with pytest.raises(DataError, match=r"log.parquet: column 'tags' holds List.*one value"):
            run(tmp_path, make_spec(event_features=[feature]))


def test_a_file_in_another_encoding_and_layout(tmp_path: Path) -> None:
    lines = [f"{k % 5}::{k % 3}::{k % 5 + 1}::{100 + k}" for k in range(50)]
    (tmp_path / "ratings.dat").write_text("\n".join(lines) + "\n")
    (tmp_path / "movies.dat").write_bytes(
        '0::Amélie: a film::A|B\n1::X::B\n2::Y"::C\n'.encode("latin1")
    )
    source = {
        "files": ["ratings.dat"],
        "format": "csv",
        "separator": "::",
        "time_unit": "s",
        "columns": ["user", "item", "rating", "time"],
        "user": "user",
        "item": "item",
        "time": "time",
    }
    table = {
        "files": ["movies.dat"],
        "format": "csv",
        "separator": "::",
        "encoding": "latin1",
        "columns": ["id", "title", "genres"],
        "features": [
            {"name": "title", "kind": "categorical"},
            {"name": "genres", "kind": "categorical", "split": "|"},
        ],
    }
    like = {"name": "like", "kind": "binary", "column": "rating", "at_least": 4}
    view = run(tmp_path, make_spec(events=[source], items=table, labels=[like]))
    assert view.vocab("item_title") == {"Amélie: a film": 1, "X": 2, 'Y"': 3}
    assert set(view.vocab("item_genres")) == {"A", "B", "C"}
    assert view.events["label_like"].sum() == 20
    assert view.events["time"].min() == 100_000


# Times


@pytest.mark.parametrize(
    ("values", "source"),
    [
        ([1574153512, 1574153513], {"time_unit": "s"}),
        ([1574153512.0, 1574153513.0], {"time_unit": "s"}),
        ([1574153512000, 1574153513000], {"time_unit": "ms"}),
        ([1574153512000000, 1574153513000000], {"time_unit": "us"}),
        ([1574153512000000999, 1574153513000000000], {"time_unit": "ns"}),
        (["2019-11-19T08:51:52", "2019-11-19 08:51:53"], {"time_unit": "text"}),
        (["2019-11-19T08:51:52.000Z", "2019-11-19T10:51:53+02:00"], {"time_unit": "text"}),
        (
            ["11/19/2019 8:51:52 AM", "11/19/2019 8:51:53 AM"],
            {"time_unit": "text", "time_format": "%m/%d/%Y %I:%M:%S %p"},
        ),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_times_become_milliseconds(
    tmp_path: Path, values: list[Any], source: dict[str, str], ending: str
) -> None:
    rows = [{"user": 1, "item": 2, "time": value, "click": 1} for value in values]
    write(tmp_path, rows, f"log.{ending}")
    events = {**EVENTS, **source, "files": [f"log.{ending}"]}
    split = {"by": "position", "train": 0.5}
    view = run(tmp_path, make_spec(events=[events], split=split))
    assert view.events["time"].tolist() == [1574153512000, 1574153513000]


@pytest.mark.parametrize(
    "texts",
    [
        ["2019-11-19T08:51", "2019-11-19T08:52"],
        ["2019-11-19 08:51", "2019-11-19T08:52:00"],
        ["2019-11-19T08:51Z", "2019-11-19T10:52+02:00"],
        ["2019-11-19 08:51Z", "2019-11-19 10:52:00+02:00"],
    ],
)
def test_times_need_no_seconds(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path, log(*[(1, k, text, 1) for k, text in enumerate(texts)]))
    events = {**EVENTS, "time_unit": "text", "files": ["log.parquet"]}
    view = run(tmp_path, make_spec(events=[events], split={"by": "position", "train": 0.5}))
    assert view.events["time"].tolist() == [1574153460000, 1574153520000]


def test_native_timestamps_and_dates_need_no_unit(tmp_path: Path) -> None:
    for kind, seconds in (
        (pl.Datetime("us"), 1574153512),
        (pl.Datetime("ns", "Europe/Berlin"), 1574153512),
        (pl.Date, 1574121600),
    ):
        moment = pl.Series("time", [1574153512000] * 2).cast(pl.Datetime("ms", "UTC"))
        if kind == pl.Date:
            moment = moment.dt.replace_time_zone(None).cast(pl.Date)
        elif kind.time_zone:
            moment = moment.dt.convert_time_zone(kind.time_zone).cast(kind)
        else:
            moment = moment.dt.replace_time_zone(None).cast(kind)
        frame = pl.DataFrame({"user": [1, 1], "item": [1, 2], "click": [0, 1]})
        frame.with_columns(moment).write_parquet(tmp_path / "log.parquet")
        view = run(tmp_path, make_spec(split={"by": "position", "train": 0.5}))
        assert view.events["time"].tolist() == [seconds * 1000] * 2


def test_a_wrong_unit_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path, [{"user": 1, "item": 1, "time": 1574153512 + k, "click": 1} for k in range(9)])
    warnings = run(tmp_path, make_spec()).manifest["summary"]["warnings"]
    assert any("check the source's time_unit" in warning for warning in warnings)


# Splits


def test_cut_points_by_time(tmp_path: Path) -> None:
    day = 86_400_000
    write(tmp_path, log(*[(k % 3, k, k * day, 1) for k in range(9)]))
    cuts = {"validation_from": "1970-01-04", "test_from": "1970-01-06T01:00:00+01:00"}
    view = run(tmp_path, make_spec(split=cuts))
    split = {r["rows"][0]: r["split"] for r in view.request_list()}
    times = {int(view.events["time"][row]) // day: s for row, s in split.items()}
    assert times == dict(enumerate([0, 0, 0, 1, 1, 2, 2, 2, 2]))
    assert view.manifest["summary"]["cuts"] == [3 * day, 5 * day]
    with pytest.raises(DataError, match="training window holds no impressions"):
        run(tmp_path, make_spec(split={**cuts, "validation_from": "1969-01-01"}))
    empty = run(tmp_path, make_spec(split={**cuts, "test_from": "1999-01-01"}))
    assert "the test split is empty" in empty.manifest["summary"]["warnings"]


# Lists


def list_spec(**values: Any) -> Spec:
    lists = {**EVENTS, "files": ["lists.parquet"], "lists": True, "constant": {"click": 1}}
    events = [{**EVENTS, "files": ["log.parquet"], "request": "request"}, lists]
    split = {"by": "position", "train": 0.5, "validation": 0.25}
    return make_spec(events=events, history={"keep": "click"}, split=split, **values)


def shown(user: Any, time: int) -> list[dict[str, Any]]:
    return log(
        (user, 900, time, 0, time),
        (user, 901, time, 1, time),
        columns="user item time click request",
    )


def test_lists_tell_each_event_once(tmp_path: Path) -> None:
    write(tmp_path, [row for t in (10, 20, 30, 40, 50) for row in shown(1, t)])
    lists = [
        (1, [1, 2, 3], 10),
        (1, [1, 2, 3], 20),  # nothing new
        (1, [1, 2, 3, 4, 5], 30),  # longer
        (1, [4, 5, 6], 40),  # a window that has moved on
        (1, [8, 9], 50),  # another list altogether
        (2, [7], 5),  # a user whom nothing is shown to
        (1, None, 60),
        (2, [7, None], 70),
        (1, [], 60),
    ]
    write(tmp_path, log(*lists, columns="user item time"), "lists.parquet")
    view = run(tmp_path, list_spec())
    rows = view.rows(["label_click"])
    assert [row for row in rows if row[0] < 900 and row[0] != 7] == [
        *[(k, 9, 1) for k in (1, 2, 3)],
        *[(k, 29, 1) for k in (4, 5)],
        (6, 39, 1),
        *[(k, 49, 1) for k in (8, 9)],
    ]
    histories = {
        rows[r["rows"][0]][1]: [rows[k][0] for k in r["history"]] for r in view.request_list()
    }
    assert histories == {
        10: [1, 2, 3],
        20: [1, 2, 3, 901],
        30: [1, 2, 3, 901, 901, 4, 5],
        40: [1, 2, 3, 901, 901, 4, 5, 901, 6],
        50: [1, 2, 3, 901, 901, 4, 5, 901, 6, 901, 8, 9],
    }
    assert view.manifest["summary"]["noted"] == {
        "missing item ids within lists": 1,
        "list that does not continue the one before": 1,
    }
    assert 2 in view.users


def test_lists_written_as_text(tmp_path: Path) -> None:
    rows = [row for t in (10, 20, 30, 40) for row in shown("a", t)]
    for row in rows:
        row["item"] = f"N{row['item']}"
    write(tmp_path, rows)
    write(
        tmp_path,
        log(("a", "N1 N2", 10), ("a", "", 15), ("a", "N1 N2 N3 ", 20), columns="user item time"),
        "lists.csv",
    )
    spec = list_spec()
    lists = {**spec.events[1].model_dump(), "files": ["lists.csv"]}
    view = run(tmp_path, make_spec(**{**spec.model_dump(), "events": [spec.events[0], lists]}))
    assert [row[0] for row in view.rows([])][:5] == ["N1", "N2", "N900", "N901", "N3"]


def test_constants_of_lists_are_read_as_columns_are(tmp_path: Path) -> None:
    write(tmp_path, [{**row, "watch": 1.0, "n": 3, "tab": "x"} for row in shown(1, 10)])
    write(tmp_path, log((1, [1, 2], 10), columns="user item time"), "lists.parquet")
    watch = {"name": "watch", "kind": "duration", "scale": 0.5, "cap": 4}
    features = [{"name": "n", "kind": "numeric"}, {"name": "tab", "kind": "categorical"}]
    spec = list_spec(labels=[CLICK, watch], event_features=features)
    constant = {"click": 1, "watch": 3, "tab": 7}
    lists = {**spec.events[1].model_dump(), "constant": constant}
    values = {**spec.model_dump(), "events": [spec.events[0], lists]}
    view = run(tmp_path, make_spec(**values))
    names = ["label_click", "label_watch", "feature_n"]
    assert view.rows(names)[:2] == [(1, 9, 1, 1.5, 0), (2, 9, 1, 1.5, 0)]
    assert set(view.vocab("event_tab")) == {"7", "x"}
    constant["watch"] = 100
    assert run(tmp_path, make_spec(**values)).events["label_watch"][0] == 4


# Features


def test_event_features(tmp_path: Path) -> None:
    rows = [
        {"user": k % 4, "item": k % 9, "time": k, "click": k % 2, "tab": k % 3, "score": k / 4}
        for k in range(100)
    ]
    rows += [
        {"user": 1, "item": 1, "time": 100 + k, "click": 1, "tab": 77, "score": None}
        for k in range(25)
    ]
    write(tmp_path, rows)
    features = [
        {"name": "tab", "kind": "categorical", "when": "context"},
        {"name": "score", "kind": "numeric"},
    ]
    view = run(tmp_path, make_spec(event_features=features))
    assert view.vocab("event_tab") == {"0": 1, "1": 2, "2": 3}
    tab, score = view.events["feature_tab"], view.events["feature_score"]
    assert tab[view.events["time"] >= 100].max() == 0
    assert score[view.events["time"] >= 100].max() == 0
    assert score[view.events["time"] < 100].min() >= 1
    assert score.max() == 32
    order = np.argsort(view.events["time"])
    assert (np.diff(score[order][:100]) >= 0).all()
    counts = np.bincount(score)[1:]
    assert counts.max() - counts.min() <= 2
    entry = view.manifest["encoding"]["event_features"]
    assert entry[0] == {"name": "tab", "kind": "categorical", "when": "context", "size": 4}
    assert entry[1]["size"] == 33
    assert len(entry[1]["edges"]) == 31
    write(tmp_path, rows, "log.csv")
    from_csv = run(
        tmp_path,
        make_spec(event_features=features, events=[{**EVENTS, "files": ["log.csv"]}]),
    )
    same(view.path, from_csv.path)


def test_duration_labels(tmp_path: Path) -> None:
    rows = [
        {"user": 1, "item": 1, "time": k, "watch": 1000.0 * k, "length": 2000 if k % 2 else 0}
        for k in range(10)
    ]
    write(tmp_path, rows)
    label = {"name": "watch", "kind": "duration", "scale": 0.001, "cap": 6.0, "of": "length"}
    view = run(tmp_path, make_spec(labels=[label]))
    assert view.events["label_watch"].tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6]
    np.testing.assert_array_equal(
        view.events["ratio_watch"], [np.nan if k % 2 == 0 else k / 2 for k in range(10)]
    )
    entry = view.manifest["encoding"]["labels"][0]
    assert entry["ratio"] is True
    assert entry["mean"] == pytest.approx(np.mean([0, 1, 2, 3, 4, 5, 6, 6]))
    assert len(entry["edges"]) == 31
    assert entry["edges"][0] == 1.0
    assert entry["edges"][-1] == 6.0


def features_spec(**values: Any) -> Spec:
    items = {
        "files": ["items.parquet"],
        "features": [
            {"name": "genres", "kind": "categorical", "split": "|"},
            {"name": "year", "kind": "numeric", "transform": "log1p"},
            {"name": "tags", "kind": "categorical", "min_count": 2},
            {"name": "vector", "kind": "text-vector"},
        ],
    }
    split = {"validation_from": "1970-01-01T00:00:01", "test_from": "1970-01-01T00:00:02"}
    return make_spec(items=items, split=split, **values)


ITEMS = [
    {"id": 1, "genres": "A|B", "year": 1.0, "tags": ["x", "y"], "vector": [1.0, 3.0]},
    {"id": 2, "genres": "B", "year": 3.0, "tags": ["x"], "vector": [5.0, 7.0]},
    {"id": 3, "genres": "", "year": None, "tags": None, "vector": None},
    {"id": 4, "genres": "A|Z", "year": 5.0, "tags": ["y"], "vector": [9.0, 9.0]},
    {"id": 5, "genres": "Z", "year": 7.0, "tags": ["x", "w"], "vector": [0.0, 0.0]},
    {"id": 1, "genres": "Q", "year": 9.0, "tags": [], "vector": [0.0, 0.0]},
]


def test_item_features(tmp_path: Path) -> None:
    pl.DataFrame(ITEMS).write_parquet(tmp_path / "items.parquet")
    events = [(1, 2, 10, 1), (1, 1, 20, 0), (2, 2, 30, 1), (2, 3, 40, 0)]
    later = [(1, 4, 1500, 1), (1, 77, 2500, 1)]
    write(tmp_path, log(*events, *later))
    view = run(tmp_path, features_spec())
    assert view.items == [2, 1, 3, 4, 5, 77]
    encoding = view.manifest["encoding"]
    assert encoding["trained_items"] == 3
    assert view.train_count.tolist() == [2, 1, 1, 0, 0, 0]
    assert view.vocab("item_genres") == {"B": 1, "A": 2}
    assert view.vocab("item_tags") == {"x": 1}
    genres, year, tags, vector = encoding["items"]["features"]
    assert (genres["start"], genres["size"], tags["start"], tags["size"]) == (0, 3, 3, 2)
    assert encoding["items"]["tokens"] == 5
    assert encoding["items"]["numeric"] == 3
    offsets, tokens = view.array("items/token_offsets"), view.array("items/tokens").tolist()
    weights = view.array("items/token_weights").tolist()
    found = [tokens[a:b] for a, b in pairwise(offsets)]
    assert found == [[1, 4], [2, 1, 4], [0, 3], [2, 3], [0, 4], [0, 3]]
    assert weights[:5] == [1, 1, 0.5, 0.5, 1]
    numeric = view.array("items/numeric")
    known = np.log1p([3.0, 1.0])
    assert (year["mean"], year["std"]) == (pytest.approx(known.mean()), pytest.approx(known.std()))
    np.testing.assert_allclose(numeric[:2, 0], (known - known.mean()) / known.std(), rtol=1e-5)
    assert numeric[2, 0] == numeric[5, 0] == 0
    assert (vector["column"], vector["dim"]) == (1, 2)
    assert vector["std"] == pytest.approx(np.std([1, 3, 5, 7]))
    np.testing.assert_allclose(numeric[3, 1:], 9 / np.std([1, 3, 5, 7]), rtol=1e-6)
    noted = view.manifest["summary"]["noted"]
    assert noted == {"item table: rows with an id seen before": 1}


def test_vectors_as_text_are_the_same_and_must_have_one_length(tmp_path: Path) -> None:
    pl.DataFrame(ITEMS).write_parquet(tmp_path / "items.parquet")
    write(tmp_path, log((1, 2, 10, 1), (1, 1, 20, 0)))
    lists = run(tmp_path, features_spec())
    texts = [
        {**row, "vector": row["vector"] and " ".join(map(str, row["vector"]))} for row in ITEMS
    ]
    pl.DataFrame(texts).write_parquet(tmp_path / "items.parquet")
    same(lists.path, run(tmp_path, features_spec()).path)
    texts[3]["vector"] = "1 2 3"
    pl.DataFrame(texts).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="vector of 4 has 3 numbers, expected 2"):
        run(tmp_path, features_spec())
    texts[3]["vector"] = "1 b"
    pl.DataFrame(texts).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="parts that are not numbers"):
        run(tmp_path, features_spec())


def test_user_features_are_learned_from_users_of_the_training_window(tmp_path: Path) -> None:
    rows = log((1, 2, 10, 1), (2, 1, 20, 0), (3, 1, 2500, 0))
    write(tmp_path, rows)
    pl.DataFrame(ITEMS).write_parquet(tmp_path / "items.parquet")
    users = [{"id": k, "land": land, "age": 10 * k} for k, land in enumerate("abcde")]
    write(tmp_path, users, "users.csv")
    table = {
        "files": ["users.csv"],
        "features": [{"name": "land", "kind": "categorical"}, {"name": "age", "kind": "numeric"}],
    }
    view = run(tmp_path, features_spec(users=table))
    assert view.vocab("user_land") == {"b": 1, "c": 2}
    assert sorted(view.users) == [1, 2, 3]
    tokens = dict(zip(view.users, view.array("users/tokens").tolist(), strict=True))
    assert tokens == {1: 1, 2: 2, 3: 0}
    age = dict(zip(view.users, view.array("users/numeric")[:, 0].tolist(), strict=True))
    assert age == {1: -1.0, 2: 1.0, 3: 3.0}


def test_without_tables_the_arrays_are_there_and_empty(tmp_path: Path) -> None:
    write(tmp_path, log((1, 2, 10, 1), (1, 1, 20, 0)))
    view = run(tmp_path, make_spec(split={"by": "position", "train": 0.5}))
    assert view.array("items/numeric").shape == (2, 0)
    assert view.array("users/numeric").shape == (1, 0)
    assert view.array("items/token_offsets").tolist() == [0, 0, 0]
    assert len(view.array("users/tokens")) == 0


# Leaks


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32))
def test_nothing_of_the_future_is_seen(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("leak")
    rows = random_rows(rng, 300, 8, 200, rng.random() < 0.5)
    for row in rows:
        row["tab"] = rng.randrange(100)
    write(folder, rows)
    spec = make_spec(
        events=[{**EVENTS, "files": ["log.parquet"]}],
        event_features=[{"name": "tab", "kind": "categorical"}],
        split={"by": "time", "train": 0.5, "validation": 0.2},
        history={"keep": rng.choice([None, "click"])},
    )
    view = run(folder, spec)
    time = view.events["time"]
    for request in view.request_list():
        assert all(time[row] < time[request["rows"][0]] for row in request["history"])
        assert len({view.events["item"][row] for row in request["rows"]}) >= 1
    cut = view.manifest["summary"]["cuts"][0]
    trained = view.items[: view.manifest["encoding"]["trained_items"]]
    before = [row for row in rows if row["time"] < cut]
    assert set(trained) == {row["item"] for row in before}
    assert set(view.vocab("event_tab")) == {str(row["tab"]) for row in before}
    # Another future changes nothing that was learned from the past.
    for row in rows:
        if row["time"] >= cut:
            row |= {"item": row["item"] + 1, "tab": 500, "click": 1 - row["click"]}
    write(folder, rows)
    other = run(folder, spec)
    assert other.items[: len(trained)] == trained
    assert other.manifest["encoding"] == view.manifest["encoding"]


# Complete or not there


def test_an_existing_dataset_stays_without_overwrite(tmp_path: Path) -> None:
    write(tmp_path, log((1, 2, 10, 1), (1, 1, 20, 0)))
    spec = make_spec(split={"by": "position", "train": 0.5})
    out = tmp_path / "data"
    prepare(spec, out, base=tmp_path)
    with pytest.raises(FormatError, match="already exists"):
        prepare(spec, out, base=tmp_path)
    write(tmp_path, log((1, 2, 10, 1), (1, 1, 20, 0), (1, 3, 30, 0)))
    summary = prepare(spec, out, base=tmp_path, overwrite=True)
    assert summary.events == 3
    assert summary.to_dict() == json.loads((out / "dataset.json").read_text())
    assert summary.to_polars()["split"].to_list() == list(summary.requests)
    assert summary.to_polars()["impressions"].to_list() == list(summary.impressions.values())
    assert repr(summary).startswith("warning: ")
    assert "\ndataset " in repr(summary)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "log.parquet"]
    assert not (out / "work").exists()


@pytest.mark.parametrize("step", ["learn", "manifest_of"])
def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path: Path, step: str) -> None:
    write(tmp_path, log((1, 2, 10, 1), (1, 1, 20, 0)))
    spec = make_spec(split={"by": "position", "train": 0.5})
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    program = f"""
        import os, signal
        from pathlib import Path
        from limerank.data.prepare import job as preparation
        from limerank.data.spec import Spec

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        preparation.{step} = die
        folder = Path({str(tmp_path)!r})
        spec = Spec.model_validate_json((folder / "spec.json").read_text())
        preparation.prepare(spec, folder / "data", base=folder)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "data").exists()
    assert list(tmp_path.glob(".data.partial-*"))
    prepare(spec, tmp_path / "data", base=tmp_path)
    assert not list(tmp_path.glob(".data.partial-*"))
    assert View(tmp_path / "data").manifest["counts"]["events"] == 2


def test_the_description_is_stored_with_the_data(tmp_path: Path) -> None:
    from limerank.data.description import load_spec

    folder = tmp_path / "logs [1]"
    folder.mkdir()
    write(folder, log((1, 2, 10, 1), (1, 1, 20, 0)))
    spec = make_spec(split={"by": "position", "train": 0.5})
    prepare(spec, tmp_path / "data", base=folder)
    retained = load_spec(tmp_path / "data/spec.toml")
    assert retained.model_copy(update={"events": spec.events}) == spec
    prepare(retained, tmp_path / "again", base=tmp_path / "data")
    same(tmp_path / "data/events", tmp_path / "again/events")


@pytest.mark.parametrize("click", [0, 1])
def test_a_label_that_never_varies_is_warned_of(tmp_path: Path, click: int) -> None:
    write(tmp_path, log(*[(1, k, k, click if k < 8 else 1 - click) for k in range(10)]))
    manifest = run(tmp_path, make_spec()).manifest
    text = f"label click is {click} in all impressions of the training window"
    (warning,) = [one for one in manifest["summary"]["warnings"] if one.startswith(text)]
    assert 'write kind = "positive"' in warning
    assert f"warning: {warning}" in DatasetSummary.of(manifest).text()


@pytest.mark.parametrize("click", [0, 1])
def test_a_log_without_any_label_that_varies_is_refused(tmp_path: Path, click: int) -> None:
    """At once, with what to write instead; a second label that varies is enough to go on."""
    rows = [(k % 7, k % 11, k, click) for k in range(200)]
    write(tmp_path, log(*rows))
    with pytest.raises(DataError, match=rf"label click is {click} in all .*kind = .positive"):
        run(tmp_path, make_spec())


def test_the_summary_can_be_read(tmp_path: Path) -> None:
    rng = random.Random(9)
    write(tmp_path, random_rows(rng, 300, 10, 10, False))
    text = DatasetSummary.of(run(tmp_path, random_spec(rng, False, False)).manifest).text()
    assert "users 10" in text
    assert "train" in text
    assert "mean watch" in text
    assert max(map(len, text.splitlines())) <= 110
