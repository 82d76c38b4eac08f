"""Explanations of anchored links: what the history has of each key, and its exact effect."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from limerank.data.encoding import read_vocabulary
from limerank.data.features import anchors_of
from limerank.ranking.anchored import in_words
from limerank.ranking.recommender import Recommender
from limerank.ranking.request import index_keys
from tests.catalogues import shop
from tests.test_explain import busy_user

WEIGHTS = np.array([1.0, -0.3], dtype=np.float32)


@pytest.fixture(scope="module", params=["lime-mha", "din"])
def explained(request):
    """A shop, a past, the index rows of items seen and unseen, and their explanations."""
    of = shop(request.param, anchors=None)
    recommender = Recommender(of.run, of.index, of.data, scorer="model")
    user = int(np.flatnonzero(of.data.user_ids == busy_user(of))[0])
    log = recommender._log(user, None)
    past = recommender._past(log, user, recommender._end(log, recommender._log_end), {})
    rows = np.arange(30)
    request = recommender._flow.check(5, task_weights={"click": 1.0, "watch": -0.3})
    np.testing.assert_array_equal(request.weights, WEIGHTS)
    found = recommender._flow.explain(past, request, rows, of.index.ids[rows].tolist())
    return of, past, rows, found


def key_of(of, one, row):
    if one.kind == "item":
        return of.run.ranker.shape.item_tokens + row
    if one.kind == "neighbour":
        return -1 - of.data.item_ids.tolist().index(one.value)
    start, _ = anchors_of(of.run.manifest["encoding"])[one.kind]
    table = read_vocabulary(of.run.path, f"item_{one.kind}")
    return start + dict(table.select("value", "code").iter_rows())[one.value]


def test_an_effect_is_the_value_minus_that_without_the_link(explained):
    of, past, rows, found = explained
    ranker = of.run.ranker
    with torch.inference_mode():
        vectors = torch.from_numpy(np.array(of.index.vectors[rows]))
        terms, keys = ranker.encode_items(vectors), index_keys(of.index, rows)
        state = ranker.encode_users(past.users, past.vectors)

        def values(changed):
            every = torch.arange(len(rows))
            extra = ranker.extra(changed, keys, every, counted=of.counted(rows))
            return ranker.score(changed, terms, extra)[0] @ torch.from_numpy(WEIGHTS)

        full, anchored = values(state), state.anchored
        checked = 0
        for row, explanation in enumerate(found):
            assert explanation.value == pytest.approx(float(full[row]), abs=1e-5)
            sizes = [abs(one.effect) for one in explanation.anchored]
            assert sizes == sorted(sizes, reverse=True)
            for one in explanation.anchored[:2]:
                links = anchored.links.clone()
                links[anchored.keys == key_of(of, one, row)] = 0
                without = values(state._replace(anchored=replace(anchored, links=links)))
                assert one.effect == pytest.approx(float(full[row] - without[row]), abs=1e-5)
                checked += abs(one.effect) > 1e-3
        assert checked > 20


def test_every_key_in_common_is_named_with_its_events(explained):
    """Against a loop over the history's events."""
    of, past, _, found = explained
    anchored, data = of.data.anchored, of.data
    index_of = {id: row for row, id in enumerate(data.item_ids.tolist())}

    def keys(item):
        row = index_of[item]
        first, end = data.items.offsets[row : row + 2]
        tokens = {int(token) for token in data.items.tokens[first:end] if anchored[token]}
        return tokens | {of.run.ranker.shape.item_tokens + row}

    def near(item):
        """Those of its neighbours."""
        ids, shares = (part[index_of[item] + 1] for part in of.run.ranker.neighbour_table.lists)
        return {-int(id) for id in ids[shares > 0]}

    def held_by(event):
        return keys(event) | {-1 - index_of[event]}

    length, kinds = len(past.items), Counter()
    for row, explanation in enumerate(found):
        expected = {}
        for key in keys(explanation.item) | near(explanation.item):
            events = [n for n in range(length) if key in held_by(past.items[n])]
            if events:
                expected[key] = events
        held = {key_of(of, one, row): one for one in explanation.anchored}
        assert held.keys() == expected.keys()
        for key, one in held.items():
            events = expected[key]
            assert (one.events, one.ago) == (len(events), length - 1 - events[-1])
            assert one.time == past.times[events[-1]]
            days = (past.times[-1] - one.time) / 86_400_000
            assert one.age == pytest.approx(days, rel=1e-5, abs=1e-6)
            clicks = sum("click" in past.outcomes()[n] for n in events)
            assert one.outcomes == ({"click": clicks} if clicks else {})
            kinds[one.kind] += 1
            if one.kind == "item":
                assert one.value == explanation.item
            if one.kind == "neighbour":
                assert one.value in past.items and one.value != explanation.item
    assert kinds["item"] and kinds["neighbour"] and len(kinds) > 2


def test_outcomes_are_those_of_the_log(explained):
    of, past, *_ = explained
    user = int(np.flatnonzero(of.data.user_ids == busy_user(of))[0])
    end = int(of.data.event_offsets[user + 1])
    clicks = of.data.events["label_click"][end - len(past.items) : end] == 1
    assert [("click" in names) for names in past.outcomes()] == clicks.tolist()


def test_the_texts(explained):
    *_, found = explained
    one = max(found, key=lambda explanation: len(explanation.anchored))
    lines = one.text()
    first = one.anchored[0]
    assert f"{first.kind} {first.value}" in lines and first.text in lines
    assert one.to_dict()["anchored"][0]["effect"] == first.effect


def test_a_model_without_anchored_links_explains_none():
    of = shop("lime-mha", anchors=())
    recommender = Recommender(of.run, of.index, of.data, scorer="model")
    (first, *_) = recommender.rank(busy_user(of), k=2, explain=1)
    assert first.explanation.anchored == () and "anchored" not in first.explanation.text()


@pytest.mark.parametrize(
    ("events", "outcomes", "ago", "age", "clock", "text"),
    [
        (3, {"click": 2}, 4, 2 / 1440, True,
         "3 events (click 2), the newest 2 minutes before the end of the history"),
        (1, {}, 1, 3.2, True, "1 event, 3 days before the end of the history"),
        (1, {}, 0, 0.0, True, "1 event, it is the last of the history"),
        (2, {}, 0, 0.0, False, "2 events, the newest is the last of the history"),
        (2, {"view": 2, "cart": 1}, 1, 1.0, False,
         "2 events (view 2, cart 1), the newest 1 event before the end of the history"),
        (1, {}, 2, 0.0, True, "1 event, 0 seconds before the end of the history"),
    ],
)  # fmt: skip
def test_words(events, outcomes, ago, age, clock, text):
    assert in_words(events, Counter(outcomes), ago, age, clock=clock) == text
