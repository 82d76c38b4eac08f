"""Warm starts: the earlier run's predictions before the first step, by any numbering of the log;
what is trained on; exact resume; what is reported and refused."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

import benchmarks.variants  # noqa: F401  (registers its models)
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.data.protocol import Split
from limerank.data.spec import Feature, Label
from limerank.errors import DataError, FormatError, SpecError
from limerank.evaluation.alarms import unimproved
from limerank.evaluation.predict import predict
from limerank.models import MODELS, build
from limerank.models.axes import Axis, axes_of
from limerank.models.config import DataShape, TrainConfig
from limerank.models.registry import FITTED, OF_THE_PACKAGE
from limerank.models.tasks import Task
from limerank.runs.folder import load_optimiser, load_run
from limerank.runs.model import Trained
from limerank.training import warm
from limerank.training.collaborative import FADING, FOLDS, statistics, turned_onto
from limerank.training.neighbours import neighbour_lists
from limerank.training.numbering import numbering
from limerank.training.renumbering import NEW, NOTHING, Sources, renumbered
from limerank.training.replay import selection
from limerank.training.trainer import train
from tests.worlds import (
    PLAIN,
    SHAPE,
    config_of,
    write_log,
    write_pages,
    write_positives,
)

SMALL = {"width": 16, "heads": 2, "links": 4, "blocks": 1, "hidden": 8}
QUICK = {"epochs": 1, "batch_size": 64}
DAYS = 0.5, 0.6, 0.7, 0.8
"""Shares of a log before which the validation and the test of yesterday, and of today, begin."""


def moments(events: Path) -> list[str]:
    """The points of time of :data:`DAYS`."""
    times = pl.read_parquet(events)["time"]
    found = [int(times.quantile(share, "nearest")) for share in DAYS]
    return [datetime.fromtimestamp(time, UTC).isoformat() for time in found]


def prepared(spec: Path, out: Path, validation: str, test: str, **changes: object) -> Path:
    split = Split(validation_from=validation, test_from=test)
    prepare(load_spec(spec).model_copy(update={"split": split, **changes}), out, base=spec.parent)
    return out


@pytest.fixture(scope="module")
def days(tmp_path_factory) -> tuple[Path, Path]:
    """The datasets of yesterday and of today, which number items and values differently."""
    return _days(tmp_path_factory.mktemp("days"))


def _days(folder: Path, **spec: object) -> tuple[Path, Path]:
    spec_file = write_log(folder / "log", users=60, **spec)
    at = moments(folder / "log" / "events.parquet")
    pairs = ("yesterday", at[:2]), ("today", at[2:])
    old, new = (prepared(spec_file, folder / name, *cuts) for name, cuts in pairs)
    return old, new


@pytest.fixture(scope="module")
def clicks(tmp_path_factory) -> tuple[Path, Path]:
    """The same without durations, whose buckets depend on the training window."""
    labels = [{"name": "click", "kind": "binary"}]
    return _days(tmp_path_factory.mktemp("clicks"), labels=labels)


@pytest.fixture(scope="module")
def yesterday(days, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run") / "yesterday"
    train(days[0], run, model=config_of("lime-mha", **SMALL), config={**QUICK, "epochs": 2})
    return run


def alike(one: Dataset, other: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the same requests in two datasets of one log."""
    found = []
    for data in (one, other):
        users = data.user_ids[data.requests["user"]]
        times = data.events["time"][data.requests["first"]]
        found.append({pair: at for at, pair in enumerate(zip(users, times, strict=True))})
    both = [pair for pair in found[0] if pair in found[1]]
    assert len(both) > 100
    return tuple(np.array([of[pair] for pair in both]) for of in found)


@pytest.mark.parametrize("model", [name for name in MODELS if name not in FITTED])
def test_axes_name_every_dimension_that_follows_from_the_log(model):
    """Two shapes that differ in everything: the tensors that differ are those with axes, by just
    the entries of these."""
    shape = DataShape(
        item_ids=51,
        item_tokens=17,
        item_numeric=4,
        user_tokens=9,
        user_numeric=3,
        event_tokens=14,
        context_tokens=8,
        impression_tokens=7,
        impression_features=3,
        clock=True,
        positive=11,
        tasks=(*SHAPE.tasks, Task(name="like", kind="binary", mean=0.1)),
        anchors={**SHAPE.anchors, "brand": (12, 5)},
    )
    small = SHAPE.model_copy(update={"impression_tokens": 5, "impression_features": 2})
    config = config_of(model, **SMALL, anchors=None, neighbours=0)
    rankers = [build(one, config) for one in (small, shape)]
    states = [ranker.state_dict() for ranker in rankers]
    axes = axes_of(rankers[0])
    assert axes == axes_of(rankers[1])
    differing = {name for name, one in states[0].items() if one.shape != states[1][name].shape}
    assert differing == axes.keys()
    sizes = [
        {
            "items": one.item_ids,
            "item tokens": one.item_tokens,
            "item numbers": one.item_numeric,
            "user tokens": one.user_tokens,
            "user numbers": one.user_numeric,
            "event tokens": one.event_tokens,
            "context tokens": one.context_tokens,
            "impression tokens": one.impression_tokens,
            "impression numbers": one.impression_features,
            "anchors": 1 + len(one.anchors),
            "outputs": one.outputs,
        }
        for one in (small, shape)
    ]
    for name, of in axes.items():
        for dimension, parts in enumerate(of):
            for state, entries in zip(states, sizes, strict=True):
                expected = sum(entries[part.of] * part.numbers for part in parts)
                assert not parts or state[name].shape[dimension] == expected


@pytest.mark.parametrize("model", OF_THE_PACKAGE)
def test_a_start_predicts_as_the_earlier_run(clicks, model):
    """The same log with other codes: the earlier model, numbered as the new dataset, gives the
    logits of the earlier model for the same requests."""
    old, new = map(Dataset, clicks)
    assert list(old.item_ids[: old.trained_items]) != list(new.item_ids[: new.trained_items])
    shapes = [DataShape.of(one.manifest) for one in (old, new)]
    config = config_of(model, **SMALL, **PLAIN | {"anchors": None})
    torch.manual_seed(1)
    earlier = build(shapes[0], config).eval()
    with torch.no_grad():
        for weight in earlier.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    start = _start(earlier, old, new, config)
    torch.manual_seed(2)
    ranker = build(shapes[1], config).eval()
    start.load_weights(ranker)
    rows = alike(old, new)
    expected, found = (
        predict(one, data, at[:20])
        for one, data, at in zip((earlier, ranker), (old, new), rows, strict=True)
    )
    np.testing.assert_allclose(found.values, expected.values, rtol=2e-4, atol=2e-5)


def _start(earlier, old: Dataset, new: Dataset, config) -> warm.Start:
    """The start from a ranker that is in no folder."""
    trained = Trained(old.path, earlier, TrainConfig(), old.manifest, str(old.path), "", until=0)
    found = numbering(new, DataShape.of(new.manifest), config, trained)
    requests = new.requests_of("train")
    return warm.Start(warm.Parent(trained, None, 0), found, selection(new, requests, 0, 1.0, 0))


def test_a_new_start_predicts_durations_in_the_new_unit(days):
    """Expected seconds do not change, though they are relative to another mean."""
    old, new = map(Dataset, days)
    shapes = [DataShape.of(one.manifest) for one in (old, new)]
    assert shapes[0].tasks[1].mean != shapes[1].tasks[1].mean
    config = config_of("popularity", **SMALL, **PLAIN)
    earlier = build(shapes[0], config).eval()
    ranker = build(shapes[1], config).eval()
    _start(earlier, old, new, config).load_weights(ranker)
    expected, found = (
        predict(one, data, at[:20])
        for one, data, at in zip((earlier, ranker), (old, new), alike(old, new), strict=True)
    )
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4)


def test_rows_follow_their_sources():
    """By hand: an entry that is the same, one that starts as another, a new one, an empty one."""
    axes = ((Axis("rows"),), (Axis("columns", 2), Axis("more")))
    sources = {
        "rows": Sources(np.array([2, 0, NEW, NOTHING]), np.array([True, False, False, False])),
        "columns": Sources.of(np.array([1])),
        "more": Sources(np.array([0]), np.array([True]), np.array([3.0], np.float32)),
    }
    sizes = {"rows": 3, "columns": 2, "more": 1}
    earlier, fresh = torch.arange(15.0).view(3, 5), torch.full((4, 3), -1.0)
    found = renumbered(fresh, earlier, axes, sources, sizes)
    expected = [[12.0, 13, 42], [2, 3, 12], [-1, -1, -1], [0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    state = renumbered(fresh, earlier, axes, sources, sizes, state=True)
    torch.testing.assert_close(state, torch.tensor([[12.0, 13, 14], *[[-1.0] * 3] * 2, [0, 0, 0]]))
    assert renumbered(fresh, earlier[:, :4], axes, sources, sizes) is None
    assert renumbered(fresh[:3], earlier, axes, sources, sizes) is None


def test_what_is_new_is_trained_on_and_as_much_of_what_is_old(days):
    data = Dataset(days[1])
    rows = data.requests_of("train")
    counts = data.requests["count"]
    times = data.events["time"][data.requests["first"]]
    until = int(np.quantile(times[rows], 0.8))
    found = selection(data, rows, until, 1.5, seed=3)
    assert found.new.tolist() == [row for row in rows if times[row] > until]
    assert set(found.replayed) <= set(rows) - set(found.new)
    budget = 1.5 * counts[found.new].sum()
    assert budget - counts.max() < counts[found.replayed].sum() <= budget
    again = selection(data, rows, until, 1.5, seed=3)
    assert again.requests.tolist() == found.requests.tolist() == sorted(found.requests)
    assert selection(data, rows, until, 1.5, seed=4).replayed.tolist() != found.replayed.tolist()
    assert not len(selection(data, rows, until, 0.0, seed=3).replayed)
    least = selection(data, rows, until, None, seed=3, batch_size=8)
    assert counts[least.requests].sum() > 16 * 8 - counts.max(), "batches enough for a few steps"
    assert selection(data, rows, until, None, seed=3).requests.tolist() == (
        selection(data, rows, until, 1.0, seed=3).requests.tolist()
    )
    assert selection(data, rows, None, 1.0, seed=3).new.tolist() == rows.tolist()


def test_a_start_trains_reports_and_records_its_lineage(days, yesterday, tmp_path):
    lines = []
    result = train(days[1], tmp_path / "today", start=yesterday, report=lines.append)
    first = lines[0]
    assert first["step"] == 0
    parent, run = load_run(yesterday), load_run(tmp_path / "today")
    old, new = map(Dataset, days)
    newest = old.requests["first"][old.requests_of("train")]
    assert parent.until == old.events["time"][newest].max()
    start = result.start
    assert start.value == first["validation"]["click"]["calibrated_ne"]
    times = new.events["time"][new.requests["first"][new.requests_of("train")]]
    assert start.new == (times > parent.until).sum()
    assert start.items == new.trained_items >= start.known_items > 0
    assert result.best <= start.value
    text = result.text()
    assert f"started from {yesterday} (validation click/calibrated_ne" in text
    assert f"{start.new:,} requests after {start.until} and {start.replayed:,} older ones" in text
    assert [one.fingerprint for one in run.lineage] == [parent.fingerprint]
    assert run.train.epochs == warm.EPOCHS
    assert run.train.batch_size == QUICK["batch_size"], "settings are those of the run"
    assert run.ranker.config == parent.ranker.config


def test_the_optimiser_goes_on_by_ids(days, yesterday, tmp_path):
    old, new = map(Dataset, days)
    optimisers = []
    monkey = warm.Start.load_optimiser

    def remember(self, ranker, optimiser):
        monkey(self, ranker, optimiser)
        optimisers.append({name: one.clone() for name, one in optimiser.state().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm.Start, "load_optimiser", remember)
        train(new, tmp_path / "new", start=yesterday)
    state = load_optimiser(yesterday)
    assert state.keys() == optimisers[0].keys()
    ids = list(old.item_ids[: old.trained_items])
    rows = [ids.index(item) for item in new.item_ids[: new.trained_items]]
    sums = state["item_tower.ids.weight/sums"]
    expected = torch.cat([sums[:1], sums[1:][rows]])
    torch.testing.assert_close(optimisers[0]["item_tower.ids.weight/sums"], expected)
    for name, one in state.items():
        own = optimisers[0][name]
        if own.shape == one.shape and "table" not in name and "ids" not in name:
            torch.testing.assert_close(own, one)
    assert load_optimiser(tmp_path / "new").keys() == state.keys()


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("at", [0, 2])
def test_a_cut_off_start_ends_as_an_uninterrupted_one(days, yesterday, tmp_path, monkeypatch, at):
    monkeypatch.setattr("limerank.training.trainer.REPORT_SECONDS", 0.0)
    settings = {"checkpoint_seconds": 0.0, "batch_size": 32}
    train(days[1], tmp_path / "full", start=yesterday, config=settings)

    def stop(line):
        if line["step"] == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(days[1], tmp_path / "cut", start=yesterday, config=settings, report=stop)
    with pytest.raises(FormatError, match=r"started from .*yesterday.*not from random weights"):
        train(days[1], tmp_path / "cut", model="lime-mha")
    train(days[1], tmp_path / "cut", start=yesterday, config=settings)
    for name in ("model.safetensors", "optimiser.safetensors"):
        full, cut = (load_file(tmp_path / run / name) for run in ("full", "cut"))
        assert full.keys() == cut.keys()
        assert all(torch.equal(full[one], cut[one]) for one in full)


def test_a_log_that_gained_and_lost_features(days, yesterday, tmp_path):
    """What is new adds nothing at first, what is lost is left out; both are named."""
    spec = load_spec(days[1].parent / "log" / "spec.toml")
    others = tuple(one for one in spec.items.features if one.name != "group")
    items = spec.items.model_copy(update={"features": others})
    area = Feature(name="area", kind="categorical", column="country")
    users = spec.users.model_copy(update={"features": (*spec.users.features, area)})
    cuts = moments(days[1].parent / "log" / "events.parquet")[2:]
    data = prepared(
        days[1].parent / "log" / "spec.toml", tmp_path / "data", *cuts, items=items, users=users
    )
    result = train(data, tmp_path / "run", start=yesterday)
    assert result.start.added == ("user feature area",)
    assert result.start.dropped == ("item feature group",)
    assert "new: user feature area; dropped: item feature group" in result.text()
    assert load_run(tmp_path / "run").ranker.shape.anchors.keys() == {"tags"}


def test_a_task_that_is_new_and_one_that_is_dropped(days, yesterday, tmp_path):
    spec = load_spec(days[1].parent / "log" / "spec.toml")
    click = spec.labels[0]
    labels = (click, Label(name="long", kind="binary", column="watch", at_least=20.0))
    cuts = moments(days[1].parent / "log" / "events.parquet")[2:]
    data = prepared(days[1].parent / "log" / "spec.toml", tmp_path / "data", *cuts, labels=labels)
    result = train(data, tmp_path / "run", start=yesterday)
    assert result.start.added == ("label long",)
    assert result.start.dropped == ("label watch",)
    assert result.metrics.keys() == {"click", "long"}


def test_impression_features_start_too(tmp_path):
    spec = write_pages(tmp_path / "log")
    times = pl.read_parquet(tmp_path / "log" / "shown.parquet")["time"].unique().sort()
    at = [datetime.fromtimestamp(times[int(share * len(times))], UTC).isoformat() for share in DAYS]
    for name, cuts in (("old", at[:2]), ("new", at[2:])):
        prepared(spec, tmp_path / name, *cuts)
    train(tmp_path / "old", tmp_path / "run", model=config_of("lime-mha", **SMALL), config=QUICK)
    result = train(tmp_path / "new", tmp_path / "next", start=tmp_path / "run")
    assert not result.start.added
    assert not result.start.dropped


@pytest.mark.parametrize("model", ["sasrec", "lime-mha"])
def test_positives_of_the_catalogue(model, tmp_path):
    spec = write_positives(tmp_path / "log")
    times = pl.read_csv(tmp_path / "log" / "events.csv")["time"]
    at = [datetime.fromtimestamp(int(times.quantile(one)), UTC).isoformat() for one in DAYS]
    for name, cuts in (("old", at[:2]), ("new", at[2:])):
        prepared(spec, tmp_path / name, *cuts)
    config = {**QUICK, "negatives": 20}
    train(tmp_path / "old", tmp_path / "run", model=config_of(model, **SMALL), config=config)
    result = train(
        tmp_path / "new", tmp_path / "next", model=config_of(model, **SMALL), start=tmp_path / "run"
    )
    assert result.metric == "choice/loss"
    old, new = (load_run(tmp_path / one) for one in ("run", "next"))
    # What a default decides is recorded: a run opens whatever the default becomes.
    assert old.ranker.config.neighbours == new.ranker.config.neighbours
    assert new.ranker.config.neighbours == (50 if model == "lime-mha" else 0)
    if model == "lime-mha":  # counted in the new dataset
        width = new.ranker.config.vectors
        vectors = new.ranker.item_tower.statistics[:, -width:].expand(FOLDS + 1, -1, -1)
        lists = neighbour_lists(new.dataset(), 50, vectors, in_order=True)[-1]
        assert torch.equal(new.ranker.neighbour_table.ids, lists.ids) and lists.shares.any()
    assert result.start.value >= result.best
    assert load_run(tmp_path / "next").train.negatives == 20


@pytest.mark.parametrize("model", FITTED)
def test_counts_are_fitted_again(days, tmp_path, model):
    train(days[0], tmp_path / "old", model=model)
    result = train(days[1], tmp_path / "new", start=tmp_path / "old")
    train(days[1], tmp_path / "alone", model=model)
    assert "fitted again" in result.text()
    found, expected = (load_file(tmp_path / run / "model.safetensors") for run in ("new", "alone"))
    assert all(torch.equal(found[name], one) for name, one in expected.items())
    assert len(load_run(tmp_path / "new").lineage) == 1


def test_vectors_stay_in_the_space_of_the_run(days):
    """From vectors of the same log, turned by any map: the vectors are those, as they were."""
    data = Dataset(days[1])
    found = statistics(data, 6, rates=True)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(5)))[0]
    earlier = found.of_all.clone()
    earlier[:, 2:] = earlier[:, 2:] @ turn
    again = statistics(data, 6, rates=True, earlier=earlier)
    torch.testing.assert_close(again.of_all, earlier, atol=0.05, rtol=0.05)
    inner = [one[:, :, 2:] @ one[:, :, 2:].mT for one in (found.values, again.values)]
    torch.testing.assert_close(*inner, atol=0.2, rtol=0.05)


def test_the_nearest_turn_undoes_a_turn():
    generator = torch.Generator().manual_seed(1)
    earlier = torch.randn(30, 5, generator=generator)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    vectors = torch.stack([torch.randn(30, 5, generator=generator), earlier @ turn])
    torch.testing.assert_close(turned_onto(earlier, vectors)[-1], earlier)
    torch.testing.assert_close(turned_onto(earlier, vectors)[0], vectors[0] @ turn.T)


def test_items_without_events_fade(days):
    """An item of the run of which the window has no event: its statistics are those of the run."""
    data = Dataset(days[1])
    counts = np.array(data.train_count)
    counts[3] = 0
    thin = object.__new__(Dataset)
    thin.__dict__.update(data.__dict__ | {"train_count": counts})
    earlier = statistics(data, 4, rates=True).of_all
    found = statistics(thin, 4, rates=True, earlier=earlier).values
    torch.testing.assert_close(found[:, 4], (FADING * earlier[4]).expand(len(found), -1))
    assert not torch.allclose(found[-1, 5, :2], FADING * earlier[5, :2])


def test_runs_of_earlier_versions_start_without_an_optimiser(days, yesterday, tmp_path):
    run = shutil.copytree(yesterday, tmp_path / "run")
    (run / "optimiser.safetensors").unlink()
    config = json.loads((run / "config.json").read_text())
    del config["until"], config["lineage"], config["train"]["replay"]
    (run / "config.json").write_text(json.dumps(config))
    (run / "checksums.json").unlink()
    opened = warm.open_parent(run)
    assert opened.until == load_run(yesterday).until, "its dataset says until when"
    result = train(days[1], tmp_path / "next", start=run)
    assert not result.start.optimiser
    assert "no numbers of its optimiser" in result.text()
    config["data"] = str(tmp_path / "removed")
    (run / "config.json").write_text(json.dumps(config))
    result = train(days[1], tmp_path / "last", start=run)
    assert result.start.until is None
    assert result.start.new == len(Dataset(days[1]).requests_of("train"))


def test_a_dataset_that_was_extended(tmp_path):
    """The daily loop: extend the log, drop what is old, go on from yesterday's run."""
    events = [{"files": ["day-*.parquet"], "time": "time", "request": "request_id"}]
    split = {"train": 0.7, "validation": 0.15}
    spec = write_log(tmp_path / "log", users=60, events=events, split=split)
    rows = pl.read_parquet(tmp_path / "log" / "events.parquet").sort("time")
    first, middle = (rows["time"].quantile(one) for one in (0.1, 0.6))
    rows.filter(pl.col("time") < middle).write_parquet(tmp_path / "log" / "day-1.parquet")
    prepare(spec, tmp_path / "one")
    train(tmp_path / "one", tmp_path / "run", model=config_of("lime-mha", **SMALL), config=QUICK)
    later = rows.filter(pl.col("time") >= middle).with_columns(pl.col("item_id") + 7)
    later.write_parquet(tmp_path / "log" / "day-2.parquet")
    since = datetime.fromtimestamp(first, UTC)
    prepare(spec, tmp_path / "two", extend=tmp_path / "one", since=since)
    result = train(tmp_path / "two", tmp_path / "next", start=tmp_path / "run")
    assert not result.start.added
    assert not result.start.dropped
    assert 0 < result.start.known_items < result.start.items
    until = load_run(tmp_path / "run").until
    data = Dataset(tmp_path / "two")
    times = data.events["time"][data.requests["first"][data.requests_of("train")]]
    assert result.start.new == (times > until).sum()


def test_what_cannot_start_is_refused(days, yesterday, tmp_path):
    with pytest.raises(DataError, match=r"no request in its training split after 20.*newer log"):
        train(days[0], tmp_path / "run", start=yesterday)
    with pytest.raises(SpecError, match=r"settings of its model \(links is 4, not 5\)"):
        train(days[1], tmp_path / "run", model={"links": 5}, start=yesterday)
    with pytest.raises(SpecError, match="is of the model lime-mha, not lime-xor"):
        train(days[1], tmp_path / "run", model="lime-xor", start=yesterday)
    with pytest.raises(SpecError, match=r"cannot start from .* and replace it"):
        train(days[1], yesterday, start=yesterday, overwrite=True)
    with pytest.raises(FormatError, match="not a run"):
        train(days[1], tmp_path / "run", start=tmp_path)
    run = shutil.copytree(yesterday, tmp_path / "damaged")
    (run / "optimiser.safetensors").write_bytes(b"no")
    with pytest.raises(FormatError, match=r"optimiser.safetensors is damaged.*remove this file"):
        train(days[1], tmp_path / "run", start=run)
    save_file({}, run / "optimiser.safetensors", {"format": "9"})
    with pytest.raises(FormatError, match="has format '9', expected 1"):
        train(days[1], tmp_path / "run", start=run)
    (run / "trainer").mkdir()
    (run / "alarms.json").unlink()
    with pytest.raises(FormatError, match="has not ended"):
        train(days[1], tmp_path / "run", start=run)
    assert not (tmp_path / "run").exists()


def test_a_training_that_gains_nothing_keeps_the_weights_and_says_so(days, yesterday, tmp_path):
    found = unimproved("runs/old", "click/auc", 0.8123, 0)
    assert [one.name for one in found] == ["no-gain"]
    assert "click/auc 0.8123, which the weights of runs/old have" in found[0].message
    assert not unimproved("runs/old", "click/auc", 0.8123, 40)
    far = {"learning_rate": 3.0, "table_learning_rate": 30.0, "metric": "click/ne"}
    result = train(days[1], tmp_path / "run", start=yesterday, config=far)
    assert result.best_step == 0
    assert result.best == result.start.value
    assert "no-gain" in [one.name for one in result.alarms]


def test_the_command_starts_from_a_run(days, yesterday, tmp_path, call):
    begin = ("train", days[1], "--from", yesterday, "--out", tmp_path / "run", "-q")
    code, _, error = call(*begin, "--links", 9)
    assert code == 2
    assert "links is 4, not 9" in error
    code, text, error = call(*begin, "--set", "replay=0.5", "--epochs", 2)
    assert code == 0, error
    assert f"started from {yesterday}" in text
    config = load_run(tmp_path / "run").train
    assert (config.replay, config.epochs, config.batch_size) == (0.5, 2, QUICK["batch_size"])
