"""Items that only histories hold: prepared, indexed, read by histories and never offered."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from limerank.data.dataset import Dataset
from limerank.data.description import load_spec
from limerank.data.prepare import prepare
from limerank.data.spec import Spec
from limerank.errors import DataError, SpecError, UnknownError
from limerank.evaluation.evaluate import evaluate
from limerank.index import Index
from limerank.index.building import build_index
from limerank.ranking.recommender import Recommender
from limerank.ranking.scorer import ModelScorer, QuantisedScorer
from limerank.validation import validate
from tests.catalogues import make_run
from tests.worlds import write_log

HIDDEN = [3, 8, 21, 29]
ITEMS = 30


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Dataset, run and index of a log whose items HIDDEN are not candidates."""
    folder = tmp_path_factory.mktemp("hidden")
    path = write_log(folder / "log", items=ITEMS)
    table = pl.read_csv(folder / "log" / "items.csv")
    marks = [None if item == 5 else item not in HIDDEN for item in table["item_id"]]
    table.with_columns(pl.Series("offer", marks)).write_csv(folder / "log" / "items.csv")
    spec = load_spec(path)
    assert spec.items is not None
    spec = spec.model_copy(update={"items": spec.items.model_copy(update={"candidate": "offer"})})
    prepare(spec, folder / "data", base=path.parent)
    data = Dataset(folder / "data")
    run = make_run(folder / "run", data, model="lime-mha")
    build_index(run, folder / "index", data=data)
    return data, run, Index.open(folder / "index", run.fingerprint), folder


def test_the_mark_goes_from_the_table_to_the_index(parts):
    data, _, index, _ = parts
    assert sorted(data.item_ids[~data.candidate]) == HIDDEN, "an empty mark hides nothing"
    assert sorted(index.ids[index.hidden]) == HIDDEN
    assert len(index) == ITEMS, "histories read all items"


@pytest.mark.parametrize("kind", [ModelScorer, QuantisedScorer])
def test_no_scorer_offers_them(parts, kind):
    data, run, index, _ = parts
    scorer = kind(run.ranker, index)
    batch = data.batch(data.requests_of("test")[:6])
    with torch.inference_mode():
        state = run.ranker.encode_users(batch.users, run.ranker.item_vectors(batch.items))
    shown = np.setdiff1d(np.arange(ITEMS), index.hidden)
    expected = scorer.top(state, ITEMS, rows=shown)
    everything = np.arange(ITEMS)
    allow = np.ones(ITEMS, dtype=bool)
    for options in ({}, {"rows": everything}, {"allow": allow}, {"allow": np.tile(allow, (6, 1))}):
        found = scorer.top(state, ITEMS, **options)
        assert found.rows.shape == (6, ITEMS - len(HIDDEN))
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.logits, expected.logits)


def test_rankings_leave_them_out_and_histories_may_hold_them(parts):
    data, run, index, _ = parts
    recommender = Recommender(run, index, data)
    ranking = recommender.rank(history=HIDDEN, k=ITEMS)
    assert ranking.events == len(HIDDEN)
    assert ranking.candidates == len(ranking) == ITEMS - len(HIDDEN)
    assert not {item.id for item in ranking} & set(HIDDEN)
    with pytest.raises(UnknownError, match=r"1 of 2 candidates occur in histories only.* 8"):
        recommender.rank(candidates=[1, 8])


def test_lists_are_measured_without_them(parts):
    _, run, _, folder = parts
    lists = evaluate(run.path, out=folder / "metrics.json").lists
    assert lists["catalogue"] == ITEMS - len(HIDDEN)


def test_a_new_table_may_hide_items(parts):
    data, run, _, folder = parts
    table = pl.read_csv(folder / "log" / "items.csv").head(3)
    new = table.with_columns(item_id=pl.Series([900, 901, 3]), offer=pl.Series([1, 0, 1]))
    new.write_csv(folder / "new.csv")
    build_index(run, folder / "merged", data=data, items=folder / "new.csv", merge=True)
    index = Index.open(folder / "merged")
    assert sorted(index.ids[index.hidden]) == [8, 21, 29, 901], "the table says that 3 is offered"
    new.drop("offer").write_csv(folder / "new.csv")
    with pytest.raises(DataError, match="no column 'offer'"):
        build_index(run, folder / "other", data=data, items=folder / "new.csv")


def test_users_have_no_such_mark(parts):
    data = parts[0]
    spec = load_spec(data.path / "spec.toml").model_dump(mode="json")
    spec["users"]["candidate"] = "country"
    with pytest.raises(SpecError, match="candidate is a column of the item table"):
        validate(Spec, spec, "spec")
