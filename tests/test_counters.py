"""Counters of items: what they count, where they enter, and that all doors see the same."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from limerank.data.counters import (
    COUNTERS,
    DAY,
    DELAY,
    HOUR,
    SMOOTHING,
    Block,
    Hourly,
    ItemCounters,
    due,
    merged,
)
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import DataError
from limerank.evaluation.evaluate import evaluate
from limerank.evaluation.predict import predict
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import put_items
from limerank.models import build
from limerank.models.config import DataShape
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_run
from limerank.training.trainer import train
from tests.catalogues import data, shop
from tests.worlds import config_of, prepare_log, unsure, write_log, write_positives

MEAN = 0.3


def logit(p):
    return np.log(p / (1 - p))


def by_hand(items, times, positive, item, now):
    """The definition, one impression at a time; ``now`` is an hour."""
    seen = [(t // HOUR, y) for i, t, y in zip(items, times, positive, strict=True) if i == item]
    seen = [(hour, y) for hour, y in seen if hour < now]
    day = [(hour, y) for hour, y in seen if hour >= now - DAY]
    rate = (sum(y for _, y in seen) + SMOOTHING * MEAN) / (len(seen) + SMOOTHING)
    of_day = (sum(y for _, y in day) + SMOOTHING * rate) / (len(day) + SMOOTHING)
    age = now - min(hour for hour, _ in seen) if seen else 0
    return [
        logit(rate) - logit(MEAN),
        np.log2(1 + len(seen)),
        logit(of_day) - logit(rate),
        np.log2(1 + len(day)),
        np.log2(1 + age),
    ]


@settings(max_examples=60, deadline=None)
@given(
    log=st.integers(0, 40).flatmap(
        lambda n: st.tuples(
            arrays.arrays(np.int32, n, elements=st.integers(0, 3)),
            arrays.arrays(np.int64, n, elements=st.integers(-60 * HOUR, 60 * HOUR)),
            arrays.arrays(np.bool_, n),
        )
    ),
    every=st.sampled_from([1, 5, 24]),
    asked=st.lists(
        st.tuples(st.integers(0, 4), st.integers(-70 * HOUR, 60 * HOUR)), min_size=1, max_size=8
    ),
)
def test_counters_are_what_the_module_says(log, every, asked):
    items, times, positive = log
    blocks = [
        Block(items[some], times[some], positive[some]) for some in (slice(0, 7), slice(7, None))
    ]
    end = int(times.max(initial=-HOUR)) // HOUR + 1  # time stands still after the last impression
    counters = ItemCounters(merged(map(Hourly.of, blocks)), MEAN, end)
    rows, at = (np.array(part, np.int64) for part in zip(*asked, strict=True))
    found = counters.at(rows, at, every)
    for one, item, time in zip(found, rows, at, strict=True):
        now = min(time // HOUR // every * every - DELAY, end)
        expected = by_hand(items, times, positive, item, now)
        np.testing.assert_allclose(one, expected, atol=1e-5)
    latest = [by_hand(items, times, positive, item, end) for item in range(5)]
    np.testing.assert_allclose(counters.latest(np.arange(5)), latest, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), logs=st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_counting_goes_on_from_what_is_recent(data, logs):
    """What an index holds of a log, and all later impressions, are enough: step by step, the
    counters are those of all impressions."""
    parts, end, now = [], 0, 0
    recent, rows = merged([]), np.array([3, 0, 1, 5])
    for n in logs:
        hours = np.array(data.draw(st.lists(st.integers(0, 40), min_size=n, max_size=n)), np.int64)
        items = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int64)
        positive = data.draw(arrays.arrays(np.bool_, n))
        block = Block(items, (now + hours) * HOUR, positive)
        parts.append(Hourly.of(block))
        end = now + int(hours.max(initial=0)) + 1
        full = ItemCounters(merged(parts), MEAN, end)
        # The index has its own rows.
        own = np.full(6, 9)
        own[rows] = np.arange(len(rows))
        known = np.isin(parts[-1].rows, rows)
        more = Hourly(own[parts[-1].rows[known]], *(of[known] for of in parts[-1][1:]))
        short = ItemCounters(merged([recent, more]), MEAN, end)
        positions = np.arange(len(rows))
        np.testing.assert_allclose(short.latest(positions), full.latest(rows), atol=1e-6)
        recent = short.recent(positions)
        assert (recent.hours >= end - DAY).sum() + len(rows) >= len(recent.rows)
        now = end


def test_the_next_refresh():
    assert due(10 * HOUR, 1) == 10 and due(10 * HOUR + HOUR - 1, 1) == 10
    # Counters of the day: at midnight, what was before 23 hours is known.
    assert due(47 * HOUR, 24) == 47 and due(47 * HOUR - 1, 24) == 23


def test_a_batch_sees_nothing_since_the_refresh(tmp_path):
    """Labels of the same day and later ones change nothing."""
    spec = write_log(tmp_path / "log")
    log = pl.read_parquet(tmp_path / "log" / "events.parquet")
    day = pl.col("time") // 86_400
    some = log.select(day.quantile(0.5)).item()
    later = log.with_columns(click=pl.when(day >= some).then(1).otherwise("click"))
    found = []
    for name, frame in (("as it was", log), ("later", later)):
        frame.write_parquet(tmp_path / "log" / "events.parquet")
        prepare(load_spec(spec), tmp_path / name, base=spec.parent)
        dataset = Dataset(tmp_path / name)
        first = dataset.requests["first"]
        rows = np.flatnonzero(dataset.events["time"][first] // 86_400_000 <= some)
        items = np.arange(len(dataset.items))[None]
        dataset.counters.mean = MEAN  # that of the training split differs
        found.append(dataset.counted_at(items, rows[:, None], 24))
    assert found[0][..., 1].max() > 2 and found[0][..., [0, 2]].abs().max() > 0.1
    torch.testing.assert_close(*found, atol=0, rtol=0)


def test_logs_without_times_or_rates_have_none(tmp_path):
    spec = write_positives(tmp_path / "log")
    prepare(load_spec(spec), tmp_path / "data", base=spec.parent)
    dataset = Dataset(tmp_path / "data")
    assert dataset.counters is None and not DataShape.of(dataset.manifest).counted
    with pytest.raises(DataError, match="no times, or no binary label"):
        dataset.counted_at(np.array([0]), np.array([0]), 1)
    train(dataset, tmp_path / "run", model="lime-mha", config={"epochs": 1})
    assert load_run(tmp_path / "run").ranker.counters is None


# In a model


def ranker_of(name: str):
    shape = DataShape.of(data().manifest)
    config = config_of(name, width=16, heads=2, links=5, hidden=12, counter_hours=24)
    torch.manual_seed(0)
    ranker = build(shape, config).eval()
    unsure(ranker)
    latest = torch.from_numpy(data().counters.latest(np.arange(data().trained_items)))
    ranker.counters.fit(latest)
    ranker.counters.values[1:] = latest
    return ranker


@pytest.mark.parametrize(
    "name", ["lime-mha", "lime-xor", "two-tower", "mha", "hstu", "din", "popularity", "sasrec"]
)
def test_forward_is_the_score_of_encoded_parts(name):
    ranker, requests = ranker_of(name), shop("lime-mha").requests()
    batch = data().batch(requests, counted=24)
    assert batch.counted.shape == (*batch.candidates.shape, len(COUNTERS))
    with torch.inference_mode():
        vectors = ranker.item_vectors(batch.items)
        state = ranker.encode_users(batch.users, vectors)
        terms = ranker.encode_items(vectors)
        keys, items = ranker.complete(batch.users.keys), torch.arange(batch.distinct)
        own = type(terms)(*(part[: batch.distinct] for part in terms))
        # The same counters for all requests: those of the end of the log.
        latest = replace(batch, counted=None)
        found = ranker.score(state, own, ranker.extra(state, keys, items))
        expected = ranker(latest)
        torch.testing.assert_close(
            found.gather(1, batch.candidates[..., None].expand_as(expected))[batch.real],
            expected[batch.real],
            atol=2e-5,
            rtol=1e-4,
        )
        assert (ranker(batch) - expected)[batch.real].abs().max() > 1e-3
        without = ranker.score(state, own, ranker.extra(state, keys, items, counted=_no(items)))
        assert (without - found).abs().max() > 1e-3


def _no(items):
    """Counters of items that were never shown."""
    return torch.zeros(len(items), len(COUNTERS))


def test_exact_histories_have_the_counters_of_their_requests():
    ranker, requests = ranker_of("lime-mha"), np.arange(20)
    batch, sequences = (
        data().batch(requests, 99, counted=24),
        data().sequences(requests, counted=24),
    )
    torch.testing.assert_close(batch.counted[batch.real], sequences.counted, atol=0, rtol=0)
    few = sequences.take(torch.arange(5))
    assert torch.equal(few.counted, sequences.counted[:5])
    with torch.inference_mode():
        found = ranker.sequence_logits(sequences)
        away = ranker.sequence_logits(replace(sequences, counted=None))
    assert found.isfinite().all() and (found - away).abs().max() > 1e-3


def test_an_unseen_item_was_never_shown():
    ranker = ranker_of("lime-mha")
    assert not ranker.counters.values[0].any() and ranker.counters.values[1:].any()


# In an index


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dataset of all but the last day, a run on it and its index; and the dataset of all days.
    The last impression before that day is of the last hour that is counted at midnight."""
    folder = tmp_path_factory.mktemp("counted")
    spec = write_log(folder / "log", users=60)
    log = pl.read_parquet(folder / "log" / "events.parquet")
    last = log.select(pl.col("time").max() // 86_400 * 86_400).item()
    log = log.filter((pl.col("time") < last - 3600) | (pl.col("time") >= last))
    late = (
        log.filter(pl.col("time") < last)
        .tail(1)
        .with_columns(time=pl.lit(last - 3600 - 600, pl.Int64))
    )
    log = pl.concat([log, late.with_columns(request_id=pl.lit(9_999_999, pl.Int64))])
    log.filter(pl.col("time") < last).write_parquet(folder / "log" / "events.parquet")
    prepare(load_spec(spec), folder / "before", base=spec.parent)
    log.write_parquet(folder / "log" / "events.parquet")
    prepare(load_spec(spec), folder / "all", base=spec.parent)
    train(
        folder / "before",
        folder / "run",
        model=config_of("lime-mha", width=16, hidden=8, links=4, counter_hours=24),
        config={"epochs": 2, "batch_size": 32},
    )
    build_index(folder / "run", folder / "index")
    return folder


def test_an_index_holds_the_counters_of_the_end_of_its_log(trained):
    index, run = Index.open(trained / "index", verify=True), load_run(trained / "run")
    dataset = run.dataset(None)
    np.testing.assert_array_equal(index.counters, dataset.counters.latest(np.arange(len(index))))
    rows = np.flatnonzero(dataset.item_codes(np.arange(len(index))) > 0)
    values = run.ranker.counters.values[dataset.item_codes(rows)]
    np.testing.assert_array_equal(index.counters[rows], values.numpy())
    assert run.ranker.config.counter_hours == 24 and run.ranker.shape.counted


@pytest.mark.parametrize("scorer", ["model", "quantised", "native"])
def test_what_was_built_at_midnight_ranks_the_next_day_as_an_evaluation_says(trained, scorer):
    """The server and an evaluation of the later log read the same counters."""
    run = load_run(trained / "run")
    later = run.dataset(trained / "all")
    first = later.requests["first"]
    midnight = int(later.events["time"].max()) // (24 * HOUR) * 24 * HOUR
    some = np.flatnonzero(later.events["time"][first] >= midnight)[:6]
    assert len(some) > 3
    predicted = predict(run.ranker, later, some)
    recommender = Recommender(
        trained / "run", trained / "index", data=trained / "all", scorer=scorer
    )
    close = 2e-5 if scorer == "model" else 0.05  # the index rounds to one byte
    for request in some:
        own = predicted.requests == request
        items = later.item_ids[later.events["item"][predicted.rows[own]]].tolist()
        expected = dict(zip(items, predicted.values[own, 0].tolist(), strict=True))
        ranking = recommender.rank(
            later.user_ids[later.requests["user"][request]],
            time=int(later.events["time"][first[request]]),
            candidates=list(expected),
            exclude_seen=False,
            k=len(expected),
        )
        for item in ranking:
            assert item.scores["click"] == pytest.approx(expected[item.id], abs=close)


def test_a_newer_log_gives_newer_counters(trained, tmp_path):
    run = load_run(trained / "run")
    build_index(run, tmp_path / "index", data=trained / "all")
    newer, older = Index.open(tmp_path / "index"), Index.open(trained / "index")
    items = np.asarray(older.ids[:])
    rows = newer.ids.find(items)
    assert (newer.counters[rows, 1] >= older.counters[:, 1]).all()
    assert (newer.counters[rows, 1] > older.counters[:, 1]).any()


def test_an_item_that_is_put_again_keeps_its_counters(tmp_path):
    of = shop("lime-mha")
    build_index(of.run, tmp_path / "index", data=of.data)
    before = Index.open(tmp_path / "index")
    known, new = int(before.ids[3]), 999_999
    row = {"group": "g1", "tags": "t0", "length": 12.0}
    put_items(of.run, tmp_path / "index", [{"item_id": known, **row}, {"item_id": new, **row}])
    after = Index.open(tmp_path / "index")
    assert np.array_equal(after.counters[after.row_of(known)], before.counters[3])
    assert before.counters[3].any() and not after.counters[after.row_of(new)].any()


# In training


def test_a_changing_log_is_learned(tmp_path):
    """Each day other items are good: nothing but the latest days says which."""
    rng = np.random.default_rng(0)
    rows = []
    for day in range(24):
        good = rng.permutation(60) < 12
        for part in range(2):  # the first half of a block of two days shows what the second has
            for _ in range(220):
                item = int(rng.integers(60))
                time = 1_700_006_400 + (2 * day + part) * 86_400 + int(rng.integers(86_400))
                click = int(rng.random() < (0.75 if good[item] else 0.1))
                rows.append((int(rng.integers(300)), item, time, click))
    (tmp_path / "log").mkdir()
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "time", "click"], orient="row")
    frame.sort("time").write_parquet(tmp_path / "log" / "events.parquet")
    spec = tmp_path / "log" / "spec.toml"
    spec.write_text(
        'name = "days"\n[[events]]\nfiles = ["events.parquet"]\ntime = "time"\n'
        '[[labels]]\nname = "click"\nkind = "binary"\n'
    )
    prepare(load_spec(spec), tmp_path / "data", base=spec.parent)
    auc = {}
    for hours in (0, 24):
        model = config_of("lime-mha", width=16, hidden=8, links=4, counter_hours=hours)
        train(tmp_path / "data", tmp_path / f"run{hours}", model=model, config={"epochs": 4})
        auc[hours] = evaluate(tmp_path / f"run{hours}", lists=0).tasks["click"]["auc"]
    assert auc[24] > auc[0] + 0.05


def test_a_warm_start_goes_on_with_its_buckets(trained, tmp_path):
    train(trained / "all", tmp_path / "run", start=trained / "run", config={"epochs": 1})
    before = load_run(trained / "run").ranker.counters
    after = load_run(tmp_path / "run").ranker.counters
    assert torch.equal(before.edges, after.edges) and torch.equal(before.scale, after.scale)
    assert after.values.shape == (Dataset(trained / "all").trained_items + 1, len(COUNTERS))
    latest = Dataset(trained / "all").counters.latest(np.arange(len(after.values) - 1))
    np.testing.assert_array_equal(after.values[1:].numpy(), latest)


def test_lists_of_an_evaluation_have_the_counters_of_their_requests(trained, monkeypatch):
    asked = []
    counted_at = Dataset.counted_at

    def spy(self, items, requests, every):
        asked.append((np.asarray(items).size, np.asarray(requests).size, every))
        return counted_at(self, items, requests, every)

    monkeypatch.setattr(Dataset, "counted_at", spy)
    found = evaluate(trained / "run", lists=10)
    assert found.lists
    size = len(Dataset(trained / "before").items)
    of_lists = [one for one in asked if one[0] == size]
    assert sum(requests for _, requests, _ in of_lists) == 10
    assert {every for _, _, every in asked} == {24}


def test_a_model_may_do_without(tmp_path):
    dataset = Dataset(prepare_log(tmp_path))
    model = config_of("lime-mha", width=16, hidden=8, links=4, counter_hours=0)
    train(dataset, tmp_path / "run", model=model, config={"epochs": 1})
    build_index(tmp_path / "run", tmp_path / "index")
    assert load_run(tmp_path / "run").ranker.counters is None
    assert Index.open(tmp_path / "index").counters is None


def test_counters_that_begin_with_the_dataset_raise_an_alarm(trained, tmp_path):
    folder = tmp_path / "log"
    shutil.copytree(trained / "log", folder)
    log = pl.read_parquet(folder / "events.parquet")
    late = log.filter(pl.col("time") >= log["time"].quantile(0.9))
    late.write_parquet(folder / "events.parquet")
    prepare(load_spec(folder / "spec.toml"), tmp_path / "late", base=folder)
    alarms = {}
    for name in ("late", "all"):
        data = (tmp_path if name == "late" else trained) / name
        found = evaluate(trained / "run", data=data, lists=0, out=tmp_path / f"{name}.json")
        alarms[name] = {one.name: one.message for one in found.alarms}
    assert "counters of items begin with this dataset" in alarms["late"]["counters"]
    assert "counters" not in alarms["all"]
