"""The profile of a history, against its definition event by event."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limerank.models.anchors import fading_weights
from limerank.models.config import ModelConfig
from limerank.models.profile import FADINGS, Means, merged, total
from limerank.models.ranker import gather
from limerank.models.registry import build
from limerank.ranking.scorer import native
from tests.catalogues import shop
from tests.references import profile
from tests.worlds import SHAPE, batch, config_of, unsure

CLOSE = {"atol": 1e-9, "rtol": 1e-9}
LENGTHS, COUNTS_OF = [5, 0, 130, 2], [3, 1, 2, 2]


def model(name: str = "lime-mha", **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    given = {"width": 16, "heads": 2, "links": 5, "hidden": 12, "blocks": 2, "profile": 6}
    ranker = build(SHAPE, config_of(name, **{**given, **settings}))
    unsure(ranker)
    return ranker.double().eval()


def double(users):
    features = replace(
        users.features,
        numeric=users.features.numeric.double(),
        weights=users.features.weights.double(),
    )
    return replace(users, age=users.age.double(), features=features)


def test_a_profile_is_what_the_module_says():
    ranker, full = model(), batch(LENGTHS, COUNTS_OF)
    users, vectors = double(full.users), torch.randn(len(full.items.ids), 16).double()
    with torch.no_grad():
        found = ranker.profile(users, vectors)
        for b, n in enumerate(LENGTHS):
            first, query = profile(ranker.profile, users, vectors, b, n)
            torch.testing.assert_close(found.first[b], first, **CLOSE)
            torch.testing.assert_close(found.query[b], query, **CLOSE)


def test_profiles_at_prefixes_are_those_of_the_events_before():
    ranker, full = model(), batch(LENGTHS, COUNTS_OF)
    users, vectors = double(full.users), torch.randn(len(full.items.ids), 16).double()
    owner = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3])
    prefix = torch.tensor([0, 2, 5, 0, 0, 1, 63, 64, 65, 130, 1])
    with torch.no_grad():
        found = ranker.profile.at_prefixes(users, vectors, owner, prefix)
        for m, (b, n) in enumerate(zip(owner.tolist(), prefix.tolist(), strict=True)):
            first, query = profile(ranker.profile, users, vectors, b, n)
            torch.testing.assert_close(found.first[m], first, **CLOSE)
            torch.testing.assert_close(found.query[m], query, **CLOSE)


@given(st.lists(st.integers(0, 90), min_size=2, max_size=4), st.integers(0, 9))
def test_means_of_two_parts_give_those_of_all(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    events = torch.randn(sum(sizes), 5, generator=generator, dtype=torch.float64)

    def means(part):
        n = len(part)
        fading = torch.tensor(FADINGS).double()
        weights = (
            fading[:, None] ** (n - 1 - torch.arange(n))
            / total(fading, torch.tensor(n)).clamp(min=1e-12)[:, None]
        )
        found = weights @ part
        return Means(found[None], found[None, :, None])

    found, count = means(events[:0]), 0
    for size in sizes:
        newer = means(events[count : count + size])
        found = merged(found, torch.tensor([count]), newer, torch.tensor([size]))
        count += size
    torch.testing.assert_close(found.outcomes, means(events).outcomes, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.keys, means(events).keys, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["lime-mha", "lime-xor"])
def test_a_model_starts_as_it_is_without_a_profile(name):
    full = batch([5, 0, 7], [3, 1, 2])
    logits = []
    for size in (0, 6):
        torch.manual_seed(0)
        config = config_of(name, width=16, heads=2, links=5, blocks=2, profile=size)
        logits.append(build(SHAPE, config).eval()(full)[full.real])
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", ["lime-mha", "lime-xor"])
def test_logits_have_the_products_of_queries_and_keys(name):
    ranker = model(name).float()
    full = batch([5, 0, 7], [3, 1, 2])
    with torch.no_grad():
        vectors = ranker.item_vectors(full.items)
        terms = gather(ranker.encode_items(vectors[: full.distinct]), full.candidates)
        state = ranker.encode_users(full.users, vectors)
        with_query = ranker.score(state, terms)
        without = ranker.score(state._replace(query=None), terms)
        expected = torch.einsum("bmsx,bksx->bmk", *(x[..., None] for x in (terms.key, state.query)))
    torch.testing.assert_close(with_query - without, expected, atol=1e-5, rtol=1e-5)
    assert expected[1].abs().max() == 0 < expected[0].abs().max()  # an empty history has no query


def test_keys_start_along_the_collaborative_vectors():
    ranker = build(SHAPE, ModelConfig(model="lime-mha", vectors=8, profile=8))
    of_vectors = ranker.item_tower.of_statistics.weight[:, -8:]
    cosines = torch.nn.functional.cosine_similarity(ranker.profile.key.weight, of_vectors.T)
    torch.testing.assert_close(cosines, torch.ones(8))


@pytest.mark.parametrize("lengths", [[0, 0], [1], LENGTHS, [3000]])
def test_the_native_profile_is_the_definition(lengths):
    ranker = model().float()
    full = batch(lengths, [1] * len(lengths))
    vectors = torch.randn(len(full.items.ids), 16)
    with torch.no_grad():
        found = ranker.profile(full.users, vectors, native=True)
        expected = ranker.profile(full.users, vectors)
    for own, part in zip(found, expected, strict=True):
        torch.testing.assert_close(own, part, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(
    ("part", "value"), [("items", -1), ("items", 10**6), ("tokens", 10**6), ("lengths", 99)]
)
def test_a_native_profile_of_wrong_histories_is_refused(part, value):
    ranker, full = model().float(), batch([5, 2], [1, 1])
    vectors = torch.randn(len(full.items.ids), 16)
    wrong = getattr(full.users, part).clone()
    wrong.view(-1)[0] = value
    users = replace(full.users, **{part: wrong})
    with torch.no_grad(), pytest.raises(ValueError, match=r"no vector|longer than its batch"):
        ranker.profile(users, vectors, native=True)


@pytest.mark.parametrize("settings", [{}, {"anchors": None}, {"links": 4, "profile": 7}])
def test_every_path_of_the_native_scorer_gives_the_same_bits(settings):
    of = shop("lime-mha", **{"anchors": (), **settings})
    state, found = of.state(5), []
    assert of.index.keys and state.query.abs().max() > 0
    for path in native.paths():
        scorer = native.NativeScorer(of.run.ranker, of.index, path=path)
        some = scorer.scores(state, np.array([3, 40, 3]))
        every = scorer.scores(state)
        np.testing.assert_array_equal(some, every[:, [3, 40, 3]])
        found.append((every, *scorer.top(state, 7, weights=np.array([1.0, 0.3], np.float32))))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, same)
    without = native.NativeScorer(of.run.ranker, of.index).scores(state._replace(query=None))
    assert abs(without - found[0][0]).max() > 0.01


def test_weights_of_long_ago_are_zero_and_no_denormal_numbers():
    weights = fading_weights(0.6, torch.arange(3000))
    torch.testing.assert_close(weights[:60], 0.6 ** torch.arange(60))
    assert weights[0] == 1 and weights[weights > 0].min() >= 1e-20
    assert (weights[100:] == 0).all() and (weights[:85] > 0).all()
