"""Statistics of items from the training window, without the labels of a training row's own fold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limerank.data import interactions
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.runs.folder import load_run
from limerank.training import collaborative
from limerank.training.collaborative import FOLDS, folds_of, statistics
from limerank.training.objectives import Impressions
from limerank.training.trainer import train
from tests.worlds import prepare_log, write_positives

SMALL = {"width": 16, "heads": 2, "links": 4, "hidden": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return Dataset(prepare_log(tmp_path_factory.mktemp("collaborative")))


def pairs(data: Dataset) -> list[tuple[int, int, float]]:
    """(user, item, click) of the impressions of the training split."""
    requests = data.requests_of("train")
    rows = data.impression_rows(requests)
    users = np.repeat(data.requests["user"][requests], data.requests["count"][requests])
    items, clicks = data.events["item"][rows], data.events["label_click"][rows]
    return list(zip(users.tolist(), items.tolist(), clicks.tolist(), strict=True))


def test_folds_are_even_and_depend_on_the_user_alone():
    folds = folds_of(np.arange(20_000))
    assert np.bincount(folds).min() > 3_800
    np.testing.assert_array_equal(folds_of(np.array([7, 3, 7])), folds[[7, 3, 7]])


def test_rates_and_counts_leave_out_the_own_fold(data):
    found = statistics(data, 0, rates=True).values
    assert found.shape == (FOLDS + 1, data.trained_items + 1, 2)
    assert not found[:, 0].any(), "an unseen item has none"
    rows = pairs(data)
    folds = folds_of(np.array([user for user, _, _ in rows]))
    for fold in range(FOLDS + 1):
        held = [row for row, of in zip(rows, folds, strict=True) if of != fold]
        mean = np.mean([click for _, _, click in held])
        for item in range(data.trained_items):
            clicks = [click for _, of, click in held if of == item]
            rate = (sum(clicks) + 20 * mean) / (len(clicks) + 20)
            odds = np.log(rate / (1 - rate)) - np.log(mean / (1 - mean))
            assert found[fold, item + 1, 0] == pytest.approx(odds, abs=1e-4)
    counts = [sum(of == item for _, of, _ in rows) for item in range(data.trained_items)]
    order = found[-1, 1:, 1].argsort(stable=True).numpy()
    assert (np.diff(np.array(counts)[order]) >= 0).all()


def test_vectors_are_the_largest_directions_of_who_likes_what(data):
    found = statistics(data, 3, rates=False).values
    liked = np.zeros((len(data.user_ids), data.trained_items))
    for user, item, click in pairs(data):
        liked[user, item] = max(liked[user, item], click)
    counts = liked.sum(0)
    scaled = liked / np.sqrt(counts + collaborative.COMMON)
    scaled /= np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-6)
    left = np.linalg.svd(scaled, full_matrices=False)
    wanted = left[2][:3].T * left[1][:3] ** 2
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    evidence = counts / (counts + collaborative.FEW)
    length = 3**0.5 * evidence
    np.testing.assert_allclose(found[-1, 1:].norm(dim=1), length, atol=1e-4)
    near = np.abs(found[-1, 1:].numpy()) / np.maximum(length, 1e-9)[:, None]
    some = evidence > 0
    np.testing.assert_allclose(near[some], np.abs(wanted[some]), atol=0.02)


def test_vectors_of_a_fold_do_not_depend_on_its_last_step(data, monkeypatch):
    """The labels of a fold's users enter its vectors through the common axes alone."""
    values = statistics(data, 4, rates=True).values
    fold = int(folds_of(np.arange(1))[0])
    mine = folds_of(np.arange(len(data.user_ids))) == fold
    column = np.array(data.events["label_click"])
    owner = np.repeat(np.arange(len(data.user_ids)), np.diff(data.event_offsets))
    column[mine[owner]] = 1 - column[mine[owner]]
    monkeypatch.setitem(data.events, "label_click", column)
    changed = statistics(data, 4, rates=True).values
    torch.testing.assert_close(changed[fold, :, :2], values[fold, :, :2])
    assert not torch.allclose(changed[-1], values[-1], atol=1e-2)
    other = (fold + 1) % FOLDS
    assert not torch.allclose(changed[other], values[other], atol=1e-2)


def test_blocks_do_not_matter(data, monkeypatch):
    values = statistics(data, 3, rates=True).values
    monkeypatch.setattr(interactions, "BLOCK", 40)
    monkeypatch.setattr(collaborative, "BLOCK", 50)
    torch.testing.assert_close(statistics(data, 3, rates=True).values, values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("click", [0, 1, None])
@pytest.mark.parametrize("items", [1, 2])
def test_degenerate_logs_have_finite_statistics(data, monkeypatch, click, items):
    """One item, or labels that are all alike."""
    monkeypatch.setitem(data.events, "item", np.array(data.events["item"]) % items)
    monkeypatch.setattr(data, "trained_items", items)
    if click is not None:
        monkeypatch.setitem(data.events, "label_click", data.events["label_click"] * 0 + click)
    found = statistics(data, 4, rates=True).values
    assert found.shape == (FOLDS + 1, items + 1, 6) and torch.isfinite(found).all()


def test_training_rows_are_given_those_of_their_fold(data, tmp_path):
    """A batch has users of one fold; the run has the statistics of all, evaluation too."""
    model = ModelConfig(model="lime-mha", vectors=3, base_rates=True, **SMALL)
    train(data, tmp_path / "run", model=model, config=TrainConfig(epochs=1, batch_size=16))
    run = load_run(tmp_path / "run")
    found = statistics(data, 3, rates=True)
    torch.testing.assert_close(run.ranker.item_tower.statistics, found.of_all)
    objective = Impressions(data, DataShape.of(data.manifest), TrainConfig(batch_size=16))
    objective.statistics = found
    plan = objective.plan(0)
    assert sorted(np.concatenate(plan)) == objective.requests.tolist()
    for rows, batch in zip(plan, objective.batches(plan), strict=True):
        (fold,) = set(folds_of(data.requests["user"][rows]).tolist())
        torch.testing.assert_close(batch.items.statistics, found.values[fold][batch.items.ids])


def test_rare_ids_count_less(data, tmp_path):
    model = ModelConfig(model="lime-mha", id_evidence=10.0, **SMALL)
    train(data, tmp_path / "run", model=model, config=TrainConfig(epochs=1))
    tower = load_run(tmp_path / "run").ranker.item_tower
    counts = np.array(data.train_count[: data.trained_items])
    np.testing.assert_allclose(tower.id_shares[1:], counts / (counts + 10), rtol=1e-6)
    assert tower.id_shares[0] == 1, "the embedding of all items that training has not seen"
    items = data.item_batch(np.arange(3))
    found = tower(items)
    tower.id_shares[items.ids] = 0.0
    tower.ids.weight.data[items.ids] += 1.0
    of_content = tower(items)
    assert not torch.allclose(found, of_content)
    tower.ids.weight.data[items.ids] += 1.0
    torch.testing.assert_close(tower(items), of_content)


def test_in_a_log_of_positives_every_event_goes_together(tmp_path):
    """Purchases are few; what the same users view is told apart by far more events."""
    bought = {"name": "choice", "kind": "positive", "column": "event", "equals": "purchase"}
    spec = write_positives(tmp_path / "log", labels=[bought])
    prepare(load_spec(spec), tmp_path / "data", base=spec.parent)
    data = Dataset(tmp_path / "data")
    found = set()
    for block in collaborative._pairs(data):
        found |= set(zip(block.user.tolist(), block.item.tolist(), strict=True))
    early = data.events["time"] < data.manifest["summary"]["cuts"][0]
    users = np.repeat(np.arange(len(data.user_ids)), np.diff(data.event_offsets))
    items = np.asarray(data.events["item"])
    some = early & (items < data.trained_items)
    assert len(found) == len(set(zip(users[some], items[some], strict=True)))
    assert 0 < (data.events["label_choice"][some] > 0).sum() < some.sum() / 2
    counts = np.bincount(items[some], minlength=data.trained_items)
    np.testing.assert_array_equal(interactions.event_counts(data), counts)
    vectors = statistics(data, 4, rates=False).of_all[1:]
    vectors = torch.nn.functional.normalize(vectors[counts > 3], dim=-1)
    group = torch.tensor([int(data.item_ids[i][1:]) % 6 for i in np.flatnonzero(counts > 3)])
    same = group[:, None] == group
    cosines = vectors @ vectors.T
    assert cosines[same].mean() > cosines[~same].mean() + 0.5
