"""Titles: columns that are shown with items and never learned from."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.errors import SpecError
from limerank.files import read_json
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import add_items, change_items, put_items
from limerank.index.compaction import compact_index
from limerank.models.config import TrainConfig
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_run
from limerank.serving.engine import Serving
from limerank.serving.messages import Explain
from limerank.serving.stores import SqliteStore
from limerank.training.trainer import train
from limerank.validation import validate
from tests.worlds import config_of, write_log


def write_titles(folder: Path, display: list[str]) -> Path:
    """A log whose item table has titles and images, some of them missing; returns its dataset."""
    import tomllib

    import tomli_w

    path = write_log(folder / "log")
    items = pl.read_csv(folder / "log" / "items.csv")
    titles = [None if id % 7 == 3 else f" Item \n no. {id} – «é»" for id in items["item_id"]]
    items = items.with_columns(
        title=pl.Series(titles, dtype=pl.String),
        image=pl.format("https://img.example/{}.jpg", pl.col("item_id")),
    )
    items.write_csv(folder / "log" / "items.csv")
    values = tomllib.loads(path.read_text())
    values["items"]["display"] = display
    path.write_text(tomli_w.dumps(values))
    prepare(load_spec(path), folder / "data", base=path.parent)
    return folder / "data"


def expected(id: int) -> dict[str, str]:
    title = {} if id % 7 == 3 else {"title": f"Item no. {id} – «é»"}
    return {**title, "image": f"https://img.example/{id}.jpg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("display")
    write_titles(path, ["title", "image"])
    model = config_of("lime-mha", width=8, heads=2, links=4, hidden=4)
    train(path / "data", path / "run", model=model, config=TrainConfig(epochs=1))
    build_index(path / "run", path / "index")
    return path


def shown(index: Index, ids: list[int]) -> list[dict[str, str]]:
    return index.display.of(index.ids.find(ids))


def test_a_dataset_and_an_index_hold_what_is_shown(folder):
    dataset, index = Dataset(folder / "data"), Index.open(folder / "index", verify=True)
    ids = dataset.item_ids.tolist()
    assert [dataset.displayed(row) for row in range(len(ids))] == list(map(expected, ids))
    assert shown(index, ids) == list(map(expected, ids))
    assert index.display.columns == ("title", "image")
    assert index.display.of([-1, 0]) == [{}, expected(int(index.ids[0]))]
    assert index.manifest["format"] == 7


def test_no_model_reads_what_is_shown(folder, tmp_path):
    """The encoding, and with it the weights, are those of the same log without titles."""
    write_titles(tmp_path, [])
    with_titles, without = Dataset(folder / "data"), Dataset(tmp_path / "data")
    assert with_titles.encoding == without.encoding and not without.display
    model = config_of("lime-mha", width=8, heads=2, links=4, hidden=4)
    train(tmp_path / "data", tmp_path / "run", model=model, config=TrainConfig(epochs=1))
    build_index(tmp_path / "run", tmp_path / "index")
    one, other = (load_run(path / "run").ranker.state_dict() for path in (folder, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    plain = Index.open(tmp_path / "index")
    assert plain.display is None and plain.manifest["format"] == 7
    ranking = Recommender(tmp_path / "run", tmp_path / "index").rank(1, k=2)
    assert "display" not in ranking.to_dict()["items"][0]


def test_rankings_show_titles(folder):
    ranking = Recommender(folder / "run", folder / "index").rank(1, k=9)
    for item in ranking:
        assert item.display == expected(item.id)
    titled = next(item for item in ranking if "title" in item.display)
    assert titled.display["title"] in ranking.text()
    assert titled.to_dict()["display"] == titled.display


def test_explanations_and_similar_items_show_titles(folder):
    recommender = Recommender(folder / "run", folder / "index")
    ranking = recommender.rank(history=[4, 10], k=5, explain=5)
    explanation = ranking[0].explanation
    events = explanation.to_dict()["events"]
    assert [event.get("title") for event in events] == ["Item no. 4 – «é»", None]
    assert explanation.titles.get(ranking[0].id) == expected(ranking[0].id).get("title")
    assert "4 Item no. 4 – «é»" in explanation.text()
    full = recommender.rank(history=[4, 5], k=30, explain=30)
    raised = [one for item in full.to_dict()["items"] for one in item["because"]]
    assert raised and all(one["title"] == expected(one["item"])["title"] for one in raised)
    assert f"{raised[0]['item']} {raised[0]['title']} (+" in full.text()
    found = recommender.similar(4, k=3)
    assert found.display == expected(4) and [one.display for one in found] == [
        expected(one.id) for one in found
    ]
    assert "item 4, Item no. 4 – «é»: the most similar of 29 items" in found.text()


def test_a_server_finds_items_by_title_without_an_item_table(folder, tmp_path):
    shutil.copytree(folder / "index", tmp_path / "index")
    engine = Serving(folder / "run", tmp_path / "index", SqliteStore(tmp_path / "events.db"))
    assert engine.items("NO. 12", 5)["items"] == [
        {"item": 12, "features": {}, "display": expected(12)}
    ]
    found = engine.items("«É»", 100)["items"]
    assert sorted(one["item"] for one in found) == [id for id in range(30) if id % 7 != 3]
    assert engine.items("img.example", 5)["items"] == []  # addresses do not count
    assert engine.items("3", 2)["items"][0]["item"] == 3  # an id comes first
    assert engine.items('", "', 5)["items"] == []
    new = {"item_id": 900, "group": "g1", "tags": "t1", "length": 3, "title": 'A "new" one'}
    engine.put_items([{**new, "image": None}])
    assert [one["item"] for one in engine.items('a "NEW" o', 5)["items"]] == [900]
    assert engine.item("900")["live"] and not engine.item("4")["live"]
    engine.put_items([{**new, "image": None, "title": "Another"}])
    assert engine.items('"new"', 5)["items"] == []
    model = engine.model()
    assert model["display"] == ["title", "image"]
    assert [one["name"] for one in model["event_types"]] == ["click", "no click"]
    explained = engine.explain(Explain(history=[{"item": 4, "labels": {"click": 1}}], items=[5]))
    assert explained["items"][0]["title"] == "Item no. 5 – «é»"
    assert explained["items"][0]["events"][0]["title"] == "Item no. 4 – «é»"
    engine.close()


def test_changes_of_an_index_change_what_is_shown(folder, tmp_path):
    run, path = folder / "run", tmp_path / "index"
    shutil.copytree(folder / "index", path)
    new = {"item_id": 900, "group": "g1", "tags": "t1", "length": 3, "title": "New", "image": None}
    add_items(run, path, [new, {**new, "item_id": 901, "title": ["A", 5]}])
    without = {name: value for name, value in new.items() if name not in ("title", "image")}
    put_items(run, path, [{**without, "item_id": 2}, {**new, "item_id": 4, "title": 17}])
    change_items(None, path, remove=[5])
    for _ in range(2):
        index = Index.open(path, verify=True)
        assert shown(index, [900, 901, 2, 4, 6]) == [
            {"title": "New"},
            {"title": "A, 5"},
            {},
            {"title": "17"},
            expected(6),
        ]
        compact_index(path)
    assert read_json(path / "manifest.json", "an index")["format"] == 7


def test_display_is_for_the_item_table():
    source = {"files": ["a.csv"], "time": "time"}
    label = {"name": "click", "kind": "binary"}
    with pytest.raises(SpecError, match="display is for columns of the item table"):
        validate(
            Spec,
            {
                "name": "x",
                "events": [source],
                "labels": [label],
                "users": {"files": ["u.csv"], "display": ["name"]},
            },
            "here",
        )
