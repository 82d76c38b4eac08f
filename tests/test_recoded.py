"""A run on a later dataset reads what it reads on its own: items, values, buckets and scales."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from limerank.data.alignment import Coded
from limerank.data.dataset import Dataset
from limerank.data.prepare import prepare
from limerank.data.recoded import RecodedDataset
from limerank.errors import FingerprintError, FormatError
from limerank.evaluation.compare import compare
from limerank.evaluation.evaluate import evaluate
from limerank.evaluation.predict import predict
from limerank.index import Index
from limerank.index.building import build_index
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import Run
from tests.catalogues import make_run
from tests.growing import DAY, START, log_of, write_days, write_spec

Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three days: "own" of two of them, "extended" by the third, and "fresh": all three
    prepared with codes of their own."""
    folder = tmp_path_factory.mktemp("recoded")
    frame = log_of(3, users=80)
    spec = write_spec(folder, frame, requests={"size": 1})
    write_days(folder, frame, range(2))
    prepare(spec, folder / "own")
    write_days(folder, frame, range(2, 4))
    prepare(spec, folder / "extended", extend=folder / "own")
    prepare(spec, folder / "fresh")
    return folder


@pytest.fixture(scope="module", params=["lime-mha", "lime-xor"])
def run(folder: Path, request: pytest.FixtureRequest) -> Run:
    # Counters are of the log that is read: some rows of "own" days are logged a day late.
    own, settings = Dataset(folder / "own"), {"model": request.param, "counter_hours": 0}
    return make_run(folder / f"run-{request.param}", own, **settings)


def requests(dataset: Dataset) -> dict[Key, int]:
    """Requests by user, time, items and items of the history."""
    found: dict[Key, int] = {}
    columns, ids = dataset.requests, dataset.item_ids
    for row in range(len(columns["user"])):
        first, count = int(columns["first"][row]), int(columns["count"][row])
        start, end = int(columns["history_start"][row]), int(columns["history_end"][row])
        items = dataset.events["item"]
        found[
            int(dataset.user_ids[columns["user"][row]]),
            int(dataset.events["time"][first]),
            tuple(ids[items[first : first + count]].tolist()),
            tuple(ids[items[start:end]].tolist()),
        ] = row
    return found


@pytest.mark.parametrize("later", ["extended", "fresh"])
def test_predictions_are_those_on_the_own_dataset(run: Run, folder: Path, later: str) -> None:
    """Bit by bit, for requests whose items and events are in both."""
    own = run.dataset()
    other = run.dataset(folder / later)
    assert not isinstance(own, RecodedDataset) and isinstance(other, RecodedDataset)
    assert other.own.encoding != own.encoding
    ours, theirs = requests(own), requests(other)
    both = sorted(ours.keys() & theirs.keys())
    assert len(both) > 100
    for key in both[:: len(both) // 40]:
        expected, found = (
            predict(run.ranker, dataset, np.array([rows[key]]))
            for dataset, rows in ((own, ours), (other, theirs))
        )
        assert found.values.tobytes() == expected.values.tobytes()
        assert found.labels.tobytes() == expected.labels.tobytes()


def test_codes_are_those_of_the_run(run: Run, folder: Path) -> None:
    """Event by event: what the run reads of an event does not depend on the dataset."""
    own, other = run.dataset(), run.dataset(folder / "fresh")
    rows = []
    for dataset in (own, other):
        users = np.repeat(dataset.user_ids, np.diff(dataset.event_offsets))
        items = dataset.item_ids[dataset.events["item"]]
        names = [*dataset.encoder.columns, *dataset.impressions.columns]
        table = {"user": users, "item": items, "time": np.asarray(dataset.events["time"])}
        table["id"] = dataset.item_codes(np.asarray(dataset.events["item"]))
        table |= {name: np.asarray(dataset.events[name][:]) for name in names}
        rows.append(pl.DataFrame(table).unique(maintain_order=True))
    # Events of the last day alone are not in the run's log.
    keys = ["user", "item", "time"]
    both = rows[1].join(rows[0].select(keys).unique(), on=keys, how="semi")
    assert both.sort(both.columns).equals(rows[0].sort(rows[0].columns), null_equal=True)
    assert len(both) > 300


def test_unseen_items_and_values_are_unknown(run: Run, folder: Path) -> None:
    own, other = run.dataset(), run.dataset(folder / "extended")
    new = ~np.isin(other.item_ids, own.item_ids)
    assert new.any()
    assert not other.item_codes(np.flatnonzero(new)).any()
    assert other.item_codes(np.arange(len(other.item_ids))).max() == own.trained_items
    values = pl.read_parquet(folder / "extended" / "vocab" / "event_device.parquet")
    codes = np.asarray(other.events["feature_device"][:])
    assert codes.max() < own.encoding["event_features"][0]["size"] <= len(values) + 1
    assert (codes[np.asarray(other.own.events["feature_device"]) > codes.max()] == 0).all()


def test_two_days_models_are_compared_on_the_later_data(folder: Path) -> None:
    runs = [
        make_run(folder / f"run-of-{name}", Dataset(folder / name), model="two-tower")
        for name in ("own", "extended")
    ]
    paths = [str(run.path) for run in runs]
    found = compare(paths[0], paths[1], data=folder / "extended", resamples=50)
    aucs = [
        evaluate(path, data=folder / "extended", lists=0).tasks["click"]["auc"] for path in paths
    ]
    all_of_them = found.differences[0]
    assert all_of_them.difference == pytest.approx(aucs[0] - aucs[1], abs=1e-6)
    assert all_of_them.low <= all_of_them.difference <= all_of_them.high
    assert all_of_them.low < all_of_them.high


def test_lists_and_their_peers_of_a_later_dataset(folder: Path, run: Run) -> None:
    """Peers are counted on the later dataset, with its codes."""
    later = evaluate(run.path, data=folder / "fresh", lists=50, k=[5])
    fresh = make_run(
        folder / f"fresh-{run.ranker.config.model}",
        Dataset(folder / "fresh"),
        model="two-tower",
    )
    expected = evaluate(fresh.path, lists=50, k=[5])
    assert later.peers == expected.peers
    assert later.lists is not None and later.lists["requests"] > 10


def test_a_user_is_ranked_for_with_the_later_events(folder: Path, run: Run) -> None:
    build_index(run, folder / f"index-{run.ranker.config.model}")
    index = Index.open(folder / f"index-{run.ranker.config.model}", fingerprint=run.fingerprint)
    own, later = (Recommender(run, index, folder / name) for name in ("own", "extended"))
    user = max(requests(own.dataset), key=lambda key: len(key[3]))[0]
    before = (START + DAY) * 1000
    rankings = [one.rank(user, time=before, exclude_seen=False) for one in (own, later)]
    assert [one.id for one in rankings[0]] == [one.id for one in rankings[1]]
    assert [one.value for one in rankings[0]] == [one.value for one in rankings[1]]
    assert later.rank(user).events > own.rank(user).events
    rows = later.rank_users(later.user_rows([user]), k=5)
    ids = later.index.ids[rows.rows[0]].tolist()
    assert ids == [one.id for one in later.rank(user, k=5)]


def test_an_index_has_the_items_of_the_later_dataset(folder: Path, run: Run) -> None:
    out = folder / f"later-{run.ranker.config.model}"
    build_index(run, out, data=folder / "extended")
    index = Index.open(out, fingerprint=run.fingerprint)
    assert len(index) == len(Dataset(folder / "extended").item_ids)


def test_what_the_run_reads_has_to_be_there(folder: Path, tmp_path: Path) -> None:
    own = Dataset(folder / "own")
    run = Coded(own.manifest, own.path)
    text = (folder / "spec.toml").read_text()
    for old, new, message in (
        ('name = "country"', 'name = "land", column = "country"', "user feature country"),
        ('name = "speed"', 'name = "pace", column = "speed"', "event feature speed"),
        ('transform = "log1p"', 'transform = "none"', ""),
        ("length = 20", 'length = 20\nkeep = "click"', "histories with keep = None"),
    ):
        assert old in text
        spec = folder / "changed.toml"
        spec.write_text(text.replace(old, new, 1))
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        prepare(spec, out)
        if message:
            with pytest.raises(FingerprintError, match=f"does not have: {message}.*Prepare"):
                RecodedDataset(out, run)
        else:  # the run has its own scale
            RecodedDataset(out, run)


def test_a_dataset_of_an_earlier_version_is_refused(folder: Path, tmp_path: Path) -> None:
    prepare(folder / "spec.toml", tmp_path / "old")
    path = tmp_path / "old" / "dataset.json"
    manifest = json.loads(path.read_text())
    del manifest["log"]
    path.write_text(json.dumps(manifest))
    own = Dataset(folder / "own")
    with pytest.raises(FormatError, match="prepare it again"):
        RecodedDataset(tmp_path / "old", Coded(own.manifest, own.path))
