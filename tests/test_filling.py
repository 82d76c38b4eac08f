"""A log's events in a store: the states are those of the log."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.events import event_of
from limerank.data.prepare import prepare
from limerank.errors import DataError
from limerank.serving.fill import fill, item_file
from limerank.serving.state import UserStates
from limerank.serving.stores import SqliteStore
from tests.catalogues import plain_log, shop


@pytest.mark.parametrize(
    ("model", "anchors"), [("lime-mha", None), ("lime-xor", ()), ("sasrec", ())]
)
def test_the_store_s_users_are_the_log_s(model, anchors, tmp_path):
    of = shop(model, anchors=anchors)
    with SqliteStore(tmp_path / "events.db") as store:
        done = fill(store, of.data, base=plain_log())
        assert done.users == len(of.data.user_ids)
        assert done.events == done.accepted == len(of.data.events["item"])
        assert fill(store, of.data).accepted == 0, "filling again changes nothing"
        states = UserStates(of.run, of.index, store)
        # The last request of each user, its own events taken away: the model's input at that time.
        for user in range(0, len(of.data.user_ids), 5):
            first, last = np.searchsorted(of.data.requests["user"], [user, user + 1])
            if first == last:
                continue
            request = int(last - 1)
            batch = of.data.batch(np.array([request]))
            shown = of.data.requests["first"][request]
            now = int(of.data.events["time"][shown])
            with SqliteStore(tmp_path / f"{user}.db") as past:
                held = store.held(of.data.user_ids[user])
                past.append([event for event in held.events if event.time < now])
                past.set_features(of.data.user_ids[user], held.features)
                ready = UserStates(of.run, of.index, past).ready(of.data.user_ids[user], now=now)
            with torch.inference_mode():
                vectors = of.run.ranker.item_vectors(batch.items)
                expected = of.run.ranker.encode_users(batch.users, vectors)
            *found, anchored = ready.state
            for one, other in zip(found, expected[:-1], strict=True):
                if one.is_floating_point():
                    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
            if anchors is None:  # rows of the index are those of the dataset
                assert torch.equal(anchored.keys, expected.anchored.keys)
                links, others = anchored.links, expected.anchored.links
                torch.testing.assert_close(links, others, atol=1e-4, rtol=1e-4)
        assert states.ready(of.data.user_ids[0]).known


def test_the_command(call, tmp_path):
    of = shop("lime-mha")
    status, output, _ = call(
        "fill", tmp_path / "events.db", "--data", of.data.path, "--quiet",
        "--base", plain_log(),
    )  # fmt: skip
    count = len(of.data.events["item"])
    assert status == 0 and f"{count:,} new of {count:,} events" in output
    table = shlex.split(output.rpartition("--items ")[2])[0]
    assert Path(table).samefile(plain_log() / "items.csv")
    with SqliteStore(tmp_path / "events.db") as store:
        users = pl.read_csv(plain_log() / "users.csv")
        held = store.held(of.data.user_ids[0])
        assert held.features.keys() <= set(users.columns)


SPEC = """
name = "days"
events = [{ files = ["FILE"], user = "user", item = "item", time = "time" }]
labels = [{ name = "click", kind = "binary" }, { name = "watch", kind = "duration", cap = 60 }]
event_features = [{ name = "tab", kind = "categorical" }]
users = { files = ["users.csv"], id = "user", features = [{ name = "land", kind = "categorical" }] }
"""


def log_of_days(folder, name, first, last):
    """Days first .. last of one log: events with ties, doubles of content apart by their time."""
    rows = [
        (user, f"i{(user * 7 + day * 3 + n) % 11}", 1_780_000_000 + day * 86_400 + n // 2, n % 2,
         n * 25.7, f"t{n}")
        for day in range(first, last)
        for user in range(6)
        for n in range(6)
    ]  # fmt: skip
    columns = ["user", "item", "time", "click", "watch", "tab"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(folder / f"{name}.csv")
    users = pl.DataFrame({"user": [1.0, 2.0, None], "land": ["fi", "ee", "xx"]})
    users.write_csv(folder / "users.csv")
    (folder / f"{name}.toml").write_text(SPEC.replace("FILE", f"{name}.csv"))
    prepare(load_spec(folder / f"{name}.toml"), folder / f"data-{name}", base=folder)
    return Dataset(folder / f"data-{name}"), rows


def events_of(store):
    held = [event for user in store.users() for event in store.held(user).events]
    return Counter((event.user, event.item, event.time) for event in held)


def test_a_sliding_log_adds_what_is_new_and_nothing_twice(tmp_path):
    first, rows = log_of_days(tmp_path, "first", 0, 4)
    later, more = log_of_days(tmp_path, "later", 2, 6)
    everything = Counter((user, item, time * 1000) for user, item, time, *_ in {*rows, *more})
    with SqliteStore(tmp_path / "events.db") as store:
        assert fill(store, first).accepted == len(rows)
        assert fill(store, later).accepted == len({*more} - {*rows})
        assert events_of(store) == everything
        assert fill(store, first).accepted == fill(store, later).accepted == 0


def test_events_that_were_posted_are_not_put_again(tmp_path):
    data, rows = log_of_days(tmp_path, "log", 0, 2)
    posted = [
        event_of(
            {"user": str(user), "item": item, "time": time * 1000,
             "labels": {"watch": watch, "click": float(click)}, "features": {"tab": tab},
             **({"id": f"by-client-{n}"} if n % 2 else {})}
        )
        for n, (user, item, time, click, watch, tab) in enumerate(rows[::3])
    ]  # fmt: skip
    with SqliteStore(tmp_path / "events.db") as store:
        store.append(posted)
        assert fill(store, data).accepted == len(rows) - len(posted)
        assert events_of(store) == Counter((u, i, t * 1000) for u, i, t, *_ in rows)


def test_ties_keep_the_order_of_the_log(tmp_path):
    data, _ = log_of_days(tmp_path, "log", 0, 2)
    with SqliteStore(tmp_path / "events.db") as store:
        fill(store, data)
        for row, user in enumerate(data.user_ids.tolist()):
            part = slice(*data.event_offsets[row : row + 2].tolist())
            items = data.item_ids[data.events["item"][part]].tolist()
            assert [event.item for event in store.held(user).events] == items


@pytest.mark.parametrize("first", [lambda n: n % 2, lambda n: n % 6 == 0, lambda n: n % 3 == 2])
def test_what_is_new_of_a_tie_stands_where_the_log_has_it(first, tmp_path):
    """Also where an earlier log held a part of the tie, or a client posted one."""
    _, rows = log_of_days(tmp_path, "log", 0, 3)
    rows = [(user, f"i{k % 9}", time - time % 86_400, *rest)
            for k, (user, _, time, *rest) in enumerate(rows)]  # fmt: skip
    columns = ["user", "item", "time", "click", "watch", "tab"]

    def prepared(name, some):
        pl.DataFrame(some, schema=columns, orient="row").write_csv(tmp_path / f"{name}.csv")
        (tmp_path / f"{name}.toml").write_text(SPEC.replace("FILE", f"{name}.csv"))
        prepare(load_spec(tmp_path / f"{name}.toml"), tmp_path / f"in-{name}", base=tmp_path)
        return Dataset(tmp_path / f"in-{name}")

    part = prepared("part", [row for n, row in enumerate(rows) if first(n)])
    data = prepared("all", rows)
    with SqliteStore(tmp_path / "events.db") as store:
        fill(store, part)
        fill(store, data)
        for row, user in enumerate(data.user_ids.tolist()):
            events = slice(*data.event_offsets[row : row + 2].tolist())
            items = data.item_ids[data.events["item"][events]].tolist()
            assert [event.item for event in store.held(user).events] == items
        assert fill(store, data).accepted == fill(store, part).accepted == 0


def test_an_unreadable_user_table_is_reported_before_anything_is_stored(tmp_path):
    data, _ = log_of_days(tmp_path, "log", 0, 1)
    with SqliteStore(tmp_path / "events.db") as store:
        with pytest.raises(DataError, match=r"users\.csv"):
            fill(store, data, base=tmp_path / "nowhere")
        assert list(store.users()) == []


def test_the_user_table_is_found_by_the_description_or_reported_missing(tmp_path):
    data, _ = log_of_days(tmp_path, "log", 0, 1)
    assert item_file(data) is None
    with SqliteStore(tmp_path / "events.db") as store:
        done = fill(store, data)
        assert (done.features, done.note) == (2, "")
        assert store.held(1).features == {"land": "fi"}
    (tmp_path / "users.csv").rename(tmp_path / "moved.csv")
    with SqliteStore(tmp_path / "other.db") as store:
        done = fill(store, data)
        assert done.features == 0 and "users have no features" in done.note


def test_a_user_table_that_was_a_frame_is_not_looked_for(tmp_path):
    events = pl.DataFrame(
        {
            "user_id": [1, 2] * 10,
            "item_id": [k % 5 for k in range(20)],
            "time": range(20),
            "click": [k % 2 for k in range(20)],
        }
    )
    prepare(
        {
            "name": "frames",
            "events": [{"time": "time"}],
            "labels": [{"name": "click", "kind": "binary"}],
            "users": {"id": "user_id", "features": [{"name": "age", "kind": "numeric"}]},
        },
        tmp_path / "data",
        events=events,
        users=pl.DataFrame({"user_id": [1, 2], "age": [30, 40]}),
    )
    with SqliteStore(tmp_path / "events.db") as store:
        for base in (None, tmp_path):
            done = fill(store, tmp_path / "data", base=base)
            assert done.features == 0 and "was passed to prepare as a frame" in done.note
