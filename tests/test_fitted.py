"""Models that are fitted by counting: they equal their definition, and keep every contract."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from limerank.data.dataset import Dataset
from limerank.data.interactions import TrainingInteractions
from limerank.errors import FormatError, SpecError
from limerank.evaluation.evaluate import evaluate
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models import build
from limerank.models import cooccurrence as module
from limerank.models.config import ModelConfig, configs_of
from limerank.models.item_knn import POPULARITY
from limerank.models.registry import FITTED
from limerank.ranking.recommender import Recommender
from limerank.runs import selftest
from limerank.runs.folder import load_run
from limerank.serving.engine import Serving
from limerank.serving.fill import fill
from limerank.serving.messages import Rank
from limerank.serving.stores import SqliteStore
from limerank.training.trainer import train
from tests.worlds import SHAPE, CountedEvents, batch, config_of, counted_events, prepare_log


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_log(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module", params=FITTED)
def run(request, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    train(data, out, model=request.param)
    return out


def similarities(
    events: CountedEvents, shrinkage: float, window: int
) -> dict[int, dict[int, float]]:
    """The definition: item -> item -> similarity."""
    of_user: dict[int, list[int]] = {}
    for user, item, weight in events.events:
        if item and (events.token is None or weight > 0):
            of_user.setdefault(user, []).append(item)
    chosen = {}
    for user, items in of_user.items():
        newest_first = list(dict.fromkeys(reversed(items)))
        chosen[user] = newest_first[:window]
    users_of = {
        item: {user for user, items in chosen.items() if item in items}
        for item in range(1, SHAPE.item_ids)
    }
    found: dict[int, dict[int, float]] = {item: {} for item in range(SHAPE.item_ids)}
    for one, its in users_of.items():
        for other, theirs in users_of.items():
            both = len(its & theirs)
            if one == other:
                both = sum(of_user[user].count(one) > 1 for user in its)
            if both:
                norm = math.sqrt(len(its) * len(theirs)) + shrinkage
                found[one][other] = both / norm
    return found


@pytest.mark.parametrize("token", [None, 4])
@pytest.mark.parametrize("window", [200, 3])
@pytest.mark.parametrize("pairs", [1 << 20, 40])
def test_similarities_are_shrunk_cosines_of_users(token, window, pairs, monkeypatch):
    monkeypatch.setattr(module, "PAIRS", pairs)
    events = counted_events(users=40, token=token)
    ranker = build(SHAPE, ModelConfig(model="item-knn", shrinkage=2.5, window=window))
    ranker.fit(events)
    expected = similarities(events, 2.5, window)
    for item in range(SHAPE.item_ids):
        found = ranker.neighbours.sums(torch.tensor([item]), torch.tensor([1.0]))
        wanted = torch.zeros(SHAPE.item_ids)
        for other, value in expected[item].items():
            wanted[other] = value
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert any(item in of for item, of in expected.items())  # somebody came back


def test_the_most_similar_items_are_stored():
    events = counted_events(users=60)
    every, few = (
        build(SHAPE, ModelConfig(model="item-knn", neighbours=count)) for count in (200, 3)
    )
    every.fit(events)
    few.fit(events)
    one = torch.tensor([1.0])
    for item in range(SHAPE.item_ids):
        full = every.neighbours.sums(torch.tensor([item]), one)
        order = torch.argsort(full, descending=True, stable=True)[:3]
        wanted = torch.zeros_like(full)
        wanted[order] = full[order]
        torch.testing.assert_close(few.neighbours.sums(torch.tensor([item]), one), wanted)


def test_users_of_a_popular_item_are_drawn_and_counts_scaled(monkeypatch):
    monkeypatch.setattr(module, "USERS", 10)
    events = CountedEvents(tuple((user, item, 1.0) for user in range(40) for item in (1, 2)))
    ranker = build(SHAPE, ModelConfig(model="item-knn", shrinkage=0.0))
    ranker.fit(events)
    found = ranker.neighbours.sums(torch.tensor([1]), torch.tensor([1.0]))
    assert found[2] == pytest.approx(1.0) and found[1] == 0.0


@pytest.mark.parametrize("most", [1 << 31, 4000, 1500])
def test_the_time_of_counting_is_bounded(most, monkeypatch):
    """Of items with many users fewer are drawn, so that all pairs keep to a limit; those of items
    with few users are all counted, and the counts of the others are scaled."""
    monkeypatch.setattr(module, "MOST_PAIRS", most)
    rng = np.random.default_rng(0)
    events = [(user, item, 1.0) for user in range(400) for item in (1, 2)]
    events += [(user, 3 + user, 1.0) for user in range(8)]
    events += [(user, int(rng.integers(20, 30)), 1.0) for user in range(400)]
    rows = SHAPE.item_ids
    interacted = module.Interacted.of(CountedEvents(tuple(sorted(events))), rows, 100)
    n, found, counted = interacted.users_of_items, {}, 0.0
    for low, _, owner, other, users, _ in module.counted_together(interacted, rows):
        assert low == 0
        found = dict(zip(zip(owner, other, strict=True), users[:, 0], strict=True))
    drawn = module._taken(n, np.bincount(interacted.items, [3.0] * len(interacted.items), rows))
    for (owner, _), users in found.items():
        counted += users * drawn[owner] / n[owner]
    # The drawn users have as many events as all of an item's users on average, about.
    assert 0.8 * min(most, 400 * 9) < counted < 1.05 * most
    assert found[1, 2] == found[2, 1] == 400  # of all who are drawn, times all / drawn
    assert all(found[3 + user, 1] == 1 for user in range(8))
    assert (drawn[1] < 400) == (most < 3600) and (drawn == np.minimum(n, drawn.max())).all()


def test_how_often_an_item_followed_another():
    """Against all pairs of positions in the histories, by folds of users."""
    rng = np.random.default_rng(3)
    events = [(user, int(item), 1.0) for user in range(30) for item in rng.integers(1, 30, 40)]
    rows, window = SHAPE.item_ids, 25
    interacted = module.Interacted.of(CountedEvents(tuple(events)), rows, window)
    groups = rng.integers(0, 3, len(interacted.rows))
    expected = np.zeros((rows, rows, 3))
    for user in range(30):
        items = [item for owner, item, _ in events if owner == user]
        newest = list(dict.fromkeys(reversed(items)))[:window]
        for late, after in enumerate(newest):
            for early in range(late + 1, min(late + module.STEPS, len(newest) - 1) + 1):
                expected[after, newest[early], groups[user]] += 1 / (early - late)
    found = np.zeros_like(expected)
    for low, _, owner, other, _, followed in module.counted_together(interacted, rows, groups, 3):
        found[owner + low, other] = followed
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (expected > 0).any() and window > module.STEPS


def test_scores_are_sums_over_the_interactions_of_a_history():
    full = batch([5, 0, 9], [3, 6, 1])
    events = counted_events(users=60, token=int(full.users.tokens[0, 0, 1]))
    ranker = build(SHAPE, ModelConfig(model="item-knn", half_life=2.0)).eval()
    ranker.fit(events)
    expected = similarities(events, 10.0, 200)
    weights = np.zeros(SHAPE.item_ids)
    for _, item, weight in events.events:
        weights[item] += weight
    weights[0] = 0
    logits = ranker(full)
    assert not torch.equal(logits[0], logits[2, :1].expand_as(logits[0]))
    for b, (length, count) in enumerate(zip([5, 0, 9], [3, 6, 1], strict=True)):
        history = [
            int(full.items.ids[full.users.items[b, n]])
            for n in range(length)
            if events.token in full.users.tokens[b, n].tolist()
            and full.items.ids[full.users.items[b, n]]
        ]
        for m in range(count):
            item = int(full.items.ids[full.candidates[b, m]])
            score = POPULARITY * np.log1p(weights[item]) / np.log1p(weights.max())
            for position, liked in enumerate(reversed(history)):
                score += 2 ** (-position / 2.0) * expected[liked].get(item, 0.0)
            assert logits[b, m, 0].item() == pytest.approx(score, rel=1e-5, abs=1e-9)


def test_popularity_is_the_smoothed_count_of_positives():
    events = counted_events(users=60)
    ranker = build(SHAPE, ModelConfig(model="most-popular"))
    ranker.fit(events)
    weights = np.zeros(SHAPE.item_ids)
    for _, item, weight in events.events:
        weights[item] += weight
    weights[0] = 0
    full = batch([5, 0], [3, 6])
    items = full.items.ids[full.candidates[0, :3]]
    torch.testing.assert_close(
        ranker(full)[0, :3, 0].double(),
        torch.from_numpy(np.log(weights + 1))[items],
        rtol=1e-6,
        atol=1e-6,
    )


def test_the_training_window_ends_before_validation(data):
    dataset = Dataset(data)
    events = TrainingInteractions(dataset)
    seen = np.concatenate([block.users for block in events.blocks()])
    assert (np.diff(seen) >= 0).all()
    cut = dataset.manifest["summary"]["cuts"][0]
    early = dataset.events["time"][:] < cut
    owner = np.repeat(np.arange(len(dataset.users)), np.diff(dataset.event_offsets))
    np.testing.assert_array_equal(seen, owner[early])
    counted = np.concatenate([block.counted for block in events.blocks()])
    np.testing.assert_array_equal(counted, dataset.events["label_click"][early] == 1)
    tokens = dataset.encoder.encode(
        {name: dataset.events[name][early] for name in dataset.encoder.columns},
        np.asarray(dataset.events["time"][early]),
    )
    np.testing.assert_array_equal((tokens == events.token).any(-1), counted)


@pytest.mark.parametrize("split", [{"leave_last": 1}, {"by": "position"}])
def test_without_cuts_a_users_window_ends_with_its_last_training_request(tmp_path, split):
    dataset = Dataset(prepare_log(tmp_path, split=split))
    assert dataset.manifest["summary"]["cuts"] is None
    events = [
        (user, item)
        for block in TrainingInteractions(dataset).blocks()
        for user, item in zip(block.users.tolist(), block.items.tolist(), strict=True)
    ]
    expected = []
    columns = dataset.requests
    for user in range(len(dataset.users)):
        own = np.flatnonzero((columns["user"] == user) & (columns["split"] == 0))
        if len(own):
            last = int((columns["first"] + columns["count"])[own].max())
            rows = range(int(dataset.event_offsets[user]), last)
            codes = dataset.item_batch(dataset.events["item"][rows]).ids.tolist()
            expected += [(user, code) for code in codes]
    assert events == expected and len(events) > 100


def test_a_fitted_run_is_a_run(run, data, tmp_path):
    """Stored, self-tested, calibrated, evaluated, indexed, served; it ranks as its model does."""
    loaded, dataset = load_run(run), Dataset(data)
    assert loaded.sealed and selftest.passes(loaded)
    (line,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert line["done"] and line["step"] == 0 and not (run / "trainer").exists()
    result = evaluate(run, out=tmp_path / "m.json")
    assert result.tasks["click"]["auc"] > 0
    assert 0.9 < result.tasks["click"]["ne"] < 1.1  # calibrated
    build_index(loaded, tmp_path / "index", data=dataset)
    index = Index.open(tmp_path / "index", fingerprint=loaded.fingerprint)
    recommender = Recommender(loaded, index)
    for user in dataset.user_ids[:5].tolist():
        ranking = recommender.rank(user, k=8)
        row = int(np.flatnonzero(dataset.user_ids == user)[0])
        together = recommender.rank_users(np.array([row]), k=8)
        found = together.rows[0][together.rows[0] >= 0]
        assert [item.id for item in ranking.items] == index.ids[found].tolist()
        values = [item.value for item in ranking.items]
        assert values == sorted(values, reverse=True)
    with SqliteStore(tmp_path / "events.db") as store:
        fill(store, dataset)
        engine = Serving(run, tmp_path / "index", store)
        for user in dataset.user_ids[:5].tolist():
            served = engine.rank(Rank(user=user, k=8))
            expected = [item.id for item in recommender.rank(user, k=8).items]
            assert [one["item"] for one in served["items"]] == expected
        engine.close()


def test_fitting_twice_gives_the_same_weights(run, data, tmp_path):
    name = load_run(run).ranker.config.model
    result = train(data, tmp_path / "again", model=name)
    assert "fitted by counting" in result.text()
    before, after = (load_run(path).ranker.state_dict() for path in (run, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(FormatError, match="is a finished run"):
        train(data, run, model=name)


def test_settings_of_trained_models_are_refused():
    with pytest.raises(SpecError, match="width"):
        configs_of("item-knn", {"width": 64})
    assert config_of("item-knn", width=16, neighbours=7).neighbours == 7


def test_a_fitted_model_is_not_trained():
    ranker = build(SHAPE, config_of("two-tower", width=8))
    with pytest.raises(NotImplementedError, match="two-tower is trained, not fitted"):
        ranker.fit(counted_events())
