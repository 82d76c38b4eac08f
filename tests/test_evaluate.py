"""Evaluation is exact, covers every impression, and does not see the future."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from limerank import metrics
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import FingerprintError, FormatError, UnknownError
from limerank.evaluation import slices
from limerank.evaluation.evaluate import Evaluation, Slice, evaluate
from limerank.evaluation.list_metrics import evaluate_lists
from limerank.evaluation.lists import draw_requests
from limerank.evaluation.predict import effective_links, predict
from limerank.evaluation.slices import repeats, slice_values
from limerank.models.config import TrainConfig
from limerank.models.tasks import predictions
from limerank.runs.folder import load_run
from limerank.training.trainer import train
from tests.worlds import config_of, prepare_log, write_log

MODEL = {"width": 16, "heads": 2, "links": 4, "blocks": 2, "hidden": 8}
CONFIG = TrainConfig(epochs=1, batch_size=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_log(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module", params=["lime-mha", "lime-xor", "two-tower"])
def run(request, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    train(data, out, model=config_of(request.param, **MODEL), config=CONFIG)
    return out


def test_each_impression_is_scored_once(run, data):
    loaded, dataset = load_run(run), Dataset(data)
    requests = dataset.requests_of("test")
    predicted = predict(loaded.ranker, dataset, requests, impressions=16)
    assert (
        len(np.unique(predicted.rows))
        == len(predicted.rows)
        == dataset.requests["count"][requests].sum()
    )
    np.testing.assert_array_equal(
        predicted.labels[:, 0], dataset.events["label_click"][predicted.rows]
    )
    for request in requests[:7]:
        hours = loaded.ranker.config.counter_hours if loaded.ranker.counters else 0
        batch = dataset.batch(np.array([request]), counted=hours)
        with torch.inference_mode():
            alone = predictions(loaded.ranker(batch)[0], loaded.ranker.shape.tasks)
        np.testing.assert_allclose(
            predicted.values[predicted.requests == request], alone.numpy(), rtol=1e-4, atol=1e-6
        )


def test_metrics_are_those_of_the_predictions(run, data, tmp_path):
    dataset = Dataset(data)
    result = evaluate(run, out=tmp_path / "m.json")
    assert result.to_dict() == json.loads((tmp_path / "m.json").read_text())
    assert repr(Evaluation.read(tmp_path / "m.json")) == repr(result)
    predicted = predict(load_run(run).ranker, dataset, dataset.requests_of("test"))
    users = dataset.requests["user"][predicted.requests]
    click = result.tasks["click"]
    assert click["auc"] == metrics.auc(predicted.labels[:, 0], predicted.values[:, 0])
    assert click["gauc"] == metrics.gauc(predicted.labels[:, 0], predicted.values[:, 0], users)
    assert result.tasks["watch"]["xauc"] == metrics.xauc(
        predicted.labels[:, 1], predicted.values[:, 1]
    )
    for kind in ("candidate", "history", "item impressions", "user days", "item days"):
        parts = [part for part in result.slices if part.kind == kind]
        assert sum(part.impressions for part in parts) == result.impressions
    text = result.text()
    assert f"{click['auc']:.4f}" in text
    assert "full catalogue of 30 items" in text
    table = result.to_polars()
    assert table["impressions"][0] == result.impressions
    assert table["click/auc"][0] == click["auc"]
    assert len(table) == 1 + len(result.slices)
    undefined = [part for part in result.slices if not part.impressions]
    assert table["click/auc"].null_count() >= len(undefined)


def test_another_split_is_written_beside_the_first(run):
    evaluate(run, lists=0)
    before = (run / "metrics.json").read_bytes()
    evaluate(run, lists=0, split="validation", history=5, at_least=2)
    assert (run / "metrics.json").read_bytes() == before
    found = json.loads((run / "metrics-validation-history-5-at-least-2.json").read_text())
    assert (found["split"], found["history"], found["at_least"]) == ("validation", 5, 2)


def test_predictions_are_written_to_look_at(run, data, tmp_path):
    path = tmp_path / "predictions.parquet"
    result = evaluate(run, out=tmp_path / "metrics.json", lists=0, predictions=path)
    predicted, dataset = pl.read_parquet(path), Dataset(data)
    assert len(predicted) == result.impressions
    auc = metrics.auc(predicted["click"].to_numpy(), predicted["click_predicted"].to_numpy())
    assert auc == result.tasks["click"]["auc"]
    log = pl.read_parquet(data.parent / "log" / "events.parquet")
    keys = {"user": "user_id", "item": "item_id"}
    both = predicted.with_columns(time=pl.col("time") // 1000).join(
        log, left_on=[*keys, "time"], right_on=[*keys.values(), "time"]
    )
    assert len(both) >= len(predicted)
    assert (both["click"] == both["click_right"]).all()
    counts = dict(zip(dataset.item_ids, dataset.train_count, strict=True))
    assert predicted["item_impressions"].to_list() == [counts[item] for item in predicted["item"]]
    begun = log.group_by("user_id").agg(pl.col("time").min())
    first = log.group_by("item_id").agg(pl.col("time").min())
    day = 24 * 3600
    for ours, since in (("user", begun), ("item", first)):
        known = dict(since.iter_rows())
        days = [
            (time // 1000 - known[one]) // day
            for one, time in zip(predicted[ours], predicted["time"], strict=True)
        ]
        assert predicted[f"{ours}_days"].to_list() == days
        assert max(days) >= 1
    earlier = {
        (e["user_id"], e["item_id"]): e["time"]
        for e in log.sort("time", descending=True).iter_rows(named=True)
    }
    seen = [
        earlier[one["user"], one["item"]] < one["time"] // 1000
        for one in predicted.iter_rows(named=True)
    ]
    assert predicted["repeat"].cast(pl.Boolean).to_list() == seen
    repeated = next(p for p in result.slices if (p.kind, p.name) == ("candidate", "repeat"))
    assert repeated.impressions == sum(seen) > 10
    young = next(p for p in result.slices if (p.kind, p.name) == ("history", "1-9"))
    assert predicted["history"].is_between(1, 9).sum() == young.impressions


def test_a_log_without_a_clock_has_no_slices_by_days(run, data):
    dataset = Dataset(data)
    predicted = predict(load_run(run).ranker, dataset, dataset.requests_of("test")[:3])
    clocked = slice_values(predicted, dataset)
    dataset.clock = False
    assert (
        list(slice_values(predicted, dataset))
        == list(clocked)[:3]
        == ["candidate", "history", "item impressions"]
    )


@pytest.mark.parametrize("at_once", [1, 60, 1 << 20])
@pytest.mark.parametrize("history", [{"length": 3}, {"length": 3, "keep": "click"}])
def test_a_repeat_is_an_item_that_the_full_history_holds(tmp_path, monkeypatch, history, at_once):
    dataset = Dataset(prepare_log(tmp_path, history=history))
    monkeypatch.setattr(slices, "EVENTS_AT_ONCE", at_once)
    requests = np.random.default_rng(0).permutation(len(dataset.requests["user"]))
    rows = dataset.impression_rows(requests)
    owners = np.repeat(requests, dataset.requests["count"][requests])
    items = dataset.events["item"][rows]
    expected = []
    for owner, item in zip(owners, items, strict=True):
        before = np.arange(
            dataset.requests["history_start"][owner], dataset.requests["history_end"][owner]
        )
        before = before if dataset.retained is None else dataset.retained[before]
        expected.append(item in dataset.events["item"][before])
    assert 0 < sum(expected) < len(expected)
    np.testing.assert_array_equal(repeats(dataset, owners, items), expected)
    assert repeats(dataset, owners[:0], items[:0]).shape == (0,)


def test_ranks_over_the_catalogue_by_hand(run, data):
    dataset, ranker = Dataset(data), load_run(run).ranker
    requests = dataset.requests_of("test")[:12]
    ranks = []
    vectors = ranker.item_vectors(dataset.item_batch(np.arange(len(dataset.items))))
    terms = ranker.encode_items(vectors)
    for request in requests:
        batch = dataset.batch(np.array([request]))
        own = ranker.item_vectors(batch.items)
        scores = ranker.score(ranker.encode_users(batch.users, own), terms)[0, :, 0].tolist()
        start = dataset.requests["history_start"][request]
        seen = set(
            dataset.events["item"][start : dataset.requests["history_end"][request]].tolist()
        )
        first = dataset.requests["first"][request]
        shown = range(first, first + dataset.requests["count"][request])
        liked = {int(dataset.events["item"][r]) for r in shown if dataset.events["label_click"][r]}
        order = sorted((item for item in range(30) if item not in seen), key=lambda i: -scores[i])
        found = sorted(order.index(item) + 1 for item in liked - seen)
        if found:
            ranks.append(found)
    result = evaluate_lists(ranker, dataset, requests, peers=False)
    assert result.requests == len(ranks)
    expected = np.mean([1 / found[0] for found in ranks])
    assert result.metrics["mrr"] == pytest.approx(expected)


def test_shuffling_the_future_changes_nothing_in_the_scores_of_the_past(tmp_path):
    """Two logs that are equal before an instant inside the test window, and not after it."""
    write_log(tmp_path / "one", users=60)
    events = pl.read_parquet(tmp_path / "one" / "events.parquet").sort("time", maintain_order=True)
    cuts = [events["time"][int(share * len(events))] for share in (0.7, 0.8, 0.9)]
    texts = [pl.Series([cut]).cast(pl.Int64).item() for cut in cuts]
    split = {
        "validation_from": pl.from_epoch(pl.Series([texts[0]])).dt.strftime("%Y-%m-%dT%H:%M:%SZ")[
            0
        ],
        "test_from": pl.from_epoch(pl.Series([texts[1]])).dt.strftime("%Y-%m-%dT%H:%M:%SZ")[0],
    }
    write_log(tmp_path / "two", users=60)
    rng = np.random.default_rng(7)
    later = events.filter(pl.col("time") >= cuts[2])
    order = rng.permutation(len(later))
    mixed = later.with_columns(
        later["item_id"].gather(order), 1 - later["click"], later["watch"].gather(order) * 3
    )
    pl.concat([events.filter(pl.col("time") < cuts[2]), mixed]).write_parquet(
        tmp_path / "two" / "events.parquet"
    )
    folders = []
    for name in ("one", "two"):
        path = write_log_spec(tmp_path / name, split)
        prepare(load_spec(path), tmp_path / f"data-{name}", base=path.parent)
        folders.append(Dataset(tmp_path / f"data-{name}"))
    train(folders[0], tmp_path / "run", model=config_of("lime-xor", **MODEL), config=CONFIG)
    loaded = load_run(tmp_path / "run")
    predicted = []
    for dataset in (loaded.dataset(), loaded.dataset(folders[1].path)):
        times = dataset.events["time"][dataset.requests["first"]]
        past = np.flatnonzero(times < cuts[2] * 1000)
        found = predict(loaded.ranker, dataset, past)
        keys = list(
            zip(
                dataset.user_ids[dataset.requests["user"][found.requests]].tolist(),
                dataset.events["time"][found.rows].tolist(),
                dataset.item_ids[dataset.events["item"][found.rows]].tolist(),
                strict=True,
            )
        )
        predicted.append(dict(zip(keys, found.values.tolist(), strict=True)))
    assert len(predicted[0]) > 500
    assert predicted[0].keys() == predicted[1].keys()
    for key, value in predicted[0].items():
        assert value == pytest.approx(predicted[1][key], rel=1e-4, abs=1e-6)


def write_log_spec(folder: Path, split: dict[str, str]) -> Path:
    """Put explicit cut points into a log's description."""
    import tomllib

    import tomli_w

    path = folder / "spec.toml"
    values = tomllib.loads(path.read_text())
    path.write_text(tomli_w.dumps({**values, "split": split}))
    return path


def test_a_log_without_what_the_run_reads_is_refused(run, tmp_path):
    labels = [{"name": "click", "kind": "binary"}]
    other = prepare_log(tmp_path, seed=5, users=30, labels=labels)
    with pytest.raises(FingerprintError, match=r"does not have: label watch \(duration\)\. Prep"):
        evaluate(run, data=other)


def test_an_unknown_split_is_named(run):
    with pytest.raises(UnknownError, match="train, validation, test"):
        evaluate(run, split="future")
    with pytest.raises(UnknownError, match=r"did you mean 'held-out'\?"):
        evaluate(run, split="heldout")


def test_damaged_folders_are_named(run, data, tmp_path):
    import shutil

    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(FormatError, match="damaged"):
        load_run(broken)
    with pytest.raises(FormatError, match="is not a run"):
        load_run(data)
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    item = (copied / "events" / "item.npy").read_bytes()
    (copied / "events" / "item.npy").write_bytes(item[: len(item) // 2])
    with pytest.raises(FormatError, match="damaged"):
        Dataset(copied)
    (copied / "events" / "item.npy").unlink()
    with pytest.raises(FormatError, match="missing"):
        Dataset(copied)


def test_effective_links():
    assert effective_links(np.full((2, 8), 1 / 8, np.float32)) == pytest.approx(8)
    assert effective_links(np.eye(3, dtype=np.float32)[:1]) == pytest.approx(1)


def test_lists_are_drawn_before_they_are_looked_through(data, monkeypatch):
    """Few of a long split cost few; all of them where as many are asked for."""
    from limerank.evaluation import lists as evaluation

    dataset = Dataset(data)
    requests = dataset.requests_of("train")
    looked, relevant = [], evaluation._relevant
    monkeypatch.setattr(
        evaluation, "_relevant", lambda *given: looked.append(given[1]) or relevant(*given)
    )
    few = draw_requests(dataset, requests, "click", "out", 5)
    assert len(few) == 5 and len(looked) < 40 < len(requests)
    drawn = list(looked)
    again = draw_requests(dataset, requests, "click", "out", 5)
    assert again.rows.tolist() == few.rows.tolist() and looked == drawn * 2
    looked.clear()
    every = draw_requests(dataset, requests, "click", "out", len(requests))
    assert len(looked) == every.positive >= len(every) and looked == sorted(looked)


def test_tables_hold_apart_what_long_names_push_together():
    tasks = {"interacted": {"auc": 0.9817}, "added_to_the_basket_again": {"auc": 0.5}}
    part = Slice("item impressions", "1000000000-2000000000", 1_234_567_890, tasks)
    text = Evaluation("m", "d", "test", 9, 0, 1, 1, tasks, (part,)).text()
    lines = text.splitlines()
    assert "  interacted                 auc 0.9817" in lines
    assert "  added_to_the_basket_again  auc 0.5000" in lines
    head, row = lines[-2:]
    assert row.split() == [
        "item", "impressions", "1000000000-2000000000", "1,234,567,890", "0.9817", "0.5000",
    ]  # fmt: skip
    assert head.endswith("interacted auc  added_to_the_basket_again auc")
    assert len(head) == len(row)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "file/m.json"}, "file is a file; choose another folder"),
        ({"predictions": "file/predictions.parquet"}, "file is a file; choose another folder"),
        ({"out": "m.csv"}, r"ends in \.json"),
        ({"predictions": "predictions.xlsx"}, r"ends in \.parquet or \.csv"),
        ({"out": "."}, "is a folder"),
    ],
)
def test_outputs_are_refused_before_the_work(run, tmp_path, monkeypatch, given, message):
    from limerank.evaluation import evaluate as evaluation

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluation, "load_run", None)  # nothing is loaded
    with pytest.raises(FormatError, match=message):
        evaluate(run, **{name: tmp_path / path for name, path in given.items()})


def test_missing_output_folders_are_made_and_the_ending_decides_the_format(run, tmp_path):
    folder = tmp_path / "no" / "such"
    result = evaluate(run, lists=0, out=folder / "m.json", predictions=folder / "table.csv")
    assert json.loads((folder / "m.json").read_text()) == result.to_dict()
    predicted = pl.read_csv(folder / "table.csv")
    assert len(predicted) == result.impressions and "click_predicted" in predicted.columns
    evaluate(run, lists=0, out=folder / "m.json", predictions=folder / "table.parquet")
    assert (
        pl.read_parquet(folder / "table.parquet")["user"].to_list() == predicted["user"].to_list()
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "m.json",
        "table.csv",
        "table.parquet",
    ]


def test_a_dataset_that_was_moved_is_asked_for(run, data, tmp_path):
    moved = replace(load_run(run), recorded=str(tmp_path / "removed"))
    with pytest.raises(FormatError, match=r"is no longer at .*removed; give its folder \(--data\)"):
        moved.dataset()
    assert moved.dataset(data).path == data
