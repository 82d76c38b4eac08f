"""Neighbours of items: how they are counted, and what a candidate receives from them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from limerank.data.batch import ItemKeys
from limerank.data.dataset import Dataset
from limerank.data.interactions import TrainingInteractions
from limerank.models import build, cooccurrence
from limerank.models.anchors import matches
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.models.cooccurrence import STEPS, Interacted
from limerank.models.neighbours import NeighbourLists, neighbours_of, with_neighbours
from limerank.training import neighbours
from limerank.training.collaborative import FOLDS, folds_of
from limerank.training.neighbours import (
    BY_ORDER,
    FEW,
    LEAST,
    WINDOW,
    neighbour_lists,
    users_of_items,
    weight_of_order,
)
from limerank.training.objectives import objective_of
from limerank.training.trainer import train
from tests.worlds import SHAPE, batch, config_of, prepare_log, random_lists, unsure


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return Dataset(prepare_log(tmp_path_factory.mktemp("neighbours") / "data", users=60, items=25))


def test_keys_of_neighbours_stand_behind_an_item_s_own():
    keys = ItemKeys(
        keys=torch.tensor([3, 100, 101, 5, 102]),
        shares=torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0]),
        offsets=torch.tensor([0, 2, 3, 5]),
        ids=torch.tensor([2, 0, 1]),
    )
    ids = torch.tensor([[0, 0], [2, 3], [3, 0], [0, 0]], dtype=torch.int32)
    shares = torch.tensor([[0.0, 0.0], [0.9, 0.4], [0.7, 0.0], [0.0, 0.0]])
    found = with_neighbours(keys, NeighbourLists(ids, shares))
    assert found.keys.tolist() == [3, 100, -2, -3, 101, 5, 102, -1, -2, -3]
    expected = [0.5, 1.0, 0.0, 0.7, 1.0, 1.0, 1.0, 0.0, 0.9, 0.4]
    assert found.shares.tolist() == pytest.approx(expected)
    assert found.offsets.tolist() == [0, 4, 5, 10] and found.complete


def counted_by_user(data):
    """Of each user the items, [U, I], and 1 / g of those that came g items after another, up to
    ``STEPS``, [U, I, I]."""
    rows = data.trained_items + 1
    chosen, followed = np.zeros((len(data.users), rows)), np.zeros((len(data.users), rows, rows))
    for block in TrainingInteractions(data).blocks():
        held = block.counted & (block.items > 0)
        chosen[block.users[held], block.items[held]] = 1
        for user in np.unique(block.users[held]):
            newest = list(dict.fromkeys(block.items[held & (block.users == user)][::-1].tolist()))
            for late, early in combinations(range(len(newest)), 2):
                if early - late <= STEPS:
                    followed[user, newest[late], newest[early]] = 1 / (early - late)
    return chosen, followed


def test_lists_are_shrunk_cosines_of_the_users_of_other_folds(data, monkeypatch):
    """Against dense matrices of users and items, and of pairs of items in each history."""
    monkeypatch.setattr(cooccurrence, "PAIRS", 50)
    monkeypatch.setattr(neighbours, "weight_of_order", lambda *_: 3.0)
    rows = data.trained_items + 1
    chosen, followed = counted_by_user(data)
    assert chosen.sum(1).max() <= WINDOW
    folds, found = folds_of(np.arange(len(chosen))), neighbour_lists(data, 6, in_order=True)
    assert len(found) == FOLDS + 1
    scale = None
    for fold in reversed(range(FOLDS + 1)):
        of = chosen[folds != fold]
        together, n = of.T @ of, of.sum(0)
        sums = together + 3 * followed[folds != fold].sum(0)
        similarity = sums / (np.sqrt(np.outer(n, n)) + FEW) * (together >= LEAST)
        np.fill_diagonal(similarity, 0)
        best = -np.sort(-similarity, axis=1)[:, :6]
        scale = scale or 2 * best[best > 0].mean()
        np.testing.assert_allclose(found[fold].shares, best / scale, rtol=1e-5)
        for row in range(rows):
            own = found[fold].ids[row].numpy()[found[fold].shares[row].numpy() > 0]
            expected = similarity[row, own] / scale
            np.testing.assert_allclose(found[fold].shares[row, : len(own)], expected, rtol=1e-5)
            assert len(set(own.tolist())) == len(own)
    assert not torch.equal(found[0].shares, found[-1].shares)


@pytest.mark.parametrize(
    ("ordered", "expected"), [(True, BY_ORDER[1:]), (False, BY_ORDER[:1])], ids=["order", "none"]
)
def test_the_log_decides_what_the_order_of_events_counts(ordered, expected):
    """In one log of two, half the events are followed by one of ten items that follow the item."""
    rng, items, rows = np.random.default_rng(0), 200, 201
    next_to = rng.integers(items, size=(items, 10))
    histories = []
    for _ in range(600):
        history = [int(rng.integers(items))]
        while len(history) < 12:
            follows = rng.random() < 0.5
            history.append(int(rng.choice(next_to[history[-1]]) if follows else rng.choice(items)))
        histories.append([item + 1 for item in dict.fromkeys(history)])
        if not ordered:
            rng.shuffle(histories[-1])
    interacted = Interacted(
        np.repeat(np.arange(len(histories)), [len(one) for one in histories]).astype(np.int32),
        np.array([item for one in histories for item in reversed(one)], np.int32),
        np.arange(len(histories)),
        np.zeros(rows, np.int64),
        np.ones(rows),
    )
    folds = folds_of(interacted.rows)
    users_of = users_of_items(interacted, folds)
    assert users_of[-1].sum() == len(interacted.items)
    assert users_of[1, 7] == ((interacted.items == 7) & (folds[interacted.users] != 1)).sum()
    assert weight_of_order(interacted, folds, users_of) in expected


def test_nothing_in_common_has_no_order():
    none = np.zeros(0, np.int32)
    interacted = Interacted(none, none, none.astype(np.int64), np.zeros(5, np.int64), np.ones(5))
    folds = folds_of(interacted.rows)
    assert weight_of_order(interacted, folds, users_of_items(interacted, folds)) == 0


def test_a_candidate_receives_from_its_neighbours_in_the_history():
    """One term at a time, by the definition."""
    torch.manual_seed(0)
    settings = {"anchors": (), "neighbours": 4, "width": 16, "heads": 2, "links": 5, "hidden": 12}
    ranker = build(SHAPE, config_of("lime-mha", **settings)).eval()
    unsure(ranker)
    full = batch([7, 0, 12], [4, 3, 5])
    keys = ranker.complete(full.users.keys)
    with torch.inference_mode():
        anchored = ranker.anchored_links(full.users)
        found = ranker.anchors.gathered(anchored, keys, full.candidates)
    ids, lists = full.items.ids, ranker.neighbour_table.lists
    links = {
        (request, int(anchored.keys[at])): anchored.links[at]
        for request in range(3)
        for at in range(int(anchored.offsets[request]), int(anchored.offsets[request + 1]))
    }
    for request, length in enumerate(full.users.lengths.tolist()):
        seen = set(ids[full.users.items[request, :length]].tolist()) - {0}
        assert {-key for of, key in links if of == request} == seen
        for spot in range(int(full.counts[request])):
            row = int(ids[full.candidates[request, spot]])
            expected = torch.zeros(found.shape[-1])
            for neighbour, share in zip(*(part[row].tolist() for part in lists), strict=True):
                if share and neighbour in seen:
                    expected += share * links[request, -neighbour]
            torch.testing.assert_close(found[request, spot], expected, atol=1e-6, rtol=1e-5)
    assert found.abs().max() > 0.01
    request, item, _ = matches(anchored, keys)
    assert len(request) and len(item)


def test_models_with_anchored_links_have_neighbours():
    def most(**settings: object) -> int:
        table = build(SHAPE, ModelConfig(**settings)).neighbour_table
        return 0 if table is None else table.ids.shape[1]

    assert most(model="lime-mha") == most(model="lime-xor") == 50
    for items, expected in ((100_001, 49), (250_000, 20), (3_000_000, 10)):
        large = SHAPE.model_copy(update={"item_ids": items, "item_tokens": 1})
        assert neighbours_of(large, ModelConfig(model="lime-mha")) == expected
    assert most(model="lime-mha", anchors=()) == most(model="two-tower") == 0
    assert most(model="lime-mha", neighbours=0) == 0
    assert most(model="lime-mha", anchors=(), neighbours=3) == 3
    assert most(model="two-tower", neighbours=2) == 2
    with pytest.raises(ValueError, match="has no setting neighbours"):
        ModelConfig(model="most-popular", neighbours=2)


def test_items_of_histories_alone_have_no_neighbours():
    keys = ItemKeys(
        keys=torch.tensor([3, 20, 21, 4, 22]),
        shares=torch.ones(5),
        offsets=torch.tensor([0, 2, 3, 5]),
        ids=torch.tensor([1, 0, 2]),
    )
    lists = random_lists(4, 2)
    every, first = with_neighbours(keys, lists), with_neighbours(keys, lists, 2)
    at = int(every.offsets[2])
    for name in ("keys", "shares"):
        torch.testing.assert_close(getattr(first, name)[:at], getattr(every, name)[:at])
    assert first.keys[at:].tolist() == [4, 22, -2]
    assert first.shares[at:].tolist() == [1, 1, 0]
    assert first.offsets.tolist() == [*every.offsets[:3].tolist(), at + 3]


def test_training_rows_are_given_lists_of_other_folds(data, tmp_path):
    config = TrainConfig(epochs=1, batch_size=64)
    run = train(
        data.path, tmp_path / "run", model={"model": "lime-mha", "neighbours": 5}, config=config
    )
    assert run.steps
    shape = DataShape.of(data.manifest)
    objective = objective_of(None, shape.tasks)(data, shape, config)
    lists = [random_lists(shape.item_ids, 3) for _ in range(FOLDS + 1)]
    lists[:-1] = [
        NeighbourLists(of.ids, of.shares * (fold + 1)) for fold, of in enumerate(lists[:-1])
    ]
    objective.neighbours = lists
    plan, folds = objective.plan(0), set()
    for rows, one in zip(plan, objective.batches(plan), strict=True):
        (fold,) = set(folds_of(data.requests["user"][rows]).tolist())
        made = data.batch(rows)
        expected = with_neighbours(made.users.keys, lists[fold], made.distinct)
        torch.testing.assert_close(one.users.keys.shares, expected.shares)
        folds.add(fold)
    assert len(folds) == FOLDS
