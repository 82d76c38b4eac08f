"""Cold starts: users and items that are held out leave no trace in what training sees."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.folder import SPLITS
from limerank.data.prepare import prepare
from limerank.data.prepare.holdout import FirstSeen, held_out_users
from limerank.evaluation.evaluate import evaluate
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models.config import ModelConfig, TrainConfig
from limerank.ranking.recommender import Recommender
from limerank.training.trainer import train
from tests.worlds import write_log

USERS, ITEMS = 120, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("holdout")


def prepared(folder, name, **split):
    """A dataset of one log under a split; items 30 .. appear late in it."""
    path = folder / "log" / "spec.toml"
    if not path.exists():
        write_log(folder / "log", users=USERS, items=ITEMS)
        events = pl.read_parquet(folder / "log" / "events.parquet")
        middle = events["time"].quantile(0.6)
        events.filter((pl.col("item_id") < 30) | (pl.col("time") > middle)).write_parquet(
            folder / "log" / "events.parquet"
        )
    spec = load_spec(path)
    spec = spec.model_copy(update={"split": spec.split.model_copy(update=split)})
    if not (folder / name).exists():
        prepare(spec, folder / name, base=path.parent)
    return Dataset(folder / name)


def rows_of(data, split):
    return data.impression_rows(data.requests_of(split))


def test_nothing_is_held_out_unless_asked(folder):
    data = prepared(folder, "plain")
    assert len(data.requests_of("held-out")) == 0
    assert "held-out" not in data.summary.text()


def test_held_out_users_are_in_no_other_split(folder):
    plain, data = prepared(folder, "plain"), prepared(folder, "users", held_out_users=0.25)
    held = np.unique(data.requests["user"][data.requests_of("held-out")])
    assert 0.1 < len(held) / USERS < 0.4
    for split in SPLITS[:3]:
        assert not np.isin(data.requests["user"][data.requests_of(split)], held).any()
    assert "held-out" in data.summary.text()
    # Every impression is somewhere, and each split but that one is what is left of it.
    total = sum(len(rows_of(data, split)) for split in SPLITS)
    assert total == sum(len(rows_of(plain, split)) for split in SPLITS)
    for split in SPLITS[:3]:
        there = plain.requests_of(split)
        there = there[~np.isin(plain.requests["user"][there], held)]
        np.testing.assert_array_equal(
            data.impression_rows(data.requests_of(split)), plain.impression_rows(there)
        )


def test_nothing_of_held_out_users_is_learned(folder, tmp_path):
    """Deleting them from the log leaves all that is learned from the training window as it is."""
    cuts = {"validation_from": "2023-11-20T00:00:00", "test_from": "2023-11-23T00:00:00"}
    data = prepared(folder, "users-cut", held_out_users=0.25, **cuts)
    held = data.user_ids[np.unique(data.requests["user"][data.requests_of("held-out")])]
    path = write_log(tmp_path / "log", users=USERS, items=ITEMS)
    for name in ("events.parquet", "items.csv"):
        (tmp_path / "log" / name).write_bytes((folder / "log" / name).read_bytes())
    events = pl.read_parquet(tmp_path / "log" / "events.parquet")
    events.filter(~pl.col("user_id").is_in(held)).write_parquet(tmp_path / "log/events.parquet")
    spec = load_spec(path)
    spec = spec.model_copy(update={"split": spec.split.model_copy(update=cuts)})
    prepare(spec, tmp_path / "data", base=path.parent)
    without = Dataset(tmp_path / "data")
    assert without.encoding == data.encoding
    trained = data.trained_items
    np.testing.assert_array_equal(data.item_ids[:trained], without.item_ids[:trained])
    np.testing.assert_array_equal(data.train_count[:trained], without.train_count[:trained])


def test_held_out_items_are_never_trained_on(folder):
    data = prepared(folder, "items", held_out_items=0.25)
    first = (
        pl.read_parquet(folder / "log" / "events.parquet")
        .group_by("item_id")
        .agg(pl.col("time").min())
    )
    newest = first.sort("time", "item_id")["item_id"].to_list()[-ITEMS // 4 :]
    held = np.isin(data.item_ids, newest)
    assert held.sum() == ITEMS // 4
    assert not data.train_count[held].any() and (np.flatnonzero(held) >= data.trained_items).all()
    for split in ("train", "validation"):
        assert not held[data.events["item"][rows_of(data, split)]].any()
    assert held[data.events["item"][rows_of(data, "test")]].any()
    # Their events are still part of histories, as items that training has not seen.
    plain = prepared(folder, "plain")
    assert len(data.events["item"]) == len(plain.events["item"])
    requests = data.requests_of("test")
    batch = data.batch(requests)
    rows = np.flatnonzero(held)
    in_histories = np.concatenate(
        [
            data.events["item"][a:b]
            for a, b in zip(
                data.requests["history_start"][requests],
                data.requests["history_end"][requests],
                strict=True,
            )
        ]
    )
    assert np.isin(in_histories, rows).any()
    assert (data.item_batch(rows).ids == 0).all() and len(batch.items.ids) > 0


def test_a_cold_start_from_end_to_end(folder, tmp_path):
    """Held-out users with more and more of their history; held-out items beside all others."""
    data = prepared(folder, "both", held_out_items=0.25, held_out_users=0.25)
    model = ModelConfig(model="lime-mha", width=16, links=4, hidden=8)
    train(data, tmp_path / "run", model=model, config=TrainConfig(epochs=2, batch_size=64))
    options = {"split": "held-out", "at_least": 5, "lists": False}
    found = [
        evaluate(tmp_path / "run", history=n, out=tmp_path / f"{n}.json", **options)
        for n in (0, 1, 5)
    ]
    requests = data.requests_of("held-out")
    old = requests[data.history_lengths(requests, 5) == 5]
    assert {result.impressions for result in found} == {len(data.impression_rows(old))}
    assert len({result.tasks["click"]["log_loss"] for result in found}) == 3
    result = evaluate(tmp_path / "run")
    new = next(p for p in result.slices if (p.kind, p.name) == ("item impressions", "0"))
    assert new.impressions > 0 and 0 < new.tasks["click"]["auc"] < 1
    build_index(tmp_path / "run", tmp_path / "index", data=data)
    recommender = Recommender(tmp_path / "run", Index.open(tmp_path / "index"), data)
    cold = data.user_ids[data.requests["user"][old[0]]]
    ranking = recommender.rank(cold, k=ITEMS, exclude_seen=False)
    assert ranking.known and {item.id for item in ranking} == set(range(ITEMS))


def test_first_seen_over_blocks():
    rng = np.random.default_rng(0)
    items, times = rng.integers(0, 50, 3000), rng.integers(0, 10**6, 3000)
    seen = FirstSeen()
    for part in np.array_split(np.arange(3000), 40):
        seen.add(items[part], times[part])
    first = {item: times[items == item].min() for item in np.unique(items)}
    order = sorted(first, key=lambda item: (first[item], item))
    assert seen.newest(0.2).tolist() == order[-len(first) // 5 :]
    assert len(seen.newest(0.001)) == 0


def test_users_are_chosen_evenly_and_always_alike():
    keys = np.arange(1, 100_001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    held = held_out_users(keys, 0.1)
    assert abs(held.mean() - 0.1) < 0.005
    np.testing.assert_array_equal(held[:500], held_out_users(keys[:500], 0.1))
    assert not (held & ~held_out_users(keys, 0.2)).any(), "a larger share holds the smaller one"
