"""Rankings: histories of the log or given on the spot, candidates, new items, unknown ids."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
import torch
from rich.cells import cell_len

from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.errors import DataError, FingerprintError, FormatError, SpecError, UnknownError
from limerank.evaluation.predict import predict
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models.tasks import predictions
from limerank.ranking.recommender import Recommender
from limerank.ranking.results import Ranked, Ranking
from tests.catalogues import ITEMS, MODELS, counted_at_the_end, data, folder, make_run, shop


@pytest.fixture(params=[*MODELS, "anchored"])
def of(request):
    """Of every model, and of one with anchored links."""
    return shop("lime-mha", anchors=None) if request.param == "anchored" else shop(request.param)


@pytest.fixture
def recommender(of):
    return Recommender(of.run, of.index, of.data, scorer="model")


def events_of(of, user):
    """Event rows of a user."""
    row = np.flatnonzero(of.data.user_ids == user)[0]
    return np.arange(*of.data.event_offsets[row : row + 2])


def values(ranking):
    return pytest.approx([item.value for item in ranking], abs=1e-5)


def same(one, other):
    """Whether two rankings have the same values, up to float rounding."""
    return [item.value for item in one] == values(other)


# The keystone: a ranking is what evaluation computes


def test_a_ranking_as_of_a_request_is_what_evaluation_computed(of, recommender, monkeypatch):
    """Ask at the time of the test split's requests: the same history, context and scores."""
    monkeypatch.setattr(Dataset, "counted_at", counted_at_the_end)
    requests = of.data.requests_of("test")
    predicted = predict(of.run.ranker, of.data, requests)
    checked = 0
    for request in requests[:8]:
        first, count = of.data.requests["first"][request], of.data.requests["count"][request]
        shown = of.data.item_ids[of.data.events["item"][first : first + count]]
        ranking = recommender.rank(
            of.data.user_ids[of.data.requests["user"][request]],
            k=count,
            candidates=shown,
            exclude_seen=False,
            time=int(of.data.events["time"][first]),
        )
        assert ranking.events == of.data.history_lengths(np.array([request]), 20)[0]
        scores = {item.id: item.scores for item in ranking}
        for position in np.flatnonzero(predicted.requests == request):
            id = of.data.item_ids[of.data.events["item"][predicted.rows[position]]]
            expected = dict(zip(of.data.tasks, predicted.values[position].tolist(), strict=True))
            assert scores[id] == pytest.approx(expected, rel=1e-4)
            checked += 1
    assert checked > 10


def test_a_history_given_here_is_the_log_s(of, recommender):
    """The events of the log, given as mappings: the same ranking."""
    user = of.data.user_ids[3]
    rows, events = events_of(of, user), of.data.events
    history = [
        {
            "item": of.data.item_ids[events["item"][row]],
            "time": int(events["time"][row]),
            "labels": {name: float(events[f"label_{name}"][row]) for name in of.data.tasks},
        }
        for row in rows
    ]
    expected = recommender.rank(user, k=ITEMS)
    newest_first = sorted(history, key=lambda event: -event["time"])  # of one instant: as they were
    found = recommender.rank(user, history=newest_first, k=ITEMS)
    assert [item.id for item in found] == [item.id for item in expected]
    assert same(found, expected)
    as_datetimes = [
        {**event, "time": datetime.fromtimestamp(event["time"] / 1000, UTC)} for event in history
    ]
    again = recommender.rank(user, history=as_datetimes, k=ITEMS)
    assert same(again, found)


def test_scores_are_probabilities_and_seconds(of, recommender):
    ranking = recommender.rank(of.data.user_ids[0], k=5)
    tasks = of.run.ranker.shape.tasks
    values = [item.value for item in ranking]
    assert values == sorted(values, reverse=True)
    for item in ranking:
        assert list(item.scores) == ["click", "watch"]
        # The first task alone ranks: its logit is the ranking value.
        logits = torch.tensor([item.value, np.log(item.scores["watch"] / tasks[1].mean)])
        expected = predictions(logits, tasks).tolist()
        assert list(item.scores.values()) == pytest.approx(expected, rel=1e-4)


def test_task_weights(of, recommender):
    user = of.data.user_ids[0]
    by_watch = recommender.rank(user, k=9, task_weights={"watch": 1.0})
    seconds = [item.scores["watch"] for item in by_watch]
    assert seconds == sorted(seconds, reverse=True)
    with pytest.raises(UnknownError, match="no task is called 'like'; known: 'click', 'watch'"):
        recommender.rank(user, task_weights={"like": 1.0})


# What is ranked


def test_seen_items_are_left_out(of, recommender):
    user = of.data.user_ids[1]
    seen = set(of.data.item_ids[of.data.events["item"][events_of(of, user)]])
    ranking = recommender.rank(user, k=ITEMS)
    assert len(ranking) == ITEMS - len(seen) and ranking.candidates == ITEMS
    assert not seen & {item.id for item in ranking}
    assert len(recommender.rank(user, k=ITEMS, exclude_seen=False)) == ITEMS
    assert {item.id for item in recommender.rank(history=[3, 4], k=ITEMS)} == set(
        of.data.item_ids.tolist()
    ) - {3, 4}


def test_candidates(of, recommender):
    ranking = recommender.rank("nobody", candidates=[7, "9", 11, 7], k=20)
    assert {item.id for item in ranking} == {7, 9, 11} and ranking.candidates == 3
    full = [item for item in recommender.rank("nobody", k=ITEMS) if item.id in (7, 9, 11)]
    assert [item.id for item in full] == [item.id for item in ranking]
    assert len(recommender.rank("nobody", candidates=[])) == 0
    unknown = [7, *range(1000, 1012), "x"]
    with pytest.raises(UnknownError, match=r"13 of 14 candidates .* and 3 more"):
        recommender.rank("nobody", candidates=unknown)


def test_wrong_arguments(recommender):
    with pytest.raises(SpecError, match="k is 0"):
        recommender.rank(k=0)
    with pytest.raises(UnknownError, match=r"1 of 2 items of the history .* 'x'"):
        recommender.rank(history=[1, "x"])
    with pytest.raises(UnknownError, match="no label is called 'like'"):
        recommender.rank(history=[{"item": 1, "labels": {"like": 1}}])
    with pytest.raises(UnknownError, match="no context feature is called 'tab'; known: none"):
        recommender.rank(context={"tab": 1})
    with pytest.raises(UnknownError, match="no event feature is called 'tab'"):
        recommender.rank(history=[{"item": 1, "features": {"tab": 1}}])
    wrong = [
        {"item": 1, "labels": {"click": 2}},
        {"item": 1, "labels": {"watch": -1.0}},
        {"item": 1, "click": 1},
        {"labels": {}},
        {"item": 1, "time": "yesterday"},
        {"item": 1, "time": float("nan")},
    ]
    for event in wrong:
        with pytest.raises(DataError):
            recommender.rank(history=[event])
    with pytest.raises(DataError, match="1 of 2 events of the history have no time"):
        recommender.rank(history=[{"item": 1, "time": 5}, 2])


@pytest.mark.parametrize("user", ["", "  ", True, 2.0**53, float("nan"), b"7", [7], "x" * 257])
def test_a_user_that_is_not_an_id_is_refused_as_such(recommender, user):
    with pytest.raises(DataError, match="the user id"):
        recommender.rank(user)


def test_users_nobody_knows(of, recommender):
    """No history, no features: the same for all of them, and no dataset is needed."""
    alone = Recommender(of.run, of.index, folder() / "no such dataset", scorer="model")
    ranking = alone.rank(k=10)
    assert not ranking.known and ranking.events == 0 and len(ranking) == 10
    named = recommender.rank("nobody", k=10)
    assert same(named, ranking)
    # A history given here does not need it either, and changes the ranking.
    changed = alone.rank(history=[1, 2, 3], k=10)
    assert not same(changed, ranking)
    with pytest.raises(FormatError, match="not a dataset"):
        alone.rank(of.data.user_ids[0])


def test_ids_alone_are_liked_items_in_order(of, recommender):
    given = recommender.rank(history=[4, 8, 15], k=5)
    events = [{"item": item, "labels": {"click": 1}} for item in (4, 8, 15)]
    assert same(recommender.rank(history=events, k=5), given)
    unknown = [{"item": item} for item in (4, 8, 15)]
    assert not same(recommender.rank(history=unknown, k=5), given)
    last = recommender.run.manifest["summary"]["time"]["last"]
    spaced = [{**event, "time": last - 60_000 * (3 - n)} for n, event in enumerate(events)]
    assert same(recommender.rank(history=spaced, k=5), given)


def test_only_events_before_the_time_count(of, recommender):
    user = of.data.user_ids[2]
    rows = events_of(of, user)
    times = of.data.events["time"][rows]
    middle = int(times[len(times) // 2])
    ranking = recommender.rank(user, time=middle, k=1)
    assert ranking.events == min(20, int((times < middle).sum()))
    assert recommender.rank(user, time=int(times[0]), k=1).events == 0
    moment = datetime.fromtimestamp(middle / 1000, UTC)
    assert same(recommender.rank(user, time=moment, k=1), ranking)
    assert same(recommender.rank(user, time=moment.replace(tzinfo=None), k=1), ranking)
    assert same(recommender.rank(user, time=moment.isoformat(), k=1), ranking)


def test_a_time_years_off_the_log_is_refused_with_a_hint(of, recommender):
    now = recommender.form.log_end
    for wrong, meant in ((now // 1000, "seconds"), (now * 1000, "microseconds")):
        with pytest.raises(DataError, match=f"years off the log.*did you mean .*{meant}"):
            recommender.rank(of.data.user_ids[0], time=wrong)
        with pytest.raises(DataError, match="years off the log"):
            recommender.rank(history=[{"item": int(of.data.item_ids[1]), "time": wrong}])
    assert recommender.rank(of.data.user_ids[0], time=now + 365 * 86_400_000, k=1)


def test_rankings_from_bytes_are_close():
    of = shop("lime-xor")
    exact, native = (
        Recommender(of.run, of.index, of.data, scorer=name) for name in ("model", "native")
    )
    assert Recommender(of.run, of.index, of.data).scorer.name == "native"
    for user in of.data.user_ids[:5]:
        a, b = ({item.id: item.value for item in r.rank(user, k=ITEMS)} for r in (exact, native))
        assert a.keys() == b.keys()
        assert max(abs(a[id] - b[id]) for id in a) < 0.1


# New items


def test_new_items_are_ranked_and_may_stand_in_histories(tmp_path):
    of = shop("lime-mha")
    (tmp_path / "new.csv").write_text(
        "item_id,group,tags,length\n5,g0,t2|t5,15\n1000,g1,t0,20\n1001,g2,t1,30\n"
    )
    build_index(of.run, tmp_path / "index", data=of.data, items=tmp_path / "new.csv", merge=True)
    recommender = Recommender(of.run, tmp_path / "index", of.data, scorer="model")
    ranking = recommender.rank(history=[1000, 5], k=ITEMS + 2)
    assert 1001 in {item.id for item in ranking} and 1000 not in {item.id for item in ranking}
    assert recommender.rank(history=[1000], candidates=[1001, 5], explain=2)[0].because(9) in (
        [],
        [1000],
    )
    # An index of new items alone: histories of the log hold items that it lacks.
    build_index(of.run, tmp_path / "alone", items=tmp_path / "new.csv")
    alone = Recommender(of.run, tmp_path / "alone", of.data, scorer="model")
    for user in of.data.user_ids[:4]:
        few = alone.rank(user, exclude_seen=False, candidates=[1000, 1001])
        both = recommender.rank(user, exclude_seen=False, candidates=[1000, 1001])
        assert few.events == both.events > 0
        assert [item.id for item in few] == [item.id for item in both]
        np.testing.assert_allclose(
            [item.value for item in few], [item.value for item in both], atol=1e-4
        )


def test_another_run_s_index_is_refused():
    with pytest.raises(FingerprintError):
        Recommender(shop("lime-mha").run, shop("lime-xor").index)
    with pytest.raises(FingerprintError):
        Recommender(shop("lime-mha").run.path, shop("lime-xor").index.path)


# Logs of other kinds


def test_a_log_with_context_features_and_filtered_events(tmp_path):
    """Event features, a context feature, histories of clicks alone, and an order for a clock."""
    rng = np.random.default_rng(0)
    n = 600
    (tmp_path / "log").mkdir()
    pl.DataFrame(
        {
            "user_id": rng.integers(0, 12, n),
            "item_id": rng.integers(0, 25, n),
            "pos": np.arange(n),
            "click": rng.integers(0, 2, n),
            "tab": rng.choice(["home", "search"], n),
            "speed": rng.normal(size=n),
        }
    ).write_parquet(tmp_path / "log" / "events.parquet")
    spec = Spec.model_validate(
        {
            "name": "ordered",
            "events": [{"files": ["events.parquet"], "order": "pos"}],
            "labels": [{"name": "click", "kind": "binary"}],
            "event_features": [
                {"name": "tab", "kind": "categorical", "when": "context"},
                {"name": "speed", "kind": "numeric"},
            ],
            "split": {"by": "position"},
            "history": {"length": 16, "keep": "click"},
        }
    )
    prepare(spec, tmp_path / "data", base=tmp_path / "log")
    dataset = Dataset(tmp_path / "data")
    run = make_run(tmp_path / "run", dataset, model="lime-xor")
    build_index(run, tmp_path / "index", data=dataset)
    recommender = Recommender(run, tmp_path / "index", dataset, scorer="model")

    request = dataset.requests_of("test")[3]
    predicted = predict(run.ranker, dataset, np.array([request]))
    first = dataset.requests["first"][request]
    user = dataset.user_ids[dataset.requests["user"][request]]
    tab = pl.read_parquet(tmp_path / "data" / "vocab" / "event_tab.parquet")
    names = dict(zip(tab["code"], tab["value"], strict=True))
    shown = dataset.item_ids[dataset.events["item"][predicted.rows]]
    given = {
        "candidates": shown,
        "exclude_seen": False,
        "time": int(dataset.events["time"][first]),
        "context": {"tab": names[int(dataset.events["feature_tab"][first])]},
    }
    ranking = recommender.rank(user, **given)
    scores = {item.id: item.scores["click"] for item in ranking}
    for id, value in zip(shown, predicted.values[:, 0], strict=True):
        assert scores[id] == pytest.approx(value, rel=1e-4)

    # The same events given here, all of them: those without a click stay out of the history.
    log = pl.read_parquet(tmp_path / "log" / "events.parquet").filter(
        (pl.col("user_id") == int(user)) & (pl.col("pos") < given["time"])
    )
    history = [
        {
            "item": row["item_id"],
            "time": row["pos"],
            "labels": {"click": row["click"]},
            "features": {"tab": row["tab"], "speed": row["speed"]},
        }
        for row in log.iter_rows(named=True)
    ]
    again = recommender.rank(user, **given, history=history)
    assert again.events == ranking.events < len(history)
    assert same(again, ranking)
    other = recommender.rank(user, **{**given, "context": {"tab": "never seen"}})
    unknown = recommender.rank(user, **{**given, "context": None})
    assert same(other, unknown) and not same(other, ranking)
    assert recommender.rank(history=[1, 2, 3]).events == 3
    numeric = [{"item": 1, "labels": {"click": 1}, "features": {"speed": None, "tab": None}}]
    assert recommender.rank(history=numeric).events == 1


def test_events_that_belong_to_no_request_are_history(tmp_path):
    """Of a user who was never shown anything, and after the last impression of one who was."""
    rng = np.random.default_rng(0)
    shown = pl.DataFrame(
        {
            "user_id": np.repeat([1, 2, 3, 4], 20),
            "item_id": rng.integers(0, 9, 80),
            "time": np.tile(np.arange(20) * 10_000, 4) + 1_700_000_000,
            "click": rng.integers(0, 2, 80),
        }
    )
    shown.write_parquet(tmp_path / "shown.parquet")
    hidden = {"user_id": [1, 1, 1, 8], "item_id": [30, 31, 32, 33], "click": [1] * 4}
    times = [1_700_000_005, 1_700_900_000, 1_700_900_001, 1_700_000_000]
    pl.DataFrame({**hidden, "time": times}).write_parquet(tmp_path / "hidden.parquet")
    spec = Spec.model_validate(
        {
            "name": "two sources",
            "events": [
                {"files": ["shown.parquet"], "time": "time"},
                {"files": ["hidden.parquet"], "time": "time", "shown": False},
            ],
            "labels": [{"name": "click", "kind": "binary"}],
        }
    )
    prepare(spec, tmp_path / "data", base=tmp_path)
    dataset = Dataset(tmp_path / "data")
    run = make_run(tmp_path / "run", dataset, model="lime-mha")
    build_index(run, tmp_path / "index", data=dataset)
    recommender = Recommender(run, tmp_path / "index", dataset)
    for user, events in ((1, 23), (2, 20), (8, 1)):
        ranking = recommender.rank(user, k=50)
        assert ranking.known and ranking.events == events
    assert not {30, 31, 32} & {item.id for item in recommender.rank(1, k=50)}
    assert 33 not in {item.id for item in recommender.rank(8, k=50)}


# The command


def test_the_command_prints_a_table_or_json(call):
    of = shop("lime-mha")
    common = ["rank", "--run", of.run.path, "--index", of.index.path, "-k", 3, "--explain"]
    status, text, _ = call(*common, "--user", 4)
    assert status == 0
    assert text.startswith("user 4, 20 events: the best of 90 items")
    assert "click" in text and "watch" in text and "because of" in text
    assert len(text.splitlines()) == 2 + 3
    status, text, _ = call(*common, "--history", "1,2", "--candidates", "5,6", "--json")
    assert status == 0
    found = json.loads(text)
    assert found["known"] is False and found["events"] == 2 and found["candidates"] == 2
    assert {item["id"] for item in found["items"]} == {5, 6}
    assert all(reason["item"] in (1, 2) for item in found["items"] for reason in item["because"])
    status, _, error = call(*common, "--user", 4, "--scorer", "fast")
    assert status == 2 and "no scorer 'fast'" in error


def test_nothing_left_to_rank():
    of = shop("two-tower")
    ranking = Recommender(of.run, of.index, of.data).rank(history=[5], candidates=[5])
    assert len(ranking) == 0 and "nothing is left" in ranking.text()


def test_an_index_copied_elsewhere_works(tmp_path):
    of = shop("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")
    index = Index.open(tmp_path / "index")
    ranking = Recommender(of.run, index, data()).rank(of.data.user_ids[0], k=3)
    assert ranking == replace(ranking, milliseconds={}) and len(ranking[:2]) == 2


FORKED = """
import multiprocessing, sys, torch
from limerank import Recommender
torch.set_num_threads(2)
recommender = Recommender(*sys.argv[1:4], scorer=sys.argv[4])
user = recommender.dataset.user_ids[3]
def rank(queue):
    one = [item.id for item in recommender.rank(user, k=5)]
    many = recommender.rank_users(recommender.user_rows([user]), k=5).rows.tolist()
    queue.put((one, many, torch.get_num_threads()))
torch.randn(1500, 1500) @ torch.randn(1500, 1500)  # torch's threads are running
ours = rank(here := multiprocessing.SimpleQueue()) or here.get()
context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=rank, args=(queue,))
child.start()
theirs = queue.get(timeout=60)
child.join()
assert theirs == (*ours[:2], 1), (ours, theirs)
assert torch.get_num_threads() == 2
print("the same")
"""


@pytest.mark.parametrize("scorer", ["native", "model"])
def test_a_forked_process_ranks_as_its_parent(scorer):
    of = shop("lime-mha")
    paths = [of.run.path, of.index.path, of.data.path]
    command = [sys.executable, "-W", "ignore", "-c", FORKED, *map(str, paths), scorer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("the same\n", "")


def test_a_gpu_is_refused_after_a_fork(monkeypatch):
    of = shop("lime-mha")
    recommender = Recommender(of.run, of.index, of.data)
    recommender._device = torch.device("cuda")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(SpecError, match="a GPU cannot be used after a fork"):
        recommender.rank(3)


@pytest.mark.parametrize("model", ["lime-xor", "two-tower"])
def test_a_recommender_is_pickled_as_its_folders_and_settings(model, tmp_path, monkeypatch):
    of = shop(model)
    monkeypatch.chdir(of.run.path.parent)
    recommender = Recommender(of.run.path.name, of.index.path.name, of.data, scorer="model")
    ours = recommender.rank(3, k=5)
    packed = pickle.dumps(recommender)
    assert len(packed) < 1000
    monkeypatch.chdir(tmp_path)
    opened = pickle.loads(packed)
    theirs = opened.rank(3, k=5)
    assert [item.id for item in theirs] == [item.id for item in ours] and theirs.known
    assert opened.scorer.name == "model"
    with pytest.raises(SpecError, match="give the scorer's name"):
        pickle.dumps(Recommender(of.run, of.index, scorer=recommender.scorer))


def test_a_run_that_was_replaced_since_is_not_taken_for_the_pickled_one(tmp_path):
    of = shop("lime-mha")
    shutil.copytree(of.run.path, tmp_path / "run")
    packed = pickle.dumps(Recommender(tmp_path / "run", of.index, of.data))
    shutil.copy(shop("lime-xor").run.path / "config.json", tmp_path / "run")
    shutil.copy(shop("lime-xor").run.path / "model.safetensors", tmp_path / "run")
    with pytest.raises(FingerprintError, match="when the Recommender was pickled"):
        pickle.loads(packed)


def test_weights_of_tasks_are_finite_numbers_of_tasks_that_exist():
    of = shop("lime-mha")
    recommender = Recommender(of.run, of.index, of.data)
    with pytest.raises(
        UnknownError, match=r"'klick'; known: 'click', 'watch'; did you mean 'click'"
    ):
        recommender.rank(3, task_weights={"klick": 1.0})
    for wrong in ("1", None, float("nan"), float("inf")):
        with pytest.raises(SpecError, match=r"the weight of task 'click' is .*finite number"):
            recommender.rank(3, task_weights={"click": wrong})


def test_candidates_that_cannot_be_ranked_are_skipped_and_counted():
    of = shop("lime-mha")
    recommender = Recommender(of.run, of.index, of.data)
    ids = of.data.item_ids[:3].tolist()
    asked = {"exclude_seen": False, "skip_unknown": True}
    ranking = recommender.rank(3, candidates=[*ids, "nobody", -5], **asked)
    assert ranking.skipped == ranking.to_dict()["skipped"] == 2
    assert sorted(item.id for item in ranking) == sorted(ids)
    assert recommender.rank(3, candidates=ids, **asked).skipped == 0
    alone = recommender.rank(3, candidates=ids)
    assert alone.skipped is None and "skipped" not in alone.to_dict()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"k": 2.5}, SpecError, "k is 2.5, expected an integer, at least 1"),
        ({"k": "5"}, SpecError, "k is '5'"),
        ({"k": None}, SpecError, "k is None"),
        ({"k": True}, SpecError, "k is True"),
        ({"explain": "x"}, SpecError, "explain is 'x', expected an integer, at least 0"),
        ({"explain": -1}, SpecError, "explain is -1"),
        ({"task_weights": "click"}, SpecError, "task_weights is 'click', expected a mapping"),
        ({"task_weights": ["click"]}, SpecError, r"task_weights is \['click'\]"),
        ({"history": 2}, DataError, "the history is 2, expected a list of events"),
        ({"history": "i1"}, DataError, "the history is 'i1'"),
        ({"history": {"item": 2}}, DataError, "the history is {'item': 2}"),
        ({"candidates": np.ones((2, 3))}, DataError, r"candidates are an array of shape \(2, 3\)"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(wrong, error, message):
    of = shop("lime-mha")
    with pytest.raises(error, match=message):
        Recommender(of.run, of.index, of.data).rank(**{"user": 3, **wrong})


def test_threads_are_an_integer():
    of = shop("lime-mha")
    with pytest.raises(SpecError, match="threads is '2', expected an integer, at least 1"):
        Recommender(of.run, of.index, of.data, threads="2")


def test_the_same_request_gives_an_equal_ranking_and_tables_that_join(of):
    recommender = Recommender(of.run, of.index, of.data)
    explained = recommender.rank(3, k=2, explain=2)
    assert explained == recommender.rank(3, k=2, explain=2)
    assert hash(explained) == hash(recommender.rank(3, k=2, explain=2))
    assert explained != recommender.rank(3, k=2)
    others = [
        recommender.rank("nobody", k=2, candidates=[]),
        recommender.rank(history=[1], k=3),
        explained[:1],
    ]
    joined = pl.concat([explained.to_polars(), *(other.to_polars() for other in others)])
    assert joined["item"].dtype == pl.Int64 and joined["user"].dtype == pl.String
    assert joined["user"].to_list() == ["3", "3", None, None, None, "3"]


def test_long_names_keep_the_columns_of_a_ranking_apart():
    names = ("interacted_with", "added_to_the_basket_again")
    items = [
        Ranked(id, 0, 0.0, dict.fromkeys(names, 123456.0), None) for id in (7, "東京", "x" * 40)
    ]
    lines = Ranking(tuple(items), 1, True, 0, 3).text().splitlines()
    assert lines[1].split() == ["item", *names]
    assert all(line.split()[2:] == ["123456.0000"] * 2 for line in lines[2:])
    assert len({cell_len(line) for line in lines[1:]}) == 1
