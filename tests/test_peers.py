"""The peers' hand-made features equal loops over the raw log, and read nothing of the future."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import datasets, peer_tables, peer_values, peers, peers_page, rows
from benchmarks.peer_features import HALF_LIFE, Features, Similarity
from benchmarks.peer_models import PEERS, Log, logistic_curve, sigmoid
from benchmarks.peer_statistics import (
    FOLDS,
    SMOOTHING,
    earlier_impressions,
    folds_of_users,
    history_of,
    impressions_of,
    positives,
    vectors,
)
from benchmarks.peer_values import LatelyOfValues
from benchmarks.peers import measures
from limerank.data.counters import COUNTERS, DELAY, HOUR
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from tests.worlds import prepare_log, write_pages

USERS, ITEMS = 60, 30


@pytest.fixture(scope="module", params=[None, "click"], ids=["all events", "clicks only"])
def log(request, tmp_path_factory) -> tuple[Path, pl.DataFrame]:
    """A prepared dataset, whose histories hold all events or clicks only, and the raw events."""
    folder = tmp_path_factory.mktemp("peers")
    history = {"length": 3} | ({"keep": request.param} if request.param else {})
    data = prepare_log(folder, users=USERS, items=ITEMS, history=history)
    events = pl.read_parquet(folder / "log" / "events.parquet")
    return data, events.with_columns(held=(pl.col("click") == 1) | (request.param is None))


class Loops:
    """Features of one impression by loops over the raw events."""

    def __init__(self, events: pl.DataFrame, dataset: Dataset, folds: np.ndarray) -> None:
        self.events = events.to_dicts()
        self.fold_of = dict(zip(dataset.user_ids.tolist(), folds.tolist(), strict=True))
        requests = dataset.requests_of("train")
        users = dataset.user_ids[dataset.requests["user"][requests]].tolist()
        times = dataset.events["time"][dataset.requests["first"][requests]] // 1000
        train = set(zip(users, times.tolist(), strict=True))
        self.window = [e for e in self.events if (e["user_id"], e["time"]) in train]
        self.trained = train

    def rate(self, key, value, user: int, time: int, encoding: str) -> tuple[float, float]:
        """Smoothed rate and count of a value among the training impressions that may be read."""
        in_train = (user, time) in self.trained
        if encoding == "before":
            used = [event for event in self.window if not in_train or event["time"] < time]
            base = (sum(e["click"] for e in used) + SMOOTHING / 2) / (len(used) + SMOOTHING)
            shown = [event["click"] for event in used if key(event) == value]
            return (sum(shown) + SMOOTHING * base) / (len(shown) + SMOOTHING), len(shown)
        used = [
            event
            for event in self.window
            if not in_train or self.fold_of[event["user_id"]] != self.fold_of[user]
        ]
        base = np.mean([event["click"] for event in used])
        shown = [event["click"] for event in used if key(event) == value]
        rate = (sum(shown) + SMOOTHING * base) / (len(shown) + SMOOTHING)
        return rate, len(shown) * len(self.window) / len(used)

    def before(self, user: int, time: int) -> list[dict]:
        return [
            event
            for event in self.events
            if event["user_id"] == user and event["time"] < time and event["held"]
        ]


def mean(values) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def matched(history: list[dict], same) -> dict[str, float]:
    hits = [(len(history) - at, e["click"]) for at, e in enumerate(history) if same(e)]
    weights = [0.5 ** (ago / HALF_LIFE) for ago, _ in hits]
    clicked = [ago for ago, click in hits if click]
    return {
        "count": len(hits),
        "share": len(hits) / len(history) if history else 0.0,
        "mean": mean(click for _, click in hits),
        "decayed_mean": sum(w * click for w, (_, click) in zip(weights, hits, strict=True))
        / sum(weights)
        if hits
        else float("nan"),
        "last": hits[-1][1] if hits else float("nan"),
        "ago": hits[-1][0] if hits else float("nan"),
        "positive_ago": min(clicked) if clicked else float("nan"),
    }


@pytest.mark.parametrize("encoding", ["folds", "before"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_features_equal_loops_over_the_raw_log(log, split, encoding):
    folder, events = log
    dataset = Dataset(folder)
    features = Features(dataset, encoding=encoding)
    shown = impressions_of(dataset, split)
    names, values = features.table(shown)
    assert values.shape == (len(shown.items), len(names)) and len(set(names)) == len(names)
    loops = Loops(events, dataset, features.folds)
    some = np.random.default_rng(0).choice(len(shown.items), 40, replace=False)
    for row in some:
        user = int(dataset.user_ids[shown.users[row]])
        item = int(dataset.item_ids[shown.items[row]])
        first = dataset.requests["first"][shown.requests[row]]
        time = int(dataset.events["time"][first]) // 1000
        history = loops.before(user, time)
        expected = {"history length": len(history)}
        for name, key, value in (
            ("item", lambda e: e["item_id"], item),
            ("item group", lambda e: e["item_id"] % 5, item % 5),
            ("user country", lambda e: e["user_id"] % 3, user % 3),
        ):
            rate, count = loops.rate(key, value, user, time, encoding)
            expected |= {f"{name} rate": rate, f"{name} count": np.log1p(count)}
        gap = time - history[-1]["time"] if history else float("nan")
        expected["seconds since last event"] = gap
        clicks = [event["click"] for event in history]
        rates = [
            loops.rate(lambda e: e["item_id"], e["item_id"], user, time, encoding)[0]
            for e in history
        ]
        above = [click - rate for click, rate in zip(clicks, rates, strict=True)]
        for what, numbers in (("label", clicks), ("label minus rate", above)):
            expected |= {
                f"{what} mean": mean(numbers),
                f"{what} mean of last 5": mean(numbers[-5:]),
            }
        of_item = matched(history, lambda e, item=item: e["item_id"] == item)
        of_group = matched(history, lambda e, item=item: e["item_id"] % 5 == item % 5)
        expected |= {f"same item {name}": value for name, value in of_item.items()}
        expected |= {f"same group {name}": value for name, value in of_group.items()}
        assert shown.repeats[row] == bool(of_item["count"])
        found = dict(zip(names, values[row], strict=True))
        for name, value in expected.items():
            # float32 features; rates and decayed means are sums of some hundred terms.
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_impression_features_are_those_of_the_shown_item(tmp_path):
    path = write_pages(tmp_path / "log")
    prepare(load_spec(path), tmp_path / "data", base=path.parent)
    dataset = Dataset(tmp_path / "data")
    shown = impressions_of(dataset, "test")
    names, values = Features(dataset).of_impressions(shown)
    log = pl.read_parquet(tmp_path / "log" / "shown.parquet")
    time = dataset.events["time"][dataset.impression_rows(dataset.requests_of("test"))] // 1000
    price = {(r["user_id"], r["item_id"], r["time"]): r["price"] for r in log.to_dicts()}
    expected = [
        price[key]
        for key in zip(
            dataset.user_ids[shown.users].tolist(),
            dataset.item_ids[shown.items].tolist(),
            time.tolist(),
            strict=True,
        )
    ]
    found = values[:, names.index("impression price")]
    np.testing.assert_allclose(found, np.array(expected, dtype=np.float32))
    assert {"impression position", "impression slot"} < set(names)


@pytest.mark.parametrize("encoding", ["folds", "before"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_from_the_request_on_do_not_enter(log, split, encoding):
    dataset = Dataset(log[0])
    requests = dataset.requests_of(split)
    for request in np.random.default_rng(1).choice(requests, 5, replace=False):
        user = dataset.requests["user"][request]
        now = dataset.events["time"][dataset.requests["first"][request]]
        owner = np.repeat(np.arange(len(dataset.users)), np.diff(dataset.event_offsets))
        before, similarity = Features(dataset, encoding=encoding), Similarity(dataset)
        later = dataset.events["time"] >= now
        if split == "train":  # other folds' statistics are of the full training window
            later &= before.folds[owner] == before.folds[user]
        changed = Dataset(log[0])
        labels = np.array(changed.events["label_click"])
        labels[later] ^= 1
        changed.events["label_click"] = labels
        after = Features(changed, encoding=encoding)
        items = dataset.events["item"][dataset.impression_rows(np.array([request]))]
        np.testing.assert_array_equal(
            before.of_history(int(request), items), after.of_history(int(request), items)
        )
        np.testing.assert_array_equal(
            similarity.of_history(int(request), items),
            Similarity(changed).of_history(int(request), items),
        )
        shown, again = (impressions_of(of, split) for of in (dataset, changed))
        rows = shown.requests == request
        np.testing.assert_array_equal(
            before.of_impressions(shown)[1][rows], after.of_impressions(again)[1][rows]
        )


def test_earlier_impressions_are_those_of_the_user_before_the_request(log):
    folder, events = log
    dataset = Dataset(folder)
    for request, earlier in list(earlier_impressions(dataset).items())[:30]:
        user = dataset.user_ids[dataset.requests["user"][request]]
        time = dataset.events["time"][dataset.requests["first"][request]] // 1000
        before = events.filter((pl.col("user_id") == user) & (pl.col("time") < time))
        assert sorted(dataset.item_ids[dataset.events["item"][earlier]]) == sorted(
            before["item_id"]
        )
        assert dataset.events["label_click"][earlier].sum() == before["click"].sum()


def test_positives_are_the_clicks_before_validation(log):
    folder, events = log
    dataset = Dataset(folder)
    found = positives(dataset).tocoo()
    loops = Loops(events, dataset, np.zeros(len(dataset.users), dtype=int))
    users, items = dataset.user_ids[found.row], dataset.item_ids[found.col]
    pairs = set(zip(users.tolist(), items.tolist(), strict=True))
    assert pairs == {(e["user_id"], e["item_id"]) for e in loops.window if e["click"]}
    assert (found.data == 1).all()


def test_vectors_tell_items_that_share_users_from_others():
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    liked = rng.random((40, 12)) < 0.6
    liked[:20, 6:] = liked[20:, :6] = False  # two halves that no user joins
    liked[:, 11] = False
    found = vectors(csr_matrix(liked.astype(np.float32)), size=2)
    cosine = found @ found.T
    assert (cosine[:6, :6] > 0.99).all() and (cosine[6:11, 6:11] > 0.99).all()
    assert np.abs(cosine[:6, 6:]).max() < 1e-4
    assert not found[11].any()


@pytest.mark.parametrize("peer", list(PEERS))
def test_every_peer_predicts_probabilities_of_the_test_impressions(
    log, peer, tmp_path, monkeypatch
):
    monkeypatch.setattr(peer_tables, "WORK", tmp_path)
    if peer in ("als", "lightgbm"):
        pytest.importorskip({"als": "implicit"}.get(peer, peer))
    of = Log(log[0])
    result = PEERS[peer](of, "all", 0)
    assert result.predictions.shape == of.test.labels.shape
    assert ((result.predictions > 0) & (result.predictions < 1)).all()
    found = measures(result, of.test)
    assert found["impressions"] == found["impressions | repeat"] + found["impressions | new"]
    assert 0.3 < found["auc"] < 1 and found["ne"] < 1.5


@pytest.mark.parametrize("encoding", ["folds", "before"])
def test_stored_tables_are_what_was_made(log, tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(peer_tables, "WORK", tmp_path)
    dataset = Dataset(log[0])
    peer_tables.tables.cache_clear()
    for _ in ("made", "read"):
        found = peer_tables.tables(log[0], "all", encoding)
        peer_tables.tables.cache_clear()
        for split in ("train", "validation", "test"):
            shown = impressions_of(dataset, split)
            names, values = Features(dataset, encoding=encoding).table(shown)
            more, others = Similarity(dataset).table(shown)
            assert found.names == names + more
            np.testing.assert_array_equal(found.values[split], np.hstack([values, others]))
            np.testing.assert_array_equal(found.labels[split], shown.labels)
    without = peer_tables.tables(log[0], "without similarity", encoding)
    assert without.names == names
    assert len(list(tmp_path.rglob("*.npz"))) == 2
    counted = peer_tables.tables(log[0], "all and counters", encoding)
    assert counted.names[-len(COUNTERS) :] == [f"counter {name}" for name in COUNTERS]
    shown = impressions_of(dataset, "test")
    expected = dataset.counted_at(shown.items, shown.requests, 1)
    np.testing.assert_array_equal(counted.values["test"][:, -len(COUNTERS) :], expected)


def test_counters_of_values_count_all_items_with_the_value(log, monkeypatch):
    dataset = Dataset(log[0])
    shown, items = impressions_of(dataset, "test"), len(dataset.items)
    codes = {"own": np.arange(items), "one": np.ones(items, dtype=np.int64)}
    monkeypatch.setattr(peer_values, "first_values", lambda *given: codes)
    names, values = LatelyOfValues(dataset).table(shown)
    assert names == [f"counter {name} of {of}" for of in codes for name in COUNTERS]
    own, one = np.hsplit(values, 2)
    np.testing.assert_array_equal(own, dataset.counted_at(shown.items, shown.requests, 1))
    rows = dataset.impression_rows(np.arange(len(dataset.requests["count"])))
    at = dataset.events["time"][dataset.requests["first"][shown.requests]]
    hours = dataset.events["time"][rows] // HOUR
    before = np.searchsorted(np.sort(hours), at // HOUR - DELAY)
    np.testing.assert_allclose(one[:, COUNTERS.index("count")], np.log2(1 + before), rtol=1e-6)


def test_the_logistic_curve_recovers_a_curve():
    scores = np.random.default_rng(0).normal(3.0, 2.0, 200_000)
    labels = np.random.default_rng(1).random(scores.size) < sigmoid(0.8 * scores - 2)
    grid = np.linspace(-1, 7, 9)
    curve = logistic_curve(scores, labels)
    # Standard errors of a and b are about 0.01.
    np.testing.assert_allclose(curve(grid), sigmoid(0.8 * grid - 2), atol=0.01)


def test_folds_are_of_equal_size():
    assert np.ptp(np.bincount(folds_of_users(1003), minlength=FOLDS)) <= 1


def test_histories_are_not_cut_to_the_dataset_length(log):
    dataset = Dataset(log[0])
    longest = max(len(history_of(dataset, int(r))) for r in dataset.requests_of("test"))
    assert longest > dataset.history_length


def test_the_truth_of_a_simulated_log_is_read_beside_its_impressions(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "WORK", tmp_path)
    monkeypatch.setitem(
        datasets.SIMULATED, "synth_quick", {"users": 60, "items": 80, "events": 4000, "history": 8}
    )
    of = Log(datasets.prepare_dataset("synth_quick", None))
    found = peers.truth("synth_quick", of, "simulation", 0)
    log = pl.concat(map(pl.read_parquet, sorted((tmp_path / "logs/synth_quick").glob("events-*"))))
    both = log.hstack(
        pl.read_parquet(tmp_path / "logs/synth_quick/truth.parquet").select("click_probability")
    )
    by_key = {
        (row["user_id"], row["item_id"], row["time_ms"]): row["click_probability"]
        for row in both.iter_rows(named=True)
    }
    rows_ = of.dataset.impression_rows(of.dataset.requests_of("test"))
    keys = zip(
        of.dataset.user_ids[of.test.users].tolist(),
        of.dataset.item_ids[of.test.items].tolist(),
        of.dataset.events["time"][rows_].tolist(),
        strict=True,
    )
    assert found.predictions.tolist() == [by_key[key] for key in keys]
    assert measures(found, of.test)["auc"] > 0.6


def test_a_finished_comparison_has_rows_and_a_page(log, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(peers, "WORK", tmp_path / "work")
    folders = {"synth_quick": log[0]}
    for _, name, folder, model, features, seed in peers.jobs(folders, ("item mean",), 3):
        peers.measure(name, folder, model, features, seed)
    assert not list(peers.jobs(folders, ("item mean",), 3))  # finished rows are skipped
    assert len(list(peers.jobs(folders, ("item mean",), 3, again=True))) == 1
    shown = Log(log[0]).test
    rng = np.random.default_rng(0)
    for model, features, noise in (
        ("lime-mha", peers.PREPARED, 0.1),
        ("lightgbm", "all", 1.0),
        ("lightgbm", "without similarity", 0.1),
    ):
        predicted = sigmoid(shown.labels + noise * rng.normal(size=shown.labels.size))
        np.save(peers.predictions_file("synth_quick", model, features, 0), predicted)
    for _, *arguments in peers.comparisons(folders, ("item mean", "lime-mha"), 1):
        peers.compare(*arguments)
    found = {row["case"].get("against"): row["metrics"] for row in rows.rows("peers")}
    assert found["lightgbm, all"]["low"] > 0.05
    assert abs(found["lightgbm, without similarity"]["difference"]) < 0.01
    page = peers_page.peers(list(rows.rows("peers")))
    assert "| item mean | 1 |" in page
    assert all(line in page.splitlines() for line in peers.table_of("synth_quick"))
    assert "| lime-mha | **+" in page
