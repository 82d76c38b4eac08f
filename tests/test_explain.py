"""Explanations are what the model did: shares of its own weights, effects by taking events away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from limerank.data.batch import Users
from limerank.models.ranker import gather
from limerank.ranking.explain import Past, explain
from limerank.ranking.recommender import Recommender
from limerank.ranking.request import index_keys
from tests.catalogues import MODELS, shop

WEIGHTS = np.array([1.0, -0.3], dtype=np.float32)


@pytest.fixture(params=[*MODELS, "anchored"])
def of(request):
    """Of every model, and of one with anchored links."""
    return shop("lime-mha", anchors=None) if request.param == "anchored" else shop(request.param)


def busy_user(of, rank=-1):
    """External id of the user with the longest log (or another in that order)."""
    lengths = of.data.requests["history_end"] - of.data.requests["history_start"]
    users = of.data.requests["user"]
    longest = [lengths[users == user].max() for user in range(len(of.data.user_ids))]
    return of.data.user_ids[np.argsort(longest)[rank]]


def explained(of, user=None, **given):
    recommender = Recommender(of.run, of.index, of.data, scorer="model")
    user = busy_user(of) if user is None else user
    return recommender, recommender.rank(user, k=4, explain=4, **given)


def test_shares_sum_to_one(of):
    _, ranking = explained(of)
    for item in ranking:
        shares = [event.share for event in item.explanation.events]
        assert sum(shares) == pytest.approx(1) and min(shares) >= 0
        assert len(shares) == ranking.events == 20  # the dataset's history length
        assert [event.position for event in item.explanation.events] == list(range(20))


def test_the_value_is_the_ranking_value(of):
    for weights in (None, {"click": 0.5, "watch": 2.0}):
        _, ranking = explained(of, task_weights=weights)
        for item in ranking:
            assert item.explanation.value == pytest.approx(item.value, abs=1e-5)
            assert item.explanation.item == item.id


def test_effects_are_what_the_model_says_without_the_event(of):
    """Brute force: each event is taken out of the history, one at a time."""
    recommender, ranking = explained(of)
    user = int(np.flatnonzero(of.data.user_ids == ranking.user)[0])
    log = recommender._log(user, None)
    now = recommender._end(log, recommender._log_end)
    full = recommender._past(log, user, now, {})
    ranker = of.run.ranker
    rows = np.array([item.row for item in ranking])
    keys = None if ranker.anchors is None else index_keys(of.index, rows)

    def values(users, vectors):
        state = ranker.encode_users(users, vectors)
        extra = ranker.extra(state, keys, torch.arange(len(rows)), counted=of.counted(rows))
        return ranker.score(state, terms, extra)[0, :, 0].numpy()

    with torch.inference_mode():
        terms = ranker.encode_items(torch.from_numpy(np.array(of.index.vectors[rows])))
        for position in (0, 7, 19):
            retained = np.delete(log.rows[-20:], position)
            without = recommender._past(replace(log, rows=retained), user, now, {})
            # The request's context is the request's: it does not change with its history.
            users = replace(without.users, context=full.users.context)
            expected = values(users, without.vectors)
            for item, value in zip(ranking, expected, strict=True):
                event = item.explanation.events[position]
                assert event.effect == pytest.approx(item.value - value, abs=2e-5)
        nothing = recommender._past(replace(log, rows=log.rows[:0]), user, now, {})
        users = replace(nothing.users, context=full.users.context)
        empty = values(users, nothing.vectors)
    found = [item.explanation.without_history for item in ranking]
    np.testing.assert_allclose(found, empty, atol=1e-5)


def test_events_are_those_of_the_log(of):
    _, ranking = explained(of)
    user = int(np.flatnonzero(of.data.user_ids == ranking.user)[0])
    mine = np.flatnonzero(of.data.requests["user"] == user)
    start = of.data.requests["history_start"][mine[0]]
    end = of.data.requests["first"][mine[-1]] + of.data.requests["count"][mine[-1]]
    rows = np.arange(start, end)[-20:]
    for event, row in zip(ranking[0].explanation.events, rows, strict=True):
        assert event.item == of.data.item_ids[of.data.events["item"][row]]
        assert event.time == of.data.events["time"][row]
        days = (of.data.events["time"][end - 1] - event.time) / 86_400_000
        assert event.age == pytest.approx(days, rel=1e-5)


def test_reasons_are_the_events_that_helped_most(of):
    _, ranking = explained(of)
    explanation = ranking[0].explanation
    reasons = explanation.reasons(5)
    effects = [event.effect for event in reasons]
    assert effects == sorted(effects, reverse=True) and all(effect > 0 for effect in effects)
    best = max(event.effect for event in explanation.events)
    assert best <= 0 or effects[0] == best
    assert ranking[0].because(2) == [event.item for event in reasons[:2]]


def test_an_empty_history(of):
    _, ranking = explained(of, user="nobody")
    assert not ranking.known and ranking.events == 0
    for item in ranking:
        assert item.explanation.events == () and item.because() == []
        assert item.explanation.without_history == pytest.approx(item.value, abs=1e-5)


def test_one_event(of):
    recommender = Recommender(of.run, of.index, of.data, scorer="model")
    ranking = recommender.rank(history=[5], k=2, explain=2)
    (event,) = ranking[0].explanation.events
    assert event.share == pytest.approx(1) and event.item == 5 and event.age == 0
    change = ranking[0].value - ranking[0].explanation.without_history
    assert event.effect == pytest.approx(change, abs=1e-5)


def test_the_picture(of):
    _, ranking = explained(of)
    explanation = ranking[0].explanation
    if of.index.weights is None:
        assert explanation.links is None and explanation.reads is None
        return
    config = of.run.ranker.config
    assert explanation.links.shape == (config.heads, config.links)
    assert explanation.reads.shape == (config.links, 20)
    np.testing.assert_allclose(explanation.links.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(explanation.reads.sum(1), 1, atol=1e-5)
    shares = explanation.links.mean(0) @ explanation.reads
    np.testing.assert_allclose([event.share for event in explanation.events], shares, atol=1e-5)


def test_effects_of_some_events_only(of):
    recommender, ranking = explained(of)
    user = int(np.flatnonzero(of.data.user_ids == ranking.user)[0])
    log = recommender._log(user, None)
    past = recommender._past(log, user, recommender._end(log, recommender._log_end), {})
    vectors = torch.from_numpy(np.array(of.index.vectors[:3]))
    keys = None if of.run.ranker.anchors is None else index_keys(of.index, np.arange(3))
    given = {"keys": keys, "counted": of.counted(np.arange(3))}
    (first, *_), (some, *_) = (
        explain(of.run.ranker, past, [0, 1, 2], vectors, WEIGHTS, **given, effects=count)
        for count in (99, 6)
    )
    known = [event for event in some.events if not np.isnan(event.effect)]
    assert len(known) == 6
    for event in known:
        assert event.effect == pytest.approx(first.events[event.position].effect, abs=1e-5)
    assert sum(event.share for event in some.events) == pytest.approx(1)
    none = explain(of.run.ranker, past, [0, 1, 2], vectors, WEIGHTS, **given, effects=0)[0]
    assert all(np.isnan(event.effect) for event in none.events) and none.reasons() == []
    assert sum(event.share for event in none.events) == pytest.approx(1)


# The weights that the model hands out


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_weights_of_reading_are_the_model_s_own(model):
    """What the links read is the handed-out weights times the values; padding weighs nothing."""
    of = shop(model)
    ranker = of.run.ranker
    batch = of.data.batch(of.requests())
    users, heads = batch.users, ranker.config.heads
    with torch.inference_mode():
        vectors = ranker.item_vectors(batch.items)
        weights = ranker.read_weights(users, vectors)
        n = users.items.shape[1]
        assert weights.shape == (12, heads, ranker.config.links, n)
        real = torch.arange(n) < users.lengths[:, None]
        assert (weights * ~real[:, None, None]).abs().max() == 0
        values = []
        layer = ranker.reading.out
        handle = layer.register_forward_pre_hook(lambda _, given: values.append(given[0]))
        links = ranker.contextualise(ranker.user_tower(users)[0])
        ranker.personalise(links, users, vectors)
        handle.remove()
        events = ranker.events(users, vectors)
        if model == "lime-xor":
            events = ranker.through(links, events, users.lengths)[1]
        kv = ranker.reading.key_value(events)
        v = kv.chunk(2, -1)[1].unflatten(-1, (heads, -1)).transpose(1, 2)
        read = ranker.reading.norm_read((weights @ v).transpose(1, 2).flatten(-2))
        torch.testing.assert_close(read, values[-1], atol=1e-5, rtol=1e-4)


def test_a_request_of_one_s_own():
    """The function itself, without a recommender: any history, as tensors."""
    of = shop("lime-mha")
    batch = of.data.batch(of.requests()[-1:])
    with torch.inference_mode():
        vectors = of.run.ranker.item_vectors(batch.items)

    def without(positions):
        for position in [*positions, None]:
            n = batch.users.items.shape[1]
            retained = [j for j in range(n) if position is not None and j != position]
            age = batch.users.age[:, retained]
            yield replace(
                batch.users,
                items=batch.users.items[:, retained],
                tokens=batch.users.tokens[:, retained],
                age=age - age[:, -1:] if retained else age,
                lengths=torch.tensor([len(retained)]),
            )

    n = int(batch.users.lengths[0])
    assert isinstance(batch.users, Users) and n > 1
    past = Past(batch.users, vectors, list(range(n)), np.arange(n), without)
    items = [f"item {position}" for position in range(batch.distinct)]
    complete = of.run.ranker.complete(batch.users.keys)
    offsets = complete.offsets[: batch.distinct + 1]
    held = slice(int(offsets[-1]))
    ids = batch.items.ids[: batch.distinct]
    keys = replace(complete, keys=complete.keys[held], shares=complete.shares[held])
    keys = replace(keys, offsets=offsets, ids=ids, complete=True)
    found = explain(of.run.ranker, past, items, vectors[: batch.distinct], WEIGHTS, keys=keys)
    with torch.inference_mode():
        logits = of.run.ranker(batch)[0]
        terms = gather(of.run.ranker.encode_items(vectors), batch.candidates)
        state = of.run.ranker.encode_users(batch.users, vectors)
        extra = of.run.ranker.extra(state, keys, batch.candidates)
        again = of.run.ranker.score(state, terms, extra)[0]
    torch.testing.assert_close(logits, again)
    for position, at in enumerate(batch.candidates[0, : batch.counts[0]]):
        value = float(logits[position] @ torch.from_numpy(WEIGHTS))
        assert found[int(at)].value == pytest.approx(value, abs=1e-5)
        assert found[int(at)].item == f"item {at}"
