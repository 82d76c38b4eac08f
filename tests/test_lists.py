"""Metrics of lists equal slow plain definitions; ties are broken as an index does."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.errors import DataError, SpecError
from limerank.evaluation.evaluate import Evaluation, evaluate
from limerank.evaluation.list_metrics import Gain, evaluate_lists, gain, list_table, peer
from limerank.evaluation.lists import ListRequests, Lists, draw_requests, rank_lists
from limerank.index import Index
from limerank.index.building import build_index
from limerank.kernels.order import of_keys, order_keys
from limerank.models.config import TrainConfig
from limerank.ranking.scorer import ModelScorer
from limerank.runs.folder import load_run
from limerank.training.trainer import train
from tests.catalogues import counted_at_the_end
from tests.worlds import config_of, prepare_log

DEPTHS = (1, 3, 10)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_log(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lime"
    model = config_of("lime-mha", width=16, heads=2, links=4, hidden=8)
    train(data, out, model=model, config=TrainConfig(epochs=1, batch_size=64))
    return out


def plain(
    dataset: Dataset, scores: dict[int, np.ndarray], seen: str, depth: int
) -> dict[str, float]:
    """All metrics of lists by loops; ``scores``: request -> score of each item."""
    columns, events = dataset.requests, dataset.events
    counts = dict.fromkeys(range(len(dataset.items)), 0)
    for row in np.flatnonzero(events["time"][:] < dataset.manifest["summary"]["cuts"][0]):
        counts[int(events["item"][row])] += int(events["label_click"][row] > 0)
    total = sum(counts.values()) + len(counts)
    found = {name: [] for name in ("ndcg", "hr", "recall", "mrr")}
    shown, repeated, information = [], [], []
    for request, values in scores.items():
        first = int(columns["first"][request])
        rows = range(first, first + int(columns["count"][request]))
        liked = {int(events["item"][row]) for row in rows if events["label_click"][row]}
        before = range(int(columns["history_start"][request]), int(columns["history_end"][request]))
        history = {int(events["item"][row]) for row in before}
        order = [item for item in range(len(values)) if seen == "in" or item not in history]
        order.sort(key=lambda item: (-values[item], item))
        relevant = liked & set(order)
        if not relevant:
            continue
        ranks = sorted(order.index(item) + 1 for item in relevant)
        gains = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= depth)
        best = sum(1 / math.log2(1 + rank) for rank in range(1, min(depth, len(ranks)) + 1))
        found["ndcg"].append(gains / best)
        found["hr"].append(any(rank <= depth for rank in ranks))
        found["recall"].append(sum(rank <= depth for rank in ranks) / len(ranks))
        found["mrr"].append(1 / ranks[0])
        shown += order[:depth]
        repeated += [item in history for item in order[:depth]]
        information += [-math.log2((counts[item] + 1) / total) for item in order[:depth]]
    frequent = sorted((shown.count(item) for item in set(shown)), reverse=True)[:depth]
    result = {f"{name}@{depth}": float(np.mean(found[name])) for name in ("ndcg", "hr", "recall")}
    result |= {
        "mrr": float(np.mean(found["mrr"])),
        "requests": len(found["mrr"]),
        f"coverage@{depth}": len(set(shown)) / len(dataset.items),
        f"novelty@{depth}": float(np.mean(information)),
        f"concentration@{depth}": sum(frequent) / len(shown),
    }
    return result | ({f"repeats@{depth}": float(np.mean(repeated))} if seen == "in" else {})


@pytest.mark.parametrize("seen", ["in", "out"])
@pytest.mark.parametrize("model", ["lime-mha", "item-knn", "most-popular"])
def test_metrics_are_their_plain_definitions(run, data, model, seen):
    dataset = Dataset(data)
    assert dataset.candidate.all()
    ranker = load_run(run).ranker if model == "lime-mha" else peer(dataset, model)
    requests = dataset.requests_of("test")
    scores = {}
    with torch.inference_mode():
        terms = ranker.encode_items(
            ranker.item_vectors(dataset.item_batch(np.arange(len(dataset.items))))
        )
        for request in requests.tolist():
            batch = dataset.batch(np.array([request]))
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            keys = dataset.item_keys(np.arange(len(dataset.items)))
            items = np.arange(len(dataset.items))
            hours = ranker.config.counter_hours if ranker.counters else 24
            counted = dataset.counted_at(items, np.array([request]), hours)
            extra = ranker.extra(state, keys, torch.from_numpy(items), counted=counted)
            scores[request] = ranker.score(state, terms, extra)[0, :, 0].numpy()
    result = evaluate_lists(ranker, dataset, requests, depths=DEPTHS, seen=seen, peers=False)
    for depth in DEPTHS:
        expected = plain(dataset, scores, seen, depth)
        assert expected["requests"] == result.requests > 5
        for name, value in expected.items():
            assert result.numbers[name] == pytest.approx(value, rel=1e-6), name
    names = {name.partition("@")[0] for name in result.metrics}
    assert ("repeats" in names) == (seen == "in")


def test_peers_stand_beside_the_model(run, data, tmp_path):
    result = evaluate(run, out=tmp_path / "m.json", k=(5,))
    assert list(result.peers) == ["item-knn", "most-popular", "chance"]
    for name in ("item-knn", "most-popular"):
        ranker = peer(Dataset(data), name)
        alone = evaluate_lists(
            ranker, Dataset(data), Dataset(data).requests_of("test"), depths=(5,), peers=False
        )
        assert result.peers[name] == alone.metrics
        more = result.gains[name]
        difference = result.lists["ndcg@5"] - alone.metrics["ndcg@5"]
        assert more.difference == pytest.approx(difference)
        assert more.low < more.difference < more.high
    assert Evaluation.read(tmp_path / "m.json").to_dict() == result.to_dict()
    text = result.text()
    for name in ("lime-mha", "item-knn", "most-popular", "chance"):
        assert any(line.strip().startswith(name) for line in text.splitlines())
    assert "seen items left out" in text and "first 5" in text
    assert "ndcg@5 minus that of item-knn" in text
    without = evaluate(run, out=tmp_path / "m.json", peers=False)
    assert not without.peers and not without.gains
    assert "item-knn" not in without.text()


def test_an_index_ranks_what_is_measured(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Dataset, "counted_at", counted_at_the_end)
    loaded, dataset = load_run(run), Dataset(data)
    build_index(loaded, tmp_path / "index", data=dataset)
    index = Index.open(tmp_path / "index", fingerprint=loaded.fingerprint)
    requests = draw_requests(dataset, dataset.requests_of("test"), "click", "in")
    lists = rank_lists(loaded.ranker, dataset, requests, 7)
    batch = dataset.batch(requests.rows)
    with torch.inference_mode():
        state = loaded.ranker.encode_users(batch.users, loaded.ranker.item_vectors(batch.items))
    top = ModelScorer(loaded.ranker, index).top(state, 7)
    assert np.mean(top.rows == lists.top) > 0.98  # sums of float32 in another order
    for row, (start, end) in enumerate(itertools.pairwise(requests.offsets)):
        among = np.isin(lists.top[row], requests.relevant[start:end])
        ranks = lists.ranks[start:end]
        assert (np.flatnonzero(among) + 1).tolist() == ranks[ranks <= 7].tolist()


values = st.lists(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-100, math.inf, -math.inf, math.nan, 2.5]),
    min_size=1,
    max_size=30,
)


@given(values, st.integers(0, 5))
def test_equal_scores_are_ordered_by_position(scores, first):
    """Greater first; of equal ones (-0 is 0, NaN is -inf) the lower position."""
    keys = order_keys(torch.tensor([scores]), first)[0]
    size = {at: -math.inf if math.isnan(value) else value for at, value in enumerate(scores)}
    expected = sorted(size, key=lambda at: (-size[at], at))
    assert torch.argsort(keys, descending=True).tolist() == expected
    positions, found = of_keys(keys)
    assert positions.tolist() == [first + at for at in range(len(scores))]
    assert found.tolist() == [size[at] for at in range(len(scores))]


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.integers(1, 12), min_size=1, max_size=5, unique=True), min_size=1, max_size=6
    ),
    st.integers(1, 12),
)
def test_recall_is_its_definition(lists, k):
    ranks = [float(rank) for one in lists for rank in one]
    offsets = np.cumsum([0, *map(len, lists)])
    expected = np.mean([sum(rank <= k for rank in one) / len(one) for one in lists])
    assert metrics.recall(ranks, k, offsets) == pytest.approx(expected)


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(-1, 6), min_size=4, max_size=4), min_size=1, max_size=6))
def test_shares_of_items_are_their_definitions(lists):
    shown = [item for one in lists for item in one if item >= 0]
    assert metrics.coverage(lists, 7) == pytest.approx(len(set(shown)) / 7)
    counts = np.arange(7)
    found = metrics.concentration(lists, 2), metrics.self_information(lists, counts)
    if not shown:
        assert np.isnan(found).all()
        return
    frequent = sorted((shown.count(item) for item in set(shown)), reverse=True)
    information = [-math.log2((item + 1) / (counts.sum() + 7)) for item in shown]
    assert found == pytest.approx((sum(frequent[:2]) / len(shown), np.mean(information)))


@pytest.mark.parametrize("items", range(1, 7))
def test_chance_is_the_mean_over_all_orders(items):
    for relevant, k in itertools.product(range(1, items + 1), (1, 2, 5)):
        drawn = [
            np.array(ranks, dtype=float)
            for ranks in itertools.combinations(range(1, items + 1), relevant)
        ]
        offsets = np.array([0, relevant])
        expected = [
            np.mean([metric(ranks, k, offsets) for ranks in drawn])
            for metric in (metrics.hit_rate, metrics.recall, metrics.ndcg)
        ]
        expected.append(np.mean([metrics.mrr(ranks, offsets) for ranks in drawn]))
        assert metrics.chance([relevant], [items], k) == pytest.approx(expected)


def test_chance_is_a_mean_over_lists():
    one, other = metrics.chance([1], [5], 2), metrics.chance([3], [9], 2)
    both = metrics.chance([1, 3], [5, 9], 2)
    assert both == pytest.approx(np.mean([one, other], axis=0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.chance([3], [2], 1), "expected one number of each list"),
        (lambda: metrics.chance([0], [2], 1), "leave out lists without relevant items"),
        (lambda: metrics.self_information([3], [1, 1]), "got row 3, expected 0..1"),
        (lambda: metrics.coverage([1], 0), "expected an integer of at least 1"),
        (lambda: metrics.recall([0.5], 3), "expected 1-based ranks"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_the_interval_of_a_gain_counts_users_not_requests(data):
    """Copies of a user's requests do not make the difference surer."""
    dataset = Dataset(data)
    user = dataset.requests["user"]
    rows = np.array([np.flatnonzero(user == one)[0] for one in range(20)])
    rng = np.random.default_rng(0)
    ours, theirs = (rng.integers(1, 20, 20).astype(float) for _ in range(2))

    def found(times: int) -> Gain:
        count = 20 * times
        of = ListRequests(
            np.repeat(rows, times),
            np.zeros(count, np.int32),
            np.arange(count + 1),
            count,
            "in",
        )
        empty = np.zeros((count, 0), np.int32)
        lists = [
            Lists(np.repeat(ranks, times), empty, empty > 0, np.full(count, 20))
            for ranks in (ours, theirs)
        ]
        return gain(*lists, of, dataset, 10)

    once, thrice = found(1), found(3)
    assert (thrice.difference, thrice.low, thrice.high) == pytest.approx(
        (once.difference, once.low, once.high)
    )
    gains = [np.where(r <= 10, 1 / np.log2(1 + r), 0) for r in (ours, theirs)]
    difference = gains[0] - gains[1]
    error = difference.std(ddof=1) / math.sqrt(20)
    assert once.high == pytest.approx(difference.mean() + 1.96 * error)


def test_requests_are_drawn_once_for_all_models(data):
    dataset = Dataset(data)
    requests = dataset.requests_of("train")
    every = draw_requests(dataset, requests, "click", "in")
    some = draw_requests(dataset, requests, "click", "in", 9)
    assert len(every) == every.positive == some.positive > len(some) == 9
    assert set(some.rows) < set(every.rows)
    again = draw_requests(dataset, requests, "click", "in", 9)
    np.testing.assert_array_equal(some.rows, again.rows)
    np.testing.assert_array_equal(some.relevant, again.relevant)
    nobody = draw_requests(dataset, requests[:0], "click", "out")
    assert len(nobody) == nobody.positive == 0


def test_an_empty_split_has_no_lists(run, data):
    dataset, ranker = Dataset(data), load_run(run).ranker
    found = evaluate_lists(ranker, dataset, np.zeros(0, np.int64))
    assert found.requests == 0 and not found.metrics and not found.peers


def test_lists_without_a_new_item_say_so():
    counts = {"requests": 0.0, "requests_with_positive": 9.0, "catalogue": 4.0}
    head, line = list_table("lime-mha", counts, {}, {}, "out")
    assert head.startswith("lists of the full catalogue of 4 items, 0 requests of 9")
    assert "items that their users have seen" in line and "--seen in" in line
    nothing = {**counts, "requests_with_positive": 0.0}
    assert len(list_table("lime-mha", nothing, {}, {}, "out")) == 1


@pytest.mark.parametrize("k", [(), (0,), (10, -1)])
def test_depths_are_checked_before_anything_is_read(k, tmp_path):
    with pytest.raises(SpecError, match="k is"):
        evaluate(tmp_path / "no-run", k=k)
    with pytest.raises(SpecError, match="seen"):
        evaluate(tmp_path / "no-run", seen="some")
