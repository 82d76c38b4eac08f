"""Datasets, runs, indexes and stores of earlier versions: today's code opens them and gives the
numbers that their own version gave. How they were written: ``tests/formats/README.md``.
"""

from __future__ import annotations

import base64
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

from limerank import (
    Dataset,
    FormatError,
    Index,
    ModelConfig,
    Recommender,
    SqliteStore,
    TrainConfig,
    ValkeyStore,
    compact_index,
    evaluate,
    load_run,
    load_spec,
    prepare,
    put_items,
    train,
)
from limerank.evaluation.predict import predict
from limerank.runs import formats
from limerank.serving.engine import Serving
from limerank.serving.http.app import application
from limerank.serving.http.settings import Settings
from limerank.serving.stores import migrate_store
from tests.formats import write_08d6c7f as lately_priced
from tests.formats import write_db0d66d as lately
from tests.formats import write_e5ca304 as seconds
from tests.formats import write_f90a578 as growing
from tests.stores import exposure
from tests.valkey_server import needs_server, server

FORMATS = Path(__file__).parent / "formats"
WRITTEN = "4ef6b91"
FACTS = json.loads((FORMATS / WRITTEN / "expected.json").read_text("utf-8"))
RUNS, INDEXES, STATES = FACTS["runs"], FACTS["indexes"], FACTS["stores"]
KEY = "r" * 20


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """All folders; tests that change one of them take a copy."""
    folder = tmp_path_factory.mktemp("formats")
    with tarfile.open(FORMATS / WRITTEN / "written.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def same(found: object, expected: object, where: str = "") -> None:
    """Everything that the earlier version gave is there with an equal value, whatever else is.

    Floats may differ in the last digits: sums are taken in another order by another processor or
    version of torch. Digits that count (ids, ranks, counts, texts) may not.
    """
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert expected.keys() <= found.keys(), f"{where}: {expected.keys() - found.keys()}"
        for name, part in expected.items():
            if name == "detail" and "status" in expected:
                continue  # a problem's wording is not part of a format
            same(found[name], part, f"{where}.{name}")
    elif where.endswith(".slices"):  # of each kind and slice; later versions have more kinds
        assert isinstance(expected, list) and isinstance(found, list), where
        by_name = {(one["kind"], one["slice"]): one for one in found}
        for one in expected:
            name = one["kind"], one["slice"]
            same(by_name[name], one, f"{where}.{name}")
    elif isinstance(expected, list):
        assert isinstance(found, list | tuple) and len(found) == len(expected), where
        for position, part in enumerate(expected):
            same(found[position], part, f"{where}[{position}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), where
    else:
        assert found == expected and type(found) is type(expected), where


def data_of(written: Path, name: str) -> Path:
    return written / ("ordered" if name == "ordered" else "clocked")


@pytest.mark.parametrize("name", ["clocked", "ordered"])
def test_a_dataset_opens(written, name):
    data = Dataset(written / name)
    batch = data.batch(data.requests_of("test")[:3])
    found = {
        "events": len(data.events["item"]),
        "users": data.user_ids[:5].tolist(),
        "items": data.item_ids[:5].tolist(),
        "trained_items": data.trained_items,
        "requests": {
            split: len(data.requests_of(split)) for split in FACTS["datasets"][name]["requests"]
        },
        "lengths": batch.users.lengths.tolist(),
        "tokens": batch.users.tokens.tolist(),
        "ages": batch.users.age.tolist(),
        "context": batch.users.context.tolist(),
        "labels": batch.labels.tolist(),
        "content": batch.items.content.numeric.sum(1).tolist(),
    }
    same(found, FACTS["datasets"][name])
    text = data.summary.text()
    assert "per request" in text and "staleness" not in text  # counted since then


@pytest.mark.parametrize("name", ["clocked", "ordered"])
def test_the_same_description_and_log_make_the_same_dataset(written, name, tmp_path):
    spec = load_spec(written / "log" / f"{name}.toml")
    prepare(spec, tmp_path / "data", base=written / "log")
    arrays = sorted(path.relative_to(written / name) for path in (written / name).rglob("*.npy"))
    assert len(arrays) > 10
    for path in arrays:
        now, then = np.load(tmp_path / "data" / path), np.load(written / name / path)
        assert now.dtype == then.dtype, path
        np.testing.assert_array_equal(now, then, err_msg=str(path))
    for path in (written / name / "vocab").iterdir():
        assert pl.read_parquet(tmp_path / "data" / "vocab" / path.name).equals(
            pl.read_parquet(path)
        )


def run_facts(path: Path, data: Path, out: Path) -> dict[str, object]:
    metrics = evaluate(path, data=data, lists=50, out=out).to_dict()
    run, dataset = load_run(path), Dataset(data)
    predictions = predict(run.ranker, dataset, dataset.requests_of("test")[:5], history=10)
    return {
        "fingerprint": run.fingerprint,
        "sealed": run.sealed,
        "metrics": metrics,
        "predictions": predictions.values.tolist(),
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_run_predicts_what_it_predicted(written, name, tmp_path):
    found = run_facts(written / "runs" / name, data_of(written, name), tmp_path / "metrics.json")
    same(found, RUNS[name])


def test_a_training_that_was_killed_is_refused_and_its_best_weights_open(written, tmp_path):
    """Nothing in the folder changes. A checkpoint is resumed by the version that wrote it alone."""
    out = tmp_path / "run"
    shutil.copytree(written / "unfinished", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(FormatError, match=r"unfinished run.*--overwrite"):
        train(written / "clocked", out, model=ModelConfig(model="lime-mha"))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert load_run(out).ranker.config.model == "lime-mha"
    found = evaluate(out, data=written / "clocked", split="validation", lists=0).tasks
    # It was killed during its second validation: the weights are those of the first one.
    lines = map(json.loads, (out / "metrics.jsonl").read_text("utf-8").splitlines())
    same(found, next(line["validation"] for line in lines if "validation" in line))


def answers_of_index(path: Path, written: Path, scorers: list[str]) -> dict[str, object]:
    name = path.name
    run, data = load_run(written / "runs" / name), data_of(written, name)
    index = Index.open(path, run.fingerprint)
    index.verify()
    users = ["u1", "u5"] if name == "ordered" else [1, 5, None]
    facts: dict[str, object] = {
        "version": index.version,
        "ids": index.ids[:].tolist(),
        "removed": index.removed.tolist(),
        "hidden": index.hidden.tolist(),
    }
    for scorer in scorers:
        recommender = Recommender(run, path, data, scorer=scorer)
        facts[scorer] = [recommender.rank(user, k=5, explain=2).to_dict() for user in users]
    history = ["i1", "i2", "i3"] if name == "ordered" else [1, 2, 3]
    facts["history"] = recommender.rank(history=history, k=3).to_dict()
    return facts


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_ranks_and_explains_as_it_did(written, name):
    """Two of the three were changed after they were built: items added, updated and removed."""
    scorers = [one for one in ("model", "quantised", "native") if one in INDEXES[name]]
    same(answers_of_index(written / "indexes" / name, written, scorers), INDEXES[name])


def test_an_index_can_still_be_compacted(written, tmp_path):
    path = tmp_path / "lime-mha"
    shutil.copytree(written / "indexes" / "lime-mha", path)
    assert compact_index(path).dropped > 0
    found = answers_of_index(path, written, ["native"])
    same(found["native"], INDEXES["lime-mha"]["native"])


def answers_of_server(written: Path, store, mode: str, location: Path) -> list[list[object]]:
    shutil.copytree(written / "indexes" / "lime-mha", location / "index")
    engine = Serving(
        written / "runs" / "lime-mha",
        location / "index",
        store,
        items=written / "log" / "items.parquet",
        mode=mode,
    )
    app = application(engine, Settings(keys={"read": (KEY,)}))
    found = []
    with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for method, path, body, _, _ in STATES[mode]:
            answer = client.request(method, path, json=body)
            found.append([method, path, body, answer.status_code, answer.json()])
    return found


@pytest.mark.parametrize("mode", STATES)
def test_a_server_answers_from_an_sqlite_store(written, mode, tmp_path):
    shutil.copy(written / "events.db", tmp_path)
    with SqliteStore(tmp_path / "events.db") as store:
        assert all(store.state(user, mode) is not None for user in (1, 2, "somebody"))
        same(answers_of_server(written, store, mode, tmp_path), STATES[mode])


@needs_server
@pytest.mark.parametrize("mode", STATES)
def test_a_server_answers_from_a_valkey_store(written, mode, tmp_path):
    import valkey

    commands = json.loads((written / "valkey.json").read_text("utf-8"))
    with server() as running:
        client = valkey.Valkey.from_url(running.url)
        for command in commands:
            client.execute_command(*map(base64.b64decode, command))
        client.close()
        with pytest.raises(FormatError, match="run: limerank store migrate unix://"):
            ValkeyStore(running.url)
        assert migrate_store(running.url).users > 3
        with ValkeyStore(running.url) as store:
            same(answers_of_server(written, store, mode, tmp_path), STATES[mode])


def test_the_fixtures_stay_small():
    files = [path for path in FORMATS.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 600_000


@pytest.mark.parametrize("format", formats.READABLE)
def test_a_run_whose_seed_was_valid_once_opens(format):
    stored = formats.train_settings({"seed": 2**64 - 1}, format)
    assert TrainConfig(**stored).seed == 2**63 - 1
    assert formats.train_settings({"seed": 7}, format)["seed"] == 7


def test_a_dataset_with_impression_features_opens(tmp_path):
    folder = FORMATS / "cdc71e2"
    with tarfile.open(folder / "written.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    dataset, facts = Dataset(tmp_path / "pages"), json.loads((folder / "expected.json").read_text())
    assert dataset.manifest["format"] == 2
    batch = dataset.batch(dataset.requests_of("test"))
    assert batch.shown is not None
    found = {
        "impression_features": dataset.encoding["impression_features"],
        "tokens": batch.shown.tokens.tolist(),
        "numbers": batch.shown.numbers.tolist(),
        "history": batch.users.tokens.tolist(),
        "context": batch.users.context.tolist(),
    }
    same(found, facts)


def test_a_dataset_is_extended(tmp_path):
    folder = FORMATS / "f90a578"
    with tarfile.open(folder / "written.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    facts = json.loads((folder / "expected.json").read_text())
    first, second = tmp_path / "first", tmp_path / "second"
    same(growing.facts(Dataset(first)), facts["first"])
    new = growing.sources(range(2, 4))
    prepare(growing.DESCRIPTION, second, events=new, extend=first, **growing.tables())
    same(growing.facts(Dataset(second)), facts["second"])
    assert "gap_edges_ms" not in Dataset(second).encoding, "the edges of the earlier dataset"


def test_a_dataset_with_gaps_in_seconds_and_a_run_with_neighbours_open(tmp_path):
    folder = FORMATS / "e5ca304"
    with tarfile.open(folder / "written.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert Dataset(tmp_path / "data").manifest["format"] == 4
    expected = json.loads((folder / "expected.json").read_text())
    same(seconds.facts(tmp_path), expected)
    kinds = {
        one["kind"]
        for answer in expected["ranked"]["native"]
        for item in answer["items"]
        for one in item.get("anchored", [])
    }
    assert "neighbour" in kinds


def test_an_index_with_counters_and_no_counts_opens_changes_and_stays(tmp_path):
    """Its counters are those that it was built with, whatever a server counts."""
    folder = FORMATS / "db0d66d"
    with tarfile.open(folder / "written.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((folder / "expected.json").read_text())
    index = tmp_path / "index"
    assert Index.open(index).manifest["format"] == 6 and Index.open(index).counted is None
    same(lately.facts(tmp_path), expected["built"])
    engine = Serving(tmp_path / "run", index, SqliteStore(tmp_path / "events.db"))
    engine.store.show([exposure(f"u{k}", 1_760_000_000_000 + k, f"main.{k}") for k in range(4)])
    for _ in range(2):
        engine.arms.count_again(engine.counts)
    assert not engine.counts.needed and engine.model()["counters"] is None
    engine.close()
    put_items(tmp_path / "run", index, lately.PUT)
    assert Index.open(index, verify=True).manifest["format"] == 6
    same(lately.facts(tmp_path), expected["put"])
    compact_index(index)
    assert Index.open(index, verify=True).counters is not None


def test_a_run_without_curves_opens(tmp_path):
    """Its numeric feature enters by a straight line, as it was trained."""
    folder = FORMATS / "08d6c7f"
    with tarfile.open(folder / "written.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = load_run(tmp_path / "run")
    assert not run.ranker.config.curves and run.ranker.item_tower.content.curves is None
    same(lately.facts(tmp_path), json.loads((folder / "expected.json").read_text()))
    priced = lately_priced.described()
    later = lately_priced.log().head(300)
    prepare(priced, tmp_path / "later", events=later, items=lately_priced.priced())
    train(tmp_path / "later", tmp_path / "next", start=tmp_path / "run", config={"epochs": 1})
    assert not load_run(tmp_path / "next").ranker.config.curves


@pytest.mark.parametrize("by", ["event", "session"])
def test_a_dataset_of_positives_opens(tmp_path, by):
    folder = FORMATS / "1d64d68"
    with tarfile.open(folder / "written.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    dataset, facts = Dataset(tmp_path / by), json.loads((folder / "expected.json").read_text())
    assert dataset.manifest["format"] == 3
    batch = dataset.batch(dataset.requests_of("test"))
    found = {
        "labels": dataset.encoding["labels"],
        "event_features": dataset.encoding["event_features"],
        "weights": dataset.events["label_purchase"].tolist(),
        "positives": dataset.manifest["summary"]["positives"],
        "requests": dataset.manifest["counts"]["requests"],
        "history": batch.users.tokens.tolist(),
        "targets": batch.labels.tolist(),
    }
    same(found, facts[by])
    assert "positives of purchase" in dataset.summary.text()
