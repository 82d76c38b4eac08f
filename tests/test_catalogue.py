"""The catalogue objective: its loss against loops, its samples against expectations, its memory,
and runs of it from a log of positives to a ranking."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from limerank.data.batch import Sequences
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.events import event_of
from limerank.data.prepare import prepare
from limerank.errors import DataError, SpecError
from limerank.evaluation.evaluate import evaluate
from limerank.evaluation.predict import predict
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models import build
from limerank.models.config import DataShape, TrainConfig
from limerank.models.ranker import gather
from limerank.models.registry import OF_THE_PACKAGE, model_of
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_run
from limerank.serving.state import UserStates
from limerank.serving.stores import SqliteStore
from limerank.training import softmax
from limerank.training.catalogue import Catalogue, Requests
from limerank.training.held_out import HeldOut
from limerank.training.impressions import Impressions
from limerank.training.negatives import Negatives
from limerank.training.objectives import objective_of, objective_on
from limerank.training.positives import positives
from limerank.training.trainer import train
from tests.worlds import config_of, unsure, write_log, write_positives

SMALL = {"width": 8, "links": 4, "hidden": 6, "heads": 2, "blocks": 2}
STILL = {"id_dropout": 0.0, "dropout": 0.0, "anchor_dropout": 0.0, "profile_dropout": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("positives")
    spec = write_positives(folder / "log")
    prepare(load_spec(spec), folder / "data", base=spec.parent)
    return Dataset(folder / "data")


@pytest.fixture(scope="module")
def shape(data):
    return DataShape.of(data.manifest)


def objective(data, shape, model="lime-mha", **config):
    """A checked objective."""
    made = Catalogue(data, shape, TrainConfig(**config))
    made.check(model_of(model), data.requests_of("validation"))
    return made


def ranker_of(shape, model="lime-mha", **settings):
    torch.manual_seed(0)
    ranker = build(shape, config_of(model, **{**SMALL, **STILL, **settings}))
    unsure(ranker)
    return ranker


def loss_by_loops(ranker, data, requests, label="choice"):
    """The mean loss of the module's text, request by request, over the full catalogue."""
    items = np.arange(data.trained_items)
    total, count, weights = 0.0, 0, 0.0
    for request in requests:
        batch = data.batch(np.array([request]), None, items)
        vectors = ranker.item_vectors(batch.items)
        state = ranker.encode_users(batch.users, vectors)
        terms = ranker.encode_items(vectors)
        every = torch.arange(len(batch.items.ids))
        extra = ranker.extra(state, batch.users.keys, every)
        logits = ranker.score(state, terms, extra)[0, :, 0].double()
        row_of = {int(batch.items.ids[at]): float(logits[at]) for at in every}
        rows = data.impression_rows(np.array([request]))
        item, weight = data.events["item"][rows] + 1, data.events[f"label_{label}"][rows]
        chosen = {int(i) for i in item[weight > 0]}
        others = np.logaddexp.reduce(
            [row_of[i] for i in range(1, len(items) + 1) if i not in chosen]
        )
        for i, w in zip(item, weight, strict=True):
            if w > 0:
                total += float(w) * float(np.logaddexp(0, others - row_of[int(i)]))
                count, weights = count + 1, weights + float(w)
    return total, count


@pytest.mark.parametrize(
    "model", [name for name in OF_THE_PACKAGE if not model_of(name).ranker.fitted]
)
def test_the_loss_is_that_of_a_loop_over_requests(data, shape, model):
    made = objective(data, shape, model, negatives=0)
    ranker = ranker_of(shape, model).train()
    rows = made.requests[:7]
    (batch,) = made.batches([rows])
    found = made.losses(ranker, batch)["choice"]
    with torch.no_grad():
        total, count = loss_by_loops(ranker, data, rows)
    mean_weight = made.positives.weights["choice"] / made.positives.total
    assert batch.impressions == count > len(rows)
    assert found.item() == pytest.approx(total / count / mean_weight, rel=1e-4)
    found.backward()
    assert all(
        torch.isfinite(w.grad).all()
        for w in ranker.parameters()
        if w.grad is not None and not w.grad.is_sparse
    )


def gradients(ranker, loss):
    ranker.zero_grad()
    loss.backward()
    return {
        name: weight.grad.to_dense().clone()
        for name, weight in ranker.named_parameters()
        if weight.grad is not None
    }


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor", "two-tower", "mha"])
def test_parts_of_a_batch_have_the_loss_and_the_gradients_of_it(data, shape, model, monkeypatch):
    made = objective(data, shape, model, negatives=20)
    ranker = ranker_of(shape, model).train()
    (batch,) = made.batches([made.requests[:9]])
    once = made.losses(ranker, batch)["choice"]
    expected = gradients(ranker, once)
    monkeypatch.setattr(softmax, "PAIR_NUMBERS", 1)
    parts = made.losses(ranker, batch)["choice"]
    torch.testing.assert_close(parts, once)
    for name, gradient in gradients(ranker, parts).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_sample_of_all_items_is_the_full_softmax(data, shape):
    """Also where the sample is drawn item by item."""
    ranker = ranker_of(shape).train()
    full = objective(data, shape, negatives=0)
    sampled = objective(data, shape, negatives=data.trained_items)
    rows = full.requests[:5]
    (one,), (other,) = full.batches([rows]), sampled.batches([rows])
    assert (other.log_inclusion == 0).all()
    assert torch.equal(full.losses(ranker, one)["choice"], sampled.losses(ranker, other)["choice"])


def test_items_are_in_samples_as_often_as_their_correction_says():
    """Over 4,000 draws a share is off by more than 5 standard errors once in a million times."""
    rng = np.random.default_rng(0)
    counts = np.array([50, 20, 10, 5, 5, 3, 3, 2, 1, 1] + [0] * 20)
    negatives = Negatives(counts, 6, seed=3)
    share = counts / counts.sum()
    draws, size = 4000, 8
    seen, expected = np.zeros(30), np.full(30, np.nan)
    for number in range(draws):
        batch = rng.choice(30, size, p=share)
        rows, log_inclusion = negatives.draw(np.array([number]), batch)
        assert (np.diff(rows) > 0).all() and set(batch) <= set(rows.tolist())
        seen[rows] += 1
        expected[rows] = np.exp(log_inclusion)
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(seen / draws - expected) < 5 * error + 1e-12).all()
    again = negatives.draw(np.array([7]), np.array([1, 2]))
    for one, other in zip(again, negatives.draw(np.array([7]), np.array([1, 2])), strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(again[0], negatives.draw(np.array([8]), np.array([1, 2]))[0])


def test_samples_have_the_sum_of_the_catalogue_in_expectation():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 30, 50)
    weights = np.exp(rng.normal(size=50))
    negatives = Negatives(counts, 10, seed=0)
    sums = []
    for number in range(4000):
        batch = rng.choice(50, 12, p=counts / counts.sum())
        rows, log_inclusion = negatives.draw(np.array([number]), batch)
        sums.append((weights[rows] / np.exp(log_inclusion)).sum())
    error = np.std(sums) / np.sqrt(len(sums))
    assert np.mean(sums) == pytest.approx(weights.sum(), abs=4 * error)


def test_only_rows_of_the_batch_are_touched(data, shape):
    made = objective(data, shape, negatives=5)
    ranker = ranker_of(shape).train()
    (batch,) = made.batches([made.requests[:3]])
    made.losses(ranker, batch)["choice"].backward()
    gradient = ranker.item_tower.ids.weight.grad
    assert gradient.is_sparse
    touched = gradient.coalesce().indices()[0]
    assert set(touched.tolist()) == set(batch.batch.items.ids.tolist())
    assert len(touched) < shape.item_ids


def test_exact_histories_are_requests_of_one_positive(data, shape):
    """Each positive sees the events before it, as a request of its own does."""
    made = objective(data, shape, negatives=0, exact=True, exact_requests=0)
    user = data.requests["user"][made.requests]
    rows = made.requests[np.isin(user, np.unique(user)[:3])]
    ranker = ranker_of(shape).train()
    (batch,) = made.batches([rows])
    assert isinstance(batch.batch, Sequences) and batch.impressions == len(batch.batch.owner)
    found = made.losses(ranker, batch)["choice"]
    vectors = ranker.item_vectors(batch.batch.items)
    states = ranker.sequence_states(batch.batch, vectors)
    events = data.impression_rows(rows)
    for at, row in enumerate(events):
        start = data.event_offsets[np.searchsorted(data.event_offsets, row, side="right") - 1]
        single = replace_history(data, int(start), int(row))
        state = ranker.encode_users(single.users, ranker.item_vectors(single.items))
        torch.testing.assert_close(states.links[at], state.links[0], atol=1e-5, rtol=1e-4)
        one, other = states.anchored[at : at + 1], state.anchored
        assert torch.equal(one.keys, other.keys)
        torch.testing.assert_close(one.links, other.links, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(found)


def replace_history(data, start, end):
    """A batch of one request whose history is the events [start, end)."""
    columns = {name: np.array(column) for name, column in data.requests.items()}
    request = int(np.searchsorted(columns["first"], end, side="right") - 1)
    columns["history_start"][request], columns["history_end"][request] = start, end
    changed = object.__new__(Dataset)
    changed.__dict__.update(data.__dict__)
    changed.requests = columns
    return changed.batch(np.array([request]), 1 << 20)


def test_validation_ranks_all_items_and_has_the_loss_of_the_full_softmax(data, shape):
    ranker = ranker_of(shape).train()
    requests = data.requests_of("validation")
    held_out = HeldOut(data, requests, ["choice"], [0], 11, False, None)
    assert len(held_out.requests) == 11
    found = held_out.measure(ranker)
    assert ranker.training and found.link_use.shape == (2, 4)
    assert found.link_use.sum(1) == pytest.approx([1.0, 1.0], abs=1e-5)
    ranker.eval()
    items = np.flatnonzero(data.candidate)
    hits, gains, loss, weights = [], [], 0.0, 0.0
    for request in held_out.requests:
        batch = data.batch(np.array([request]), None, items)
        with torch.no_grad():
            vectors = ranker.item_vectors(batch.items)
            state = ranker.encode_users(batch.users, vectors)
            every = torch.arange(len(vectors))
            extra = ranker.extra(state, batch.users.keys, every)
            logits = ranker.score(state, ranker.encode_items(vectors), extra)[0, :, 0].numpy()
        rows = data.impression_rows(np.array([request]))
        position = {int(item): at for at, item in enumerate(batch.items.ids.tolist())}
        own = [position[int(item) + 1] for item in data.events["item"][rows]]
        others = np.logaddexp.reduce(np.delete(logits.astype(np.float64), np.unique(own)))
        for at, weight in zip(own, data.events["label_choice"][rows], strict=True):
            loss += weight * np.logaddexp(0, others - logits[at])
            weights += weight
        ranks = np.sort([1 + (logits > logits[at]).sum() for at in set(own)])
        hits.append(ranks[0] <= 10)
        ideal = sum(1 / np.log2(2 + at) for at in range(min(len(ranks), 10)))
        gains.append(sum(1 / np.log2(1 + rank) for rank in ranks if rank <= 10) / ideal)
    assert found.metrics["choice"]["loss"] == pytest.approx(loss / weights, rel=1e-4)
    assert found.metrics["choice"]["hr@10"] == pytest.approx(np.mean(hits))
    assert found.metrics["choice"]["ndcg@10"] == pytest.approx(np.mean(gains), rel=1e-5)


def test_positives_are_counted(data):
    requests = data.requests_of("train")
    found = positives(data, requests, ["choice"])
    rows = data.impression_rows(requests)
    chosen = data.events["label_choice"][rows] > 0
    assert found.total == chosen.sum() and found.of_items.sum() == found.total
    assert found.weights["choice"] == data.events["label_choice"][rows].sum()


MODEL = {"width": 16, "links": 8, "hidden": 8}
QUICK = {"epochs": 4, "batch_size": 32, "learning_rate": 0.012, "table_learning_rate": 0.4}


def trained(data, folder, **settings):
    return train(
        data,
        folder,
        model=config_of("lime-mha", **MODEL),
        config=TrainConfig(**{**QUICK, **settings}),
    )


@pytest.mark.parametrize("settings", [{"exact": True, "epochs": 2}, {"negatives": 12}])
def test_a_training_finds_the_group_of_each_user(data, tmp_path, settings):
    """From samples, and from exact histories."""
    result = trained(data, tmp_path / "run", **settings)
    popular = result.baselines["choice"]["most-popular"]["hr@10"]
    assert result.metrics["choice"]["hr@10"] > 0.55 > 1.5 * popular


def test_tables_of_positives_start_without_an_accumulator(data):
    """Each positive is compared with thousands of items: its gradients have another scale."""
    assert objective_on(data, TrainConfig()).rates.accumulator == 0
    assert objective_on(data, TrainConfig(table_accumulator=9)).rates.accumulator == 9


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of this objective with its index, and what its training returned."""
    folder = tmp_path_factory.mktemp("run")
    result = trained(data, folder / "run")
    found = load_run(folder / "run")
    build_index(found, folder / "index", data=data.path)
    return found, Index.open(folder / "index", found.fingerprint), result


def test_a_training_ends_with_lists_beside_popularity(run):
    found, _, result = run
    lists, popular = result.metrics["choice"], result.baselines["choice"]["most-popular"]
    assert result.metric == "choice/loss" and not result.calibration
    assert lists["hr@10"] > 0.8 and popular["hr@10"] < 0.5
    text = f"choice HR@10 {lists['hr@10']:.4f}, NDCG@10 {lists['ndcg@10']:.4f} (most-popular HR@10"
    assert text in result.text()
    stored = json.loads((found.path / "config.json").read_text())
    assert stored["train"]["objective"] == "catalogue"
    last = json.loads((found.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["baselines"]["choice"]["most-popular"] == popular
    assert result.baselines["choice"]["item-knn"]["hr@10"] > popular["hr@10"]


def test_a_training_shows_what_it_counts_at_its_end(data, tmp_path, capsys):
    model = config_of("lime-mha", **SMALL)
    train(data, tmp_path / "run", model=model, config=TrainConfig(epochs=1), quiet=False)
    *_, objective, training, comparison, counting = capsys.readouterr().err.splitlines()
    positive = positives(data, data.requests_of("validation"), ["choice"]).of_requests
    measured = int((positive > 0).sum())
    few = f"{measured} requests among all items; so few that one more hit raises HR@10 by "
    assert objective.endswith(f"{few}{1 / measured:.3f}") and measured < 100
    assert training.startswith("training lime-mha: ")
    assert comparison == "for comparison, counting most-popular and item-knn"
    items = data.trained_items + 1
    assert counting.startswith(f"item-knn: items of the same users: {items} items, ")
    train(data, tmp_path / "counted", model="item-knn", quiet=False)
    assert capsys.readouterr().err.startswith(f"item-knn: items of the same users: {items} items, ")


def test_lists_show_the_group_of_the_history(run):
    found, index, _ = run
    for scorer in ("model", "native"):
        ranking = Recommender(found, index, scorer=scorer).rank(
            history=[{"item": f"i{at}", "features": {"event": "view"}} for at in range(3, 45, 6)],
            k=5,
            exclude_seen=False,
        )
        assert {int(item.id[1:]) % 6 for item in ranking} == {3}
        assert [one.scores["choice"] for one in ranking] == pytest.approx(
            [one.value for one in ranking], abs=1e-5
        )


def test_a_ranking_is_what_evaluation_computed(run, data):
    """The index gives the logits of the model at each request of the test split."""
    found, index, _ = run
    recommender = Recommender(found, index, data, scorer="model")
    requests = data.requests_of("test")[:8]
    predicted = predict(found.ranker, data, requests)
    for request in requests:
        first = data.requests["first"][request]
        ranking = recommender.rank(
            data.user_ids[data.requests["user"][request]],
            k=data.trained_items,
            exclude_seen=False,
            time=int(data.events["time"][first]),
        )
        scores = {item.id: item.scores["choice"] for item in ranking}
        assert len(scores) == data.trained_items
        for position in np.flatnonzero(predicted.requests == request):
            id = data.item_ids[data.events["item"][predicted.rows[position]]]
            assert scores[id] == pytest.approx(predicted.values[position, 0], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_states_of_posted_events_are_what_evaluation_computed(run, data, tmp_path, mode):
    found, index, _ = run
    with SqliteStore(tmp_path / "events.db") as store:
        states = UserStates(found, index, store, mode=mode)
        request = int(data.requests_of("test")[3])
        user = int(data.requests["user"][request])
        start, end = data.event_offsets[user], data.requests["first"][request]
        for row in range(start, end):
            bought = data.events["label_choice"][row] == 3
            event = {
                "user": data.user_ids[user],
                "item": data.item_ids[data.events["item"][row]],
                "time": int(data.events["time"][row]),
                "features": {"event": "purchase" if bought else "view"},
            }
            store.append([event_of(event)])
        now = int(data.events["time"][end])
        ready = states.ready(data.user_ids[user], now=now)
        ranker, batch = found.ranker, data.batch(np.array([request]), 1 << 20)
        with torch.inference_mode():
            vectors = ranker.item_vectors(batch.items)
            terms = gather(ranker.encode_items(vectors[: batch.distinct]), batch.candidates)
            extra = ranker.extra(ready.state, batch.users.keys, batch.candidates)
            torch.testing.assert_close(
                ranker.score(ready.state, terms, extra), ranker(batch), atol=1e-4, rtol=1e-4
            )


def test_positives_of_an_evaluation_are_those_of_its_lists(run):
    measured = evaluate(run[0].path, lists=200)
    assert measured.lists is not None and measured.lists["requests"] > 0
    assert set(measured.tasks["choice"]) == {"auc", "gauc"}


def test_an_evaluation_shows_no_task_without_a_value(run):
    """Positives alone have no AUC: there is nothing that they could rank above."""
    measured = evaluate(run[0].path, lists=20)
    undefined = {"choice": {"auc": math.nan, "gauc": math.nan}}
    slices = [replace(one, tasks=undefined) for one in measured.slices]
    text = replace(measured, tasks=undefined, slices=tuple(slices)).text()
    assert "auc" not in text and "slice" not in text and "effective_links" in text
    (repeats,) = [one.impressions for one in slices if one.name == "repeat"]
    line = f"repeats   {repeats} of {measured.impressions} impressions are of items in the history"
    assert 0 < repeats < measured.impressions and line in text
    assert "seen items in (as limerank rank --seen)" in text
    legend = replace(measured, tasks=undefined).legend()
    assert "auc (" not in legend and "ndcg@k (" in legend


def test_both_objectives_in_one_model(tmp_path):
    """Clicks of shown items, and the items that were bought, of a log with both."""
    spec = write_log(
        tmp_path / "log",
        labels=[
            {"name": "click", "kind": "binary"},
            {"name": "watch", "kind": "duration"},
            {"name": "taken", "kind": "positive", "column": "watch", "at_least": 20.0},
        ],
    )
    prepare(load_spec(spec), tmp_path / "data", base=spec.parent)
    lines = []
    result = train(
        tmp_path / "data",
        tmp_path / "run",
        model=config_of("lime-mha", **MODEL),
        config=TrainConfig(epochs=2, batch_size=64, task_weights={"taken": 0.5}),
        report=lines.append,
    )
    assert result.metric == "taken/loss"
    assert set(result.metrics["taken"]) == {"loss", "hr@10", "ndcg@10"}
    assert {"loss_click", "loss_watch", "loss_taken"} <= set(lines[0])
    assert len(result.calibration) == 3 and list(result.calibration[2]) == [1.0, 0.0]
    data = Dataset(tmp_path / "data")
    assert load_run(tmp_path / "run").ranker.counters is None
    shape = load_run(tmp_path / "run").ranker.shape
    made = objective(data, shape, negatives=0)
    ranker = ranker_of(shape).train()
    (batch,) = made.batches([made.requests[:6]])
    found = made.losses(ranker, batch)
    (alone,) = Impressions(data, shape, TrainConfig()).batches([made.requests[:6]])
    expected = Impressions(data, shape, TrainConfig()).losses(ranker, alone)
    assert set(expected) == {"click", "watch"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    exact = objective(data, shape, negatives=0, exact=True)
    (batch,) = exact.batches([made.requests[:6]])
    assert all(torch.isfinite(loss) for loss in exact.losses(ranker, batch).values())


def test_the_objective_follows_from_the_labels(data, shape):
    assert objective_of(None, shape.tasks) is Catalogue
    with pytest.raises(SpecError, match="kind positive: impressions without negatives"):
        objective_of("impressions", shape.tasks).tasks(shape, TrainConfig())


def test_what_cannot_be_trained_is_refused_before_the_first_step(data, tmp_path):
    nothing = object.__new__(Dataset)
    nothing.__dict__.update(data.__dict__)
    split = np.where(data.requests["split"] == 1, 2, data.requests["split"])
    nothing.requests = {**data.requests, "split": split}
    with pytest.raises(DataError, match="no requests in its validation split"):
        train(nothing, tmp_path / "run", model=config_of("lime-mha", **SMALL))
    zero = object.__new__(Dataset)
    zero.__dict__.update(data.__dict__)
    held = data.impression_rows(data.requests_of("validation"))
    label = np.array(data.events["label_choice"])
    label[held] = 0
    zero.events = {**data.events, "label_choice": label}
    with pytest.raises(DataError, match="no positive of 'choice' in its validation split"):
        train(zero, tmp_path / "run", model=config_of("lime-mha", **SMALL))
    assert not (tmp_path / "run").exists()


def test_examples_move_to_a_device(data, shape):
    made = objective(data, shape, negatives=5)
    (batch,) = made.batches([made.requests[:2]])
    moved = batch.to("meta")
    assert isinstance(moved, Requests) and moved.log_inclusion.is_meta
    assert moved.batch.shared.is_meta and replace(moved, impressions=1).impressions == 1
    assert batch.unpadded <= batch.computed
