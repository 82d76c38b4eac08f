"""One ranking flow: the server ranks as a Recommender does, and ids have one rule."""

from __future__ import annotations

import math
import shutil

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from limerank.errors import DataError, UnknownError
from limerank.ranking.recommender import Recommender
from limerank.serving.engine import Serving
from limerank.serving.fill import fill
from limerank.serving.messages import Explain, Rank
from limerank.serving.stores import SqliteStore
from tests.catalogues import ITEMS, MODELS, plain_log, shop


@pytest.fixture(params=MODELS)
def both(request, tmp_path):
    of = shop(request.param)
    shutil.copytree(of.index.path, tmp_path / "index")
    store = SqliteStore(tmp_path / "events.db")
    fill(store, of.data, base=plain_log())
    engine = Serving(of.run.path, tmp_path / "index", store)
    yield Recommender(of.run, of.index, of.data), engine
    engine.close()


def test_the_server_ranks_and_explains_as_a_recommender(both):
    recommender, engine = both
    now = recommender.form.log_end + 1000
    requests = [
        {},
        {"candidates": [7, 9, 11, 12, 13, 7]},
        {"exclude": [1, 2, "3"], "exclude_seen": False},
        {"task_weights": {"click": 0.5, "watch": 1.0}},
    ]
    for user in (*recommender.dataset.user_ids[:4].tolist(), "unknown"):
        for given in requests:
            ours = recommender.rank(user, k=ITEMS, time=now, **given)
            answer = engine.rank(Rank(user=user, k=ITEMS, time=now, **given))
            assert [one["item"] for one in answer["items"]] == [one.id for one in ours]
            assert [one["value"] for one in answer["items"]] == [one.value for one in ours]
            assert [one["scores"] for one in answer["items"]] == [one.scores for one in ours]
            assert (answer["known"], answer["events"]) == (ours.known, ours.events)
            assert answer["candidates"] == ours.candidates
        top = recommender.rank(user, k=3, time=now, explain=3)
        answer = engine.explain(Explain(user=user, items=[one.id for one in top], time=now))
        for theirs, own in zip(answer["items"], top, strict=True):
            explanation = own.explanation
            assert theirs["item"] == own.id and theirs["value"] == explanation.value
            assert [one["item"] for one in theirs["events"]] == [
                event.item for event in explanation.events
            ]
            effects = [
                None if math.isnan(event.effect) else event.effect for event in explanation.events
            ]
            assert [one["effect"] for one in theirs["events"]] == effects


# Ids


@pytest.fixture(scope="module")
def recommender():
    of = shop("lime-mha")
    return Recommender(of.run, of.index, of.data)


SEVEN = [7, "7", " 7 ", "7.0", 7.0, np.int64(7), np.uint8(7), np.float32(7), np.str_("7")]
SEVEN += [pl.Series([7])[0]]


@pytest.mark.parametrize("seven", SEVEN, ids=repr)
def test_an_id_is_one_id_in_any_spelling(recommender, seven):
    ours = recommender.rank(7, k=5)
    theirs = recommender.rank(seven, k=5)
    assert theirs == ours and theirs.user == 7 and theirs.known
    ours = recommender.rank(7, k=5, candidates=[7, 8, 9], exclude=[8], exclude_seen=False)
    theirs = recommender.rank(seven, k=5, candidates=[seven, 8, 9], exclude=[8], exclude_seen=False)
    assert theirs == ours and sorted(one.id for one in ours) == [7, 9]
    without = recommender.rank(3, k=ITEMS, exclude=[seven], exclude_seen=False)
    assert len(without) == ITEMS - 1 and 7 not in [one.id for one in without]
    ours = recommender.rank(history=[7, 9], k=5)
    assert recommender.rank(history=[seven, {"item": 9, "labels": {"click": 1}}], k=5) == ours
    assert recommender.user_rows([seven]).tolist() == recommender.user_rows([7]).tolist()


@pytest.mark.parametrize(
    "collection",
    [
        (7, 9, 11),
        {7: 1, 9: 1, 11: 1}.keys(),
        np.array([7, 9, 11], np.int16),
        np.array(["7", "9", "11"]),
        np.array([7.0, 9.0, 11.0]),
        pl.Series([7, 9, 11]),
        pl.Series(["7", "9", "11"]),
        pa.array([7, 9, 11]),
        pa.chunked_array([[7, 9], [11]]),
        (item for item in [7, 9, 11]),
    ],
    ids=lambda one: type(one).__name__,
)
def test_candidates_may_be_any_collection_of_ids(recommender, collection):
    ranking = recommender.rank(3, candidates=collection, exclude_seen=False)
    assert sorted(one.id for one in ranking) == [7, 9, 11]
    assert all(type(one.id) is int for one in ranking)


def test_a_value_that_is_not_a_list_of_ids_is_refused(recommender):
    for wrong in ("7", b"7", 7, {"item": 7}):
        with pytest.raises(DataError, match="expected a list of ids"):
            recommender.rank(3, candidates=wrong)
        with pytest.raises(DataError, match="expected a list of ids"):
            recommender.rank(3, exclude=wrong)
    with pytest.raises(UnknownError, match=r"2 of 3 candidates .*: 700, 'x'"):
        recommender.rank(3, candidates=np.array([7, 700, "x"], dtype=object))
    with pytest.raises(UnknownError, match=r"1 of 2 users .*: 700"):
        recommender.user_rows(np.array([7, 700]))
