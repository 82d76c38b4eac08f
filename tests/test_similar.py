"""Similar items: cosines over the arrays of an index, sensible on a log whose truth is known, and
the same in the command, in Python and in the server."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
from typer.testing import CliRunner

from limerank.cli.app import app
from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.errors import SpecError, UnknownError
from limerank.index import Index
from limerank.index.building import build_index
from limerank.index.changes import remove_items
from limerank.ranking.alike import FLOOR, ByTerms, alike, nearest
from limerank.ranking.recommender import Recommender
from limerank.ranking.similar import similar_items
from limerank.serving.engine import Serving
from limerank.serving.stores import SqliteStore
from limerank.training.trainer import train
from tests.catalogues import ITEMS, plain_log, shop
from tests.worlds import config_of, write_positives

GROUPS = 4


@pytest.fixture(scope="module", params=["lime-mha", "two-tower", "anchored"])
def index(request) -> Index:
    """Of models without anchored links, and of one with them."""
    of = shop("lime-mha", anchors=None) if request.param == "anchored" else shop(request.param)
    return of.index


@pytest.fixture(scope="module")
def positives(tmp_path_factory):
    """A log of users who each view and buy items of one group; nothing but the users shows which
    items go together: there is no item table."""
    path = tmp_path_factory.mktemp("groups")
    spec = write_positives(path / "log", groups=GROUPS)
    prepare(load_spec(spec), path / "data", base=spec.parent)
    return path


@cache
def trained(path, model: str) -> Recommender:
    out = path / model
    if model in ("item-knn", "most-popular"):
        train(path / "data", out, model=model)
    else:
        settings = config_of(model, width=16, hidden=8, links=4)
        train(path / "data", out, model=settings, config={"epochs": 4, "learning_rate": 0.01})
    build_index(out, path / f"{model}-index", data=Dataset(path / "data"))
    return Recommender(out, path / f"{model}-index")


def group(id: str) -> int:
    return int(id[1:]) % GROUPS


def by_hand(index: Index, row: int) -> np.ndarray:
    """Similarities in float64, from the definition."""
    shown = np.setdiff1d(np.arange(len(index)), index.hidden)
    t = np.asarray(index.vectors, np.float64)
    t = t - t[shown].mean(0)
    _, s, v = np.linalg.svd(t[shown], full_matrices=False)
    x = t @ v.T / np.maximum(s, np.sqrt(FLOOR) * s[0])
    found = x @ x[row] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[row])
    if index.anchors is None:
        return found
    values = np.zeros((len(index), index.anchors.item_tokens))
    near = np.zeros((len(index), ITEMS + 1))
    for at in range(len(index)):
        keys = index.anchors.keys(np.array([at]))
        for key, share in zip(keys.keys.tolist(), keys.shares.tolist(), strict=True):
            if key < 0:
                near[at, -key] += share or index.anchors.shares.max()
            elif key < index.anchors.item_tokens:
                values[at, key] += share
    parts = [found]
    for shares in (values, near) if near.any() else (values,):
        norms = np.linalg.norm(shares, axis=1)
        parts.append(shares @ shares[row] / np.maximum(norms * norms[row], 1e-12))
    return np.mean(parts, axis=0)


def test_similarities_are_cosines_of_centred_numbers(index):
    of = ByTerms(index)
    for row in (0, 17, ITEMS - 1):
        assert of.to(row) == pytest.approx(by_hand(index, row), abs=1e-5)
        some = np.array([5, 3, 60])
        assert of.to(row, some) == pytest.approx(of.to(row)[some], abs=1e-6)
        assert of.against(some)(row) == pytest.approx(of.to(row)[some], abs=1e-6)
        assert of.to(row)[row] <= 1 + 1e-5 and of.to(row).argmax() == row


def test_the_nearest_are_those_of_a_sort(index):
    of, row = ByTerms(index), 11
    values = of.to(row)
    order = [at for at in np.lexsort((np.arange(ITEMS), -values)).tolist() if at != row]
    assert nearest(of, row, 7).rows.tolist() == order[:7]
    assert nearest(of, row, 7).similarities == pytest.approx(values[order[:7]])
    assert nearest(of, row, ITEMS + 5).rows.tolist() == order
    allow = np.arange(ITEMS) % 3 == 0
    excluded = np.array(order[:2])
    wanted = [at for at in order[2:] if at % 3 == 0]
    assert nearest(of, row, 9, allow=allow, exclude=excluded).rows.tolist() == wanted[:9]


def test_of_equal_similarities_the_lower_rows_come_first(index):
    class Same(ByTerms):
        def to(self, row, rows=None):
            return np.where(np.arange(len(self.index)) < 20, 0.5, 0.25).astype(np.float32)

    assert nearest(Same(index), 3, 22).rows.tolist() == [*range(3), *range(4, 20), 20, 21, 22]


@pytest.mark.parametrize("model", ["lime-mha", "two-tower", "item-knn"])
def test_similar_items_are_those_that_the_same_users_want(positives, model):
    """The truth: items of one group. Of lists by chance, 9 in 39 would be."""
    recommender = trained(positives, model)
    shares = []
    for id in recommender.index.ids[:].tolist():
        found = recommender.similar(id, k=5)
        shares += [group(one.id) == group(id) for one in found]
    assert np.mean(shares) > (0.9 if model == "item-knn" else 0.5)


def test_item_knn_has_neighbours_and_needs_its_run(positives):
    recommender = trained(positives, "item-knn")
    found = recommender.similar("i1", k=500)
    values = [one.similarity for one in found]
    assert values == sorted(values, reverse=True) and 0 < min(values) <= max(values) <= 1
    assert len(found) < len(recommender.index) - 1  # no others are neighbours
    with pytest.raises(SpecError, match="whose neighbours are in its run"):
        alike(recommender.index)


def test_models_that_describe_no_items_refuse(positives):
    recommender = trained(positives, "most-popular")
    with pytest.raises(SpecError, match="does not describe items"):
        recommender.similar("i1")
    with pytest.raises(SpecError, match="does not describe items"):
        recommender.rank(rules={"diversity": 0.5})


def test_filters_exclusions_and_unknown_items():
    of = shop("lime-mha")
    recommender = Recommender(of.run, of.index, of.data)
    full = [one.id for one in recommender.similar(7, k=ITEMS)]
    assert 7 not in full and len(full) == ITEMS - 1
    found = recommender.similar("7", k=4, filter={"group": ["g1"]}, exclude=full[:9])
    assert [one.id for one in found] == [id for id in full[9:] if id % 5 == 1][:4]
    assert recommender.similar(7, filter={"length": {"from": 30, "to": 31}})[:].items
    with pytest.raises(UnknownError, match="has no item 999"):
        recommender.similar(999)
    with pytest.raises(SpecError, match="k is 0"):
        recommender.similar(7, k=0)
    with pytest.raises(SpecError, match="no item feature is called 'colour'"):
        recommender.similar(7, filter={"colour": ["red"]})


def test_the_command_needs_the_index_alone(positives):
    of = shop("lime-mha")
    runner = CliRunner()

    def run(*arguments):
        return runner.invoke(app, ["similar", *map(str, arguments)])

    found = run(of.index.path, 7, 9, "-k", 3, "--json")
    assert found.exit_code == 0, found.output
    expected = Recommender(of.run, of.index, of.data)
    assert json.loads(found.output) == [expected.similar(id, k=3).to_dict() for id in (7, 9)]
    found = run(of.index.path, 7, "--run", of.run.path, "--filter", 'group = ["g1"]', "-k", 2)
    assert found.exit_code == 0 and "the most similar of 89 items" in found.output
    assert "--filter needs --run" in run(of.index.path, 7, "--filter", "a = 1").stderr
    knn = trained(positives, "item-knn")
    assert "limerank similar --run RUN" in run(knn.index.path, "i1").stderr
    assert run(knn.index.path, "i1", "--run", knn.run.path).exit_code == 0


def test_live_items_are_similar_at_once_and_removed_ones_are_not(tmp_path):
    of = shop("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")
    items = plain_log() / "items.csv"
    store = SqliteStore(tmp_path / "events.db")
    engine = Serving(of.run.path, tmp_path / "index", store, items=items)
    before = engine.similar("7", 5, None, [])
    here = Recommender(of.run, of.index, of.data).similar(7, k=5)
    assert [one["item"] for one in before["items"]] == [one.id for one in here]
    assert before["item"] == 7 and before["features"]["group"] == "g2"
    engine.put_items([{"item_id": 900, "group": "g2", "tags": "t1|t0", "length": 17.0}])
    found = engine.similar("900", 3, {"group": ["g2"]}, [])
    assert len(found["items"]) == 3
    assert {one["features"]["group"] for one in found["items"]} == {"g2"}
    first = found["items"][0]["item"]
    assert 900 in [one["item"] for one in engine.similar(str(first), 1000, None, [])["items"]]
    engine.remove_item(str(first))
    again = [one["item"] for one in engine.similar("900", 3, {"group": ["g2"]}, [])["items"]]
    assert first not in again
    found = engine.similar("900", 3, {"group": ["g2"]}, [str(again[0])])
    assert again[0] not in [one["item"] for one in found["items"]]
    engine.close()


def test_a_removed_item_has_similar_items_and_is_none(tmp_path):
    of = shop("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")
    remove_items(tmp_path / "index", [7])
    index = Index.open(tmp_path / "index")
    assert len(similar_items(ByTerms(index), 7, 3)) == 3
    assert 7 not in [one.id for one in similar_items(ByTerms(index), 9, ITEMS)]
