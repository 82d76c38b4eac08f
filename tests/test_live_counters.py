"""A server refreshes the counters of its indexes: as an evaluation of the later log has them."""

from __future__ import annotations

import shutil
import time
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from limerank.data.counters import DELAY, HOUR
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import StoreError
from limerank.evaluation.predict import predict
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import put_items, remove_items
from limerank.index.compaction import compact_index
from limerank.index.counting import Shown, count_again
from limerank.index.parts import build_part, join_parts
from limerank.index.sharding import split_index
from limerank.index.writing import ReadOnlyError, writing
from limerank.parts import Part
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_run
from limerank.serving.engine import Serving
from limerank.serving.feed import Feed
from limerank.serving.stores import SqliteStore
from limerank.training.trainer import train
from tests.stores import event, exposure
from tests.worlds import config_of, write_log

WINDOW = 3600.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of all but the last days, a run on it and its index; the dataset of all days; and
    the rows of the last days."""
    folder = tmp_path_factory.mktemp("live")
    spec = write_log(folder / "log", users=60)
    log = pl.read_parquet(folder / "log" / "events.parquet")
    last = int(log["time"].quantile(0.6))
    last = (
        log.group_by(pl.col("time") // 3600)
        .agg(  # within an hour
            pl.col("time").min().alias("least"), pl.col("time").max().alias("most")
        )
        .filter((pl.col("least") < pl.col("most")) & (pl.col("most") < last))["most"]
        .max()
    )
    before = log.filter(pl.col("time") < last)
    before.write_parquet(folder / "log" / "events.parquet")
    prepare(load_spec(spec), folder / "before", base=spec.parent)
    log.write_parquet(folder / "log" / "events.parquet")
    prepare(load_spec(spec), folder / "all", base=spec.parent)
    train(
        folder / "before",
        folder / "run",
        model=config_of("lime-mha", width=16, hidden=8, links=4),
        config={"epochs": 2, "batch_size": 32},
    )
    build_index(folder / "run", folder / "index")
    run = load_run(folder / "run")
    return SimpleNamespace(
        folder=folder,
        run=run,
        all=run.dataset(folder / "all"),
        built=before.select(pl.col("time").max()).item() // 3600 + 1,
        first=log.filter(pl.col("time") >= last).select(pl.col("time").min()).item() // 3600,
        late=log.filter(pl.col("time") >= last).sort("time"),
    )


def shown_of(made, first=0, end=1 << 40):
    """The impressions of the last days, between two hours."""
    hour = pl.col("time") // 3600
    found = made.late.filter((hour >= first) & (hour < end)).group_by("item_id", hour.alias("hour"))
    found = found.agg(pl.len().alias("shown"), (pl.col("click") > 0).sum().alias("positive"))
    columns = (found[name].to_numpy().astype(np.int64) for name in ("hour", "shown", "positive"))
    return Shown(found["item_id"].to_list(), *columns)


def expected(made, index, hour):
    """Counters of an index's items at an hour, by the dataset of all days."""
    rows = {id: row for row, id in enumerate(made.all.item_ids.tolist())}
    own = np.array([rows[id] for id in np.asarray(index.ids[:]).tolist()])
    return made.all.counters.counted(own, np.full(len(own), hour))


def counted(made, path, first, end):
    with writing(path):
        return count_again(made.run, path, shown_of(made, first, end), end)


@pytest.fixture
def index(made, tmp_path):
    shutil.copytree(made.folder / "index", tmp_path / "index")
    return tmp_path / "index"


# In an index


def test_counting_again_gives_what_a_build_from_the_longer_log_gives(made, index):
    opened = Index.open(index)
    assert opened.counted.hour == made.built and not opened.counted.live
    end = made.built + 6
    counted(made, index, 0, end)
    counted(made, index, end, end + 9)  # in two steps
    found = Index.open(index, made.run.fingerprint, verify=True)
    assert found.version > opened.version and found.base == opened.base
    np.testing.assert_allclose(found.counters, expected(made, found, end + 9), atol=1e-5)
    assert (found.counters != opened.counters).any()
    # Its terms are those that a build computes, within the step of its scales.
    build_index(made.run, index.with_name("later"), data=made.all)
    later = Index.open(index.with_name("later"))
    hours = later.counted.hour - (end + 9)
    assert hours >= 0
    counted(made, index, end + 9, later.counted.hour)
    found = Index.open(index)
    rows = later.ids.find(np.asarray(found.ids[:]).tolist())
    np.testing.assert_allclose(found.counters, later.counters[rows], atol=1e-5)
    own, other = (of.scales.terms(of.terms) for of in (found, later))
    error = found.scales.term_error + later.scales.term_error
    assert (np.abs(own - other[rows]) <= error + 1e-4).all()
    assert np.array_equal(found.weights, opened.weights)
    assert np.array_equal(found.vectors, opened.vectors)


def test_counts_of_unknown_items_are_left_out_and_a_reader_keeps_its_version(made, index):
    old = Index.open(index)
    before = np.array(old.counters)
    shown = Shown([10**9], *np.array([[made.built], [5], [5]]))
    with writing(index):
        count_again(made.run, index, shown, made.built + 1)
    assert np.array_equal(old.counters, before) and not old.current()
    assert Index.open(index).counted.live


def test_items_that_are_put_compacted_or_split_keep_their_counts(made, index):
    end = made.built + 9
    opened = Index.open(index)
    known, removed = np.asarray(opened.ids[[3, 5]]).tolist()
    row = {"group": "g1", "tags": "t0", "length": 12.0}
    put_items(made.run, index, [{"item_id": known, **row}, {"item_id": 999_999, **row}])
    remove_items(index, [removed])
    counted(made, index, 0, end)
    put_items(made.run, index, [{"item_id": known, **row, "length": 3.0}])
    for step in ("put", "compacted"):
        if step == "compacted":
            compact_index(index)
        at = end + (step == "compacted")
        counted(made, index, at, at + 1)
        found = Index.open(index, verify=True)
        ids = [id for id in np.asarray(found.ids[:]).tolist() if id != 999_999]
        rows = found.ids.find(ids)
        positions = {id: position for position, id in enumerate(made.all.item_ids.tolist())}
        at = np.array([positions[id] for id in ids])
        hours = np.full(len(at), found.counted.hour)
        wanted = made.all.counters.counted(at, hours)
        np.testing.assert_allclose(found.counters[rows], wanted, atol=1e-5)
        assert not found.counters[found.row_of(999_999)].any()
    split_index(index, 2)
    shards = [Index.open(index.with_name(f"index-shard-{k}-of-2")) for k in (1, 2)]
    for shard in shards:
        rows = found.ids.find(np.asarray(shard.ids[:]).tolist())
        assert np.array_equal(shard.counters, found.counters[rows])
        assert all(map(np.array_equal, shard.hourly(), found.hourly(rows)))


def test_parts_are_joined_to_the_index_of_one_build(made, tmp_path):
    full = build_index(made.run, tmp_path / "full")
    for number in (1, 2):
        build_part(made.run, tmp_path / "joined", Part(number, 2))
    join_parts(made.run, tmp_path / "joined")
    one, other = Index.open(full.path), Index.open(tmp_path / "joined")
    assert one.manifest == other.manifest
    for name, array in one.arrays.items():
        assert np.array_equal(array, other.arrays[name]), name


def test_a_table_gets_the_counters_of_a_dataset(made, tmp_path):
    """Of the dataset that is given; alone, those of the training's end, which cannot go on."""
    items = made.folder / "log" / "items.csv"
    build_index(made.run, tmp_path / "alone", items=items)
    assert Index.open(tmp_path / "alone").counted is None
    for merge in (False, True):
        out = tmp_path / f"merge {merge}"
        build_index(made.run, out, items=items, data=made.all, merge=merge)
        found = Index.open(out)
        assert found.counted.hour == made.all.counters.end
        ids = pl.read_csv(items)["item_id"].to_list()
        rows, known = found.ids.find(ids), np.isin(ids, made.all.item_ids)
        positions = {id: position for position, id in enumerate(made.all.item_ids.tolist())}
        at = np.array([positions.get(id, len(positions)) for id in ids])
        assert known.any()
        np.testing.assert_array_equal(found.counters[rows], made.all.counters.latest(at))


# In a server


class World:
    """A server whose clock the test sets, and a store with the last days' exposures."""

    def __init__(self, made, index, store, monkeypatch):
        self.made, self.index, self.now = made, index, made.built * HOUR
        clock = SimpleNamespace(time=lambda: self.now / 1000)
        monkeypatch.setattr("limerank.serving.feed.clock", clock)
        clock.monotonic = time.monotonic
        monkeypatch.setattr("limerank.serving.counting.clock", clock)
        self.store = store
        self.engine = self.start()

    def start(self):
        return Serving(self.made.folder / "run", self.index, self.store, window=WINDOW)

    def show(self, first, end):
        """Store what was shown between two hours, and the clicks that followed."""
        hour = pl.col("time") // 3600
        some = self.made.late.filter((hour >= first) & (hour < end))
        for (user, request), rows in some.group_by("user_id", "request_id", maintain_order=True):
            at, ranking = int(rows["time"][0]) * 1000, f"main.{request}"
            items = rows["item_id"].to_list()
            self.store.show([exposure(user, at, ranking, items)])
            clicks = [
                event(user, at + 2000, f"{request}-{k}", item, labels={"click": 1.0})
                for k, (item, click) in enumerate(zip(items, rows["click"], strict=True))
                if click > 0
            ]
            if clicks:
                self.store.append(clicks)

    def until(self, hour, engine=None):
        """The clock shows an hour; the background task runs."""
        self.now = hour * HOUR
        engine = engine or self.engine
        for _ in range(3):
            engine.arms.count_again(engine.counts)
        return engine.current.served.index

    def check(self, index, hour):
        assert index.counted.hour == hour and index.counted.live
        np.testing.assert_allclose(index.counters, expected(self.made, index, hour), atol=1e-5)


@pytest.fixture
def world(made, index, tmp_path, monkeypatch):
    found = World(made, index, SqliteStore(tmp_path / "events.db"), monkeypatch)
    yield found
    found.engine.close()


@pytest.mark.parametrize("scorer", ["model", "quantised", "native"])
def test_a_server_ranks_as_an_evaluation_of_the_later_log_says(world, made, scorer):
    first = made.all.requests["first"]
    times = made.all.events["time"][first]
    day = int(made.late["time"][0]) * 1000 + 9 * HOUR
    hours, requests = np.unique(times[times >= day] // HOUR, return_counts=True)
    hour = int(hours[requests.argmax()])  # a busy one
    world.show(0, hour)
    world.check(world.until(hour), hour - DELAY)
    some = np.flatnonzero(times // HOUR == hour)
    assert len(some) > 2
    run = load_run(made.folder / "run")
    assert run.ranker.config.counter_hours == 1
    later = run.dataset(made.folder / "all")
    predicted = predict(run.ranker, later, some)
    recommender = Recommender(
        made.folder / "run", world.index, data=made.folder / "all", scorer=scorer
    )
    close = 2e-5 if scorer == "model" else 0.05  # the index rounds to one byte
    for request in some[:8]:
        own = predicted.requests == request
        items = later.item_ids[later.events["item"][predicted.rows[own]]].tolist()
        wanted = dict(zip(items, predicted.values[own, 0].tolist(), strict=True))
        ranking = recommender.rank(
            later.user_ids[later.requests["user"][request]],
            time=int(times[request]),
            candidates=list(wanted),
            exclude_seen=False,
            k=len(wanted),
        )
        for item in ranking:
            assert item.scores["click"] == pytest.approx(wanted[item.id], abs=close)


def test_each_impression_is_counted_once_whoever_counts(world, made, index):
    """Hour by hour, by two servers of one folder, with restarts, and for an older index."""
    other = world.start()
    for hour in range(made.first + 2, made.first + 8):
        world.show(hour - 2 if hour == made.first + 2 else hour - 1, hour)
        world.check(world.until(hour), hour - DELAY)
        world.check(world.until(hour, other), hour - DELAY)
        if hour % 2:
            other.close = lambda: None  # the store is the test's
            other = world.start()
    # An index from an earlier log, as the daily loop publishes it.
    shutil.copytree(made.folder / "index", index.with_name("earlier"))
    world.engine.reload(None, str(index.with_name("earlier")))
    world.check(world.until(hour), hour - DELAY)
    assert world.engine.counts.left_out == 0


def test_an_older_index_begins_where_its_hour_was(world, made, index):
    """What is read again begins at the mark before its first hour, not at the first exposure."""
    for hour in range(made.first + 2, made.first + 12):
        world.show(hour - 2 if hour == made.first + 2 else hour - 1, hour)
        world.until(hour)
        if hour == made.first + 6:
            shutil.copytree(index, index.with_name("middle"))
    asked = []
    shown = world.store.shown
    world.store.shown = lambda since, limit: asked.append(dict(since)) or shown(since, limit)
    world.engine.reload(None, str(index.with_name("middle")))
    world.check(world.until(hour), hour - DELAY)
    read = [since[0] for since in asked if since]
    assert read and min(read) > 0


def test_what_nobody_logs_leaves_the_counters_of_the_log(world, made):
    before = world.engine.current.served.index
    assert world.until(made.built + 9) is before
    # Once they are logged, a quiet hour counts as one.
    world.show(made.built, made.built + 5)
    assert world.until(made.built + 9).counted.live
    quiet = world.until(made.built + 40)
    assert quiet.counted.hour == made.built + 40 - DELAY
    assert quiet.counters[:, 4].max() > before.counters[:, 4].max()  # ages
    assert not quiet.counters[:, 3].any()  # impressions of the latest day


def test_the_counters_wait_for_what_is_not_over(world, made):
    """An exposure whose window is not over holds back the hour that it is of."""
    hour = made.built + 5
    world.show(made.built, hour)
    world.store.show([exposure(1, (hour - 1) * HOUR + 10, "main.x", [3])])
    index = world.until(hour)
    assert index.counted.hour == hour - 1
    world.now += 9
    assert world.until(hour).counted.hour == hour - 1
    assert world.until(hour + 1).counted.hour == hour


def test_too_many_items_are_left_out_and_logged(world, made, monkeypatch, caplog):
    monkeypatch.setattr("limerank.serving.counting.MOST_COUNTED", 4)
    world.until(made.built + 1)
    world.show(made.built, made.built + 24)
    world.until(made.built + 26)
    assert world.engine.counts.left_out > 0 and "are not counted until then" in caplog.text
    world.engine.count()
    assert f"limerank_counters_left_out {world.engine.counts.left_out:.1f}" in metrics(world)


def test_an_index_that_may_not_be_changed_stays_as_it_is(world, made, monkeypatch, caplog):
    asked = []

    def refused(*given):
        asked.append(given)
        raise ReadOnlyError("the index cannot be changed: make it writable")

    monkeypatch.setattr("limerank.serving.current.writing", refused)
    world.show(0, made.built + 5)
    before = world.engine.current.served.index
    for hour in (6, 7):
        assert world.until(made.built + hour) is before
    assert len(asked) == 1 and "stay those of the log" in caplog.text
    assert not world.engine.counts.needed


def test_a_server_says_what_its_counters_contain(world, made):
    hour = made.built + 5
    world.show(made.built, hour)
    world.until(hour)
    expected = {"until": (hour - DELAY) * HOUR - 1, "live": True, "hours": 1}
    assert world.engine.model()["counters"] == expected
    assert world.engine.model()["arms"][0]["counters"] == expected
    world.engine.count()
    begin = 'limerank_counters_until_seconds{arm="main"} '
    (line,) = [one for one in metrics(world).splitlines() if one.startswith(begin)]
    assert float(line.removeprefix(begin)) == (hour - DELAY) * 3600 - 1e-3


def metrics(world):
    return world.engine.numbers.text().decode()


def test_a_failing_store_makes_nothing_count_twice(world, made, monkeypatch):
    hour = made.first + 9
    world.until(made.built + 1)
    world.show(0, hour)
    between, calls = world.store.between, []

    def failing(*given):
        calls.append(given)
        if len(calls) in (2, 5):
            raise StoreError("the disk fails")
        return between(*given)

    monkeypatch.setattr(world.store, "between", failing)
    for _ in range(2):
        with pytest.raises(StoreError):
            world.until(hour)
    world.check(world.until(hour), hour - DELAY)


def test_what_is_dated_far_ahead_is_not_counted(world, made):
    world.until(made.built)
    later = (made.built + 900) * HOUR
    world.store.show([exposure(k, later + k, f"main.{k}", [3, 4]) for k in range(20)])
    world.store.show([exposure(1, made.built * HOUR + 1, "main.now", [3])])
    world.until(made.built + 3)
    assert len(world.engine.counts) <= 1
    index = world.until(made.built + 905)
    opened = Index.open(made.folder / "index")
    row = opened.row_of(3)
    assert index.hourly([row]).shown.sum() == opened.hourly([row]).shown.sum() + 1


def test_a_backlog_is_not_settled_before_it_is_read(world, made, monkeypatch):
    """Nor by an exposure from a fast clock, or by one in another order."""
    hour = made.first + 9
    world.store.show([exposure(1, (made.built + 90_000) * HOUR, "main.far", [3])])
    world.store.show([exposure(2, (hour - 3) * HOUR, "main.early", [3])])
    world.show(0, hour)
    monkeypatch.setattr("limerank.serving.feed.AT_ONCE", 2)
    feed, now = Feed(world.store, WINDOW), hour * HOUR
    for _ in range(3):
        with feed.taking(now):
            pass
        assert feed.settled < 0
    while feed.settled < 0:
        with feed.taking(now):
            pass
    assert feed.settled >= (hour - 1) * HOUR


def test_a_clock_that_is_a_little_ahead_loses_no_outcome(world, made):
    at = made.built * HOUR + HOUR // 2
    world.until(made.built)
    world.now = at
    world.store.show([exposure(1, at + 2000, "main.a", [3])])
    world.engine.arms.count_again(world.engine.counts)
    world.store.append([event(1, at + 5000, "click", 3, labels={"click": 1.0})])
    before = Index.open(made.folder / "index")
    row = before.row_of(3)
    index = world.until(made.built + 3)
    assert index.counted.live
    for name in ("shown", "positive"):
        found, old = (getattr(of.hourly([row]), name).sum() for of in (index, before))
        assert found == old + 1, name


def test_an_exposure_from_a_fast_clock_does_not_end_an_hour_that_goes_on(world, made):
    """Counters would be of an hour whose other exposures are still to come."""
    hour, minute = made.built + 2, HOUR // 60
    world.until(hour)
    row = Index.open(made.folder / "index").row_of(3)
    before = world.engine.current.served.index.hourly([row]).shown.sum()
    world.now = hour * HOUR + 56 * minute
    world.store.show([exposure(1, world.now + 4 * minute + 1, "main.ahead", [3])])
    for k in range(20):
        world.engine.arms.count_again(world.engine.counts)
        counted = world.engine.current.served.index.counted
        assert counted.hour <= world.now // HOUR
        if world.now < (hour + 1) * HOUR - minute:
            world.now += minute
            world.store.show([exposure(2, world.now, f"main.{k}", [3])])
        else:
            world.now += HOUR // 4
    assert world.engine.current.served.index.hourly([row]).shown.sum() == before + 4


def test_items_that_no_index_has_do_not_displace_others(world, made, monkeypatch):
    monkeypatch.setattr("limerank.serving.counting.MOST_COUNTED", 50)
    world.until(made.built + 1)
    at = (made.built + 1) * HOUR
    world.store.show([exposure(1, at, "main.unknown", list(range(900_000, 900_060)))])
    world.store.show([exposure(1, at + 1, "main.known", [3, 4])])
    row = Index.open(made.folder / "index").row_of(3)
    before = Index.open(made.folder / "index").hourly([row]).shown.sum()
    looked = []

    def unknown(items):
        looked.append(len(items))
        return world.engine.arms.unknown(items)

    monkeypatch.setattr(world.engine.counts, "_unknown", unknown)
    index = world.until(made.built + 4)
    assert index.hourly([row]).shown.sum() == before + 1
    assert world.engine.counts.left_out == 60
    assert [size for size in looked if size > 1] == [50]  # all pairs are looked at once


def test_an_arm_that_cannot_be_refreshed_does_not_hold_up_the_others(world, made, monkeypatch):
    def fail(counts):
        raise StoreError("its disk is full")

    world.show(0, made.first + 5)
    monkeypatch.setattr(world.engine.current, "count_again", fail)
    for _ in range(2):
        with pytest.raises(StoreError, match="its disk is full"):
            world.until(made.first + 6)
    assert len(world.engine.counts) > 0


def test_counters_beyond_the_scales_of_the_index_are_logged(world, made, monkeypatch, caplog):
    world.until(made.built)
    world.show(0, made.first + 5)
    for name in ("serving.current", "index.results"):
        monkeypatch.setattr(f"limerank.{name}.CLAMPED_SHARE", -1.0)
    world.until(made.first + 6)
    assert "counters of items: 0.0 % of the new" in caplog.text
    assert "build the index again" in caplog.text
