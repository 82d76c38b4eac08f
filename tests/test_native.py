"""The native scorer's own: all paths give the same bits, on any input."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limerank.errors import SpecError
from limerank.kernels import _native
from limerank.ranking.scorer import ModelScorer, NativeScorer, QuantisedScorer, paths
from tests.catalogues import ITEMS, shop

NONE = np.zeros(0, np.int64)
NO_ENDS = np.zeros(1, np.int64)
ONE = np.ones((1, 1), np.float32)
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}


class World(NamedTuple):
    """Arrays of a random index and head, and of requests."""

    arrays: dict
    links: np.ndarray
    head: np.ndarray
    shape: dict
    anchors: dict | None = None
    anchored: tuple = ()

    def scorer(self, path=None, held=True):
        anchors = None if self.anchors is None else _native.Anchors(**self.anchors)
        return _native.Scorer(**self.arrays, **self.shape, anchors=anchors, path=path, held=held)

    def requests(self, scorer):
        return scorer.requests(self.links, self.head, *self.anchored)


def world(
    seed=0,
    items=500,
    heads=1,
    links=8,
    hidden=8,
    tasks=1,
    batch=2,
    gated=False,
    activation="relu",
    noise=1.0,
    features=None,
    numbers=8,
):
    rng = np.random.default_rng(seed)
    columns, sums, width = heads * links, hidden * (1 + gated), heads * 3
    floats = lambda *size: (rng.normal(size=size) * noise).astype(np.float32)  # noqa: E731
    arrays = {
        "weights": rng.integers(0, 256, (items, columns), dtype=np.uint8),
        "terms": rng.integers(-127, 128, (items, sums), dtype=np.int8),
        "weight_low": np.zeros(columns, np.float32),
        "weight_step": np.full(columns, 1 / 255, np.float32),
        "weight_mean": np.full(columns, 127, np.float32),
        "term_middle": floats(sums),
        "term_step": np.abs(floats(sums)) / 127,
        "from_links": floats(sums, width),
        "out": floats(tasks, hidden),
        "bias": floats(tasks),
        "hidden_rows": np.zeros(0, np.int32),
    }
    shape = {"heads": heads, "activation": activation, "gated": gated}
    w = World(arrays, floats(batch, links, width), floats(batch, sums), shape)
    if features is None:
        return w
    # Twenty sets of each feature, of the tokens 1 .. 60; the number 99 is that of item 0.
    kinds = np.repeat(np.arange(features, dtype=np.int32), 20)
    sets = np.arange(1, len(kinds) + 1)
    postings = sorted(
        (int(token), int(s), float(share))
        for s in sets
        for token, share in zip(rng.choice(60, 3, replace=False) + 1, rng.random(3), strict=True)
    )
    keys, of_sets, shares = (list(x) for x in zip(*postings, strict=True)) if postings else [[]] * 3
    codes = rng.integers(0, 21, (items, features)) * (rng.random((items, features)) < 0.5)
    codes = np.where(codes, codes + 20 * np.arange(features), 0)
    anchors = {
        "codes": codes.astype(np.int32),
        "keys": np.array(keys, np.int64),
        "sets": np.array(of_sets, np.int32),
        "shares": np.array(shares, np.float32),
        "kinds": np.concatenate([[0], kinds]).astype(np.int32),
        "item_tokens": 99,
        "layer": floats(sums, numbers),
    }
    held = [
        np.unique(np.append(rng.integers(1, 61, b * 9), 99 + rng.integers(0, items + 9, b * 7)))
        for b in range(batch)
    ]  # the first request has none
    offsets = np.cumsum([0, *map(len, held)])
    all_keys = np.concatenate([np.zeros(0, np.int64), *held]).astype(np.int64)
    return w._replace(anchors=anchors, anchored=(offsets, all_keys, floats(len(all_keys), numbers)))


def link_codes(w, b):
    """Codes of the anchored links of a request, [items, r], and their step [r]: the definition."""
    a, (offsets, keys, z) = w.anchors, w.anchored
    part = slice(offsets[b], offsets[b + 1])
    z = dict(zip(keys[part].tolist(), z[part], strict=True))
    width, items, features = a["layer"].shape[1], *a["codes"].shape
    of_sets = np.zeros((len(a["kinds"]), width), np.float32)
    for key, s, share in zip(a["keys"].tolist(), a["sets"], a["shares"], strict=True):
        if key in z:
            of_sets[s] += np.float32(share) * z[key]
    none = np.zeros(width, np.float32)
    of_items = np.array([z.get(99 + i, none) for i in range(items)]).reshape(items, width)
    most = np.abs(of_items).max(0, initial=0)
    for f in range(features):
        most = most + np.abs(of_sets[a["kinds"] == f]).max(0)
    step = (most / np.float32(127 - (features + 1) / 2)).astype(np.float32)
    safe = np.where(step > 0, step, 1)
    codes = np.round(of_items / safe)
    return codes + np.round(of_sets / safe)[a["codes"]].sum(1), step


def expected(w):
    """Logits of the definition, in float64: with what is rounded, rounded."""
    a = {name: value.astype(np.float64) for name, value in w.arrays.items()}
    heads, links = w.shape["heads"], w.links.shape[1]
    out = []
    both = zip(w.links.astype(np.float64), w.head.astype(np.float64), strict=True)
    for b, (of_links, user) in enumerate(both):
        by_head = of_links.reshape(links, heads, -1)
        layer = a["from_links"].reshape(len(a["from_links"]), heads, -1)
        f = np.einsum("lhe,ghe->hlg", by_head, layer)
        means = f.mean(1, keepdims=True)
        f0 = (f - means).reshape(heads * links, -1)
        m = a["weight_step"][:, None] * f0
        codes, linked = np.zeros((len(a["weights"]), 1)), np.zeros((1, m.shape[1]))
        if w.anchors is not None:
            codes, of_link = link_codes(w, b)
            linked = of_link[:, None] * w.anchors["layer"].T.astype(np.float64)
        step = np.abs(np.concatenate([m, linked])).max(0) / 127
        step[step == 0] = 1
        q = np.round(m / step)
        c = user + means.sum((0, 1)) + a["weight_low"] @ f0 + a["term_middle"]
        c = c + a["weight_mean"] @ (m - step * q)
        sums = a["weights"] @ q + codes @ np.round(linked / step)
        first = step * sums + a["term_step"] * a["terms"] + c
        activate = ACTIVATIONS[w.shape["activation"]]
        if w.shape["gated"]:
            first, gate = np.split(first, 2, axis=1)
            z = activate(first) * gate
        else:
            z = activate(first)
        out.append(z @ a["out"].T + a["bias"])
    return np.stack(out)


worlds = st.builds(
    world,
    seed=st.integers(0, 1000),
    items=st.one_of(st.integers(0, 70), st.integers(0, 10_000)),
    heads=st.sampled_from([1, 1, 2, 4]),
    links=st.one_of(st.integers(1, 9), st.integers(1, 256)),
    hidden=st.one_of(st.integers(1, 9), st.integers(8, 256)),
    tasks=st.integers(1, 16),
    batch=st.integers(0, 3),
    gated=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    features=st.sampled_from([None, 0, 1, 3]),
    numbers=st.integers(1, 9),
).filter(lambda w: w.arrays["weights"].size * w.arrays["terms"].shape[1] < 1 << 24)


@given(w=worlds, k=st.integers(1, 200), threads=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_path_gives_the_same_bits(w, k, threads, seed):
    items, tasks = len(w.arrays["weights"]), len(w.arrays["out"])
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(len(w.links), tasks)).astype(np.float32)
    rows = rng.integers(0, items, (1, 40)) if items else np.zeros((1, 0), np.int64)
    found = []
    for path in paths():
        scorer = w.scorer(path)
        assert scorer.path == path
        requests = w.requests(scorer)
        complete = scorer.scores(requests, None, threads)
        some = scorer.scores(requests, rows, 1)
        np.testing.assert_array_equal(some, complete[:, rows[0]])
        added = rng_of(seed, (len(w.links), rows.shape[1], w.arrays["terms"].shape[1]))
        with_extra = scorer.scores(requests, rows, 1, added)
        ends = np.zeros(len(w.links), np.int64)
        top = scorer.top(requests, k, weights, None, NONE, ends, None, threads)
        found.append((complete, with_extra, *top))
        reopened = w.scorer(path, held=False)
        requests = w.requests(reopened)
        again = reopened.top(requests, k, weights, None, NONE, ends, None, threads)
        found.append((complete, with_extra, *again))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


def rng_of(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(w=worlds)
def test_scores_are_what_the_definition_says(w):
    scorer = w.scorer()
    found = scorer.scores(w.requests(scorer), None, 1)
    true = expected(w) if len(w.links) else np.zeros(found.shape)
    assert found.shape == true.shape
    if true.size:
        # A sum that lies between two codes may be rounded up or down: float32 against float64.
        size = np.abs(true).max() + 1
        off = np.abs(found - true)
        assert np.quantile(off, 0.99) < 2e-3 * size * (1 + len(w.arrays["terms"][0]) ** 0.5)


@pytest.mark.parametrize("features", [None, 0, 2])
def test_scores_are_exact_where_nothing_is_between_two_codes(features):
    sizes = {"items": 200, "links": 12, "hidden": 21, "tasks": 3, "batch": 3}
    w = world(**sizes, activation="hardswish", gated=True, features=features)
    scorer = w.scorer()
    found = scorer.scores(w.requests(scorer), None, 1)
    np.testing.assert_allclose(found, expected(w), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("path", paths())
def test_silu_is_within_its_bound(path):
    """One item per argument: its only head term is the argument."""
    count = 60_001
    terms = np.zeros((3, 1), np.int8)
    most = 0.0
    for x in np.linspace(-30, 30, count // 200):
        arrays = {
            **world(items=3, links=1, hidden=1).arrays,
            "terms": terms,
            "term_middle": np.array([x], np.float32),
            "from_links": np.zeros((1, 3), np.float32),
            "out": np.ones((1, 1), np.float32),
            "bias": np.zeros(1, np.float32),
        }
        scorer = _native.Scorer(
            **arrays,
            heads=1,
            activation="silu",
            gated=False,
            path=path,
            held=True,
        )
        requests = scorer.requests(np.zeros((1, 1, 3), np.float32), np.zeros((1, 1), np.float32))
        most = max(
            most, abs(float(scorer.scores(requests, None, 1)[0, 0, 0]) - x / (1 + np.exp(-x)))
        )
    assert 0 < most < _native.SILU_ERROR


@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "relu"},
        {"activation": "hardswish"},
        {"gated": False},
        {"gated": False, "activation": "hardswish", "links": 40, "heads": 1},
        {"anchors": None},
        {"anchors": ("item",), "activation": "hardswish"},
    ],
    ids=str,
)
def test_logits_are_within_the_stated_bound(model, settings):
    of = shop(model, **settings)
    state = of.state()
    true = ModelScorer(of.run.ranker, of.index).scores(state)
    for kind in (QuantisedScorer, NativeScorer):
        scorer = kind(of.run.ranker, of.index)
        bound = scorer.logit_bound(state)
        assert bound.shape == true.shape
        off = np.abs(scorer.scores(state) - true)
        assert (off <= bound + 1e-4).all()
        rows = np.array([3, 1, 80])
        np.testing.assert_allclose(scorer.logit_bound(state, rows), bound[:, rows], rtol=1e-5)
    quantised = QuantisedScorer(of.run.ranker, of.index).scores(state)
    native = NativeScorer(of.run.ranker, of.index).scores(state)
    np.testing.assert_allclose(native, quantised, atol=0.02 * true.std() + 1e-3)


def test_equal_values_go_to_the_lower_row():
    w = world(items=3000, batch=1)
    w.arrays["weights"][:] = 7
    w.arrays["terms"][:] = 1
    w.arrays["terms"][[5, 1234, 2999]] = 2
    for path in paths():
        for threads in (1, 3):
            scorer = w.scorer(path)
            requests = scorer.requests(w.links, w.head)
            values = scorer.scores(requests, None, 1)[0, :, 0]
            order = np.lexsort((np.arange(3000), -values))
            for k in (1, 4, 300, 3000):
                found = scorer.top(requests, k, ONE, None, NONE, NO_ENDS, None, threads)
                assert found[0][0].tolist() == order[:k].tolist()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("path", paths())
def test_nan_ranks_last(path, activation):
    w = world(items=100, batch=1, activation=activation)
    scorer = w.scorer(path)
    broken = scorer.requests(w.links * np.float32("nan"), w.head)
    rows, values, _ = scorer.top(broken, 5, ONE, None, NONE, NO_ENDS, None, 2)
    assert rows.tolist() == [[0, 1, 2, 3, 4]] and (values == -np.inf).all()


def test_wrong_arrays_are_refused():
    w = world(items=10, links=4, hidden=3, tasks=2)
    scorer = w.scorer()
    requests = scorer.requests(w.links, w.head)
    ends, ones = np.zeros(2, np.int64), np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="another scorer"):
        w.scorer().scores(requests, None, 1)
    with pytest.raises(ValueError, match="not of this model"):
        scorer.requests(w.links[:, :2].copy(), w.head)
    for rows in ([[10]], [[-1]]):
        with pytest.raises(IndexError, match=r"rows 0 \.\. 9; got"):
            scorer.scores(requests, np.array(rows), 1)
    for wrong_rows in ([10], [-1]):
        with pytest.raises(IndexError, match=r"rows 0 \.\. 9; got"):
            scorer.top(requests, 1, ones, np.array(wrong_rows), NONE, ends, None, 1)
        with pytest.raises(IndexError, match=r"rows 0 \.\. 9; got"):
            scorer.top(requests, 1, ones, None, np.array(wrong_rows), ends + 1, None, 1)
    for wrong_ends in ([9, 9], [2, 1]):
        with pytest.raises(ValueError, match="ascend"):
            scorer.top(requests, 1, ones, None, np.array([3, 1]), np.array(wrong_ends), None, 1)
    with pytest.raises(ValueError, match="k is below 1"):
        scorer.top(requests, 0, ones, None, NONE, ends, None, 1)
    with pytest.raises(ValueError, match="threads"):
        scorer.scores(requests, None, 0)
    with pytest.raises(ValueError, match="allow"):
        scorer.top(requests, 1, ones, None, NONE, ends, np.ones((1, 9), bool), 1)
    for wrong in (
        {"terms": w.arrays["terms"][:5].copy()},
        {"bias": np.zeros(1, np.float32)},
        {"term_step": np.zeros(2, np.float32)},
        {"weight_low": np.zeros(3, np.float32)},
        {"hidden_rows": np.array([3, 3], np.int32)},
        {"hidden_rows": np.array([10], np.int32)},
    ):
        with pytest.raises(ValueError):
            World({**w.arrays, **wrong}, w.links, w.head, w.shape).scorer()
    for wrong in ({"heads": 3}, {"heads": 0}, {"activation": "tanh"}, {"gated": True}):
        with pytest.raises(ValueError):
            World(w.arrays, w.links, w.head, {**w.shape, **wrong}).scorer()
    with pytest.raises(ValueError, match="no path 'mmx' on this machine"):
        w.scorer("mmx")
    # What is not laid out row after row is never copied silently.
    with pytest.raises(TypeError):
        World({**w.arrays, "weights": w.arrays["weights"][:, ::2]}, *w[1:]).scorer()
    with pytest.raises(TypeError):
        scorer.requests(w.links.astype(np.float64), w.head)


def test_tables_of_requests_are_returned_as_they_were():
    """Each request borrows a table; its links must not reach the next one."""
    w = world(items=300, batch=3, features=2)
    scorer = w.scorer()
    true = scorer.scores(w.requests(scorer), None, 1)
    plain = scorer.scores(scorer.requests(w.links, w.head), None, 1)
    np.testing.assert_array_equal(true[0], plain[0])
    assert not np.array_equal(true[2], plain[2])
    alone = w.anchored[0][1], w.anchored[0][2]
    for _ in range(3):
        held = w.requests(scorer)
        np.testing.assert_array_equal(scorer.scores(held, None, 1), true)
        part = slice(*alone)
        only = (np.array([0, alone[1] - alone[0]]), *(x[part] for x in w.anchored[1:]))
        one = scorer.requests(w.links[1:2], w.head[1:2], *only)
        np.testing.assert_array_equal(scorer.scores(one, None, 1), true[1:2])
        del held, one


def test_wrong_anchored_links_are_refused():
    w = world(items=10, features=2)
    scorer = w.scorer()
    offsets, keys, z = w.anchored
    plain = w._replace(anchors=None).scorer()
    with pytest.raises(ValueError, match="the model has none"):
        w.requests(plain)
    for wrong in (
        (offsets[:-1].copy(), keys, z),
        (offsets + 1, keys, z),
        (offsets, keys[::-1].copy(), z),
        (offsets, keys, z[:, :2].copy()),
    ):
        with pytest.raises(ValueError):
            scorer.requests(w.links, w.head, *wrong)
    with pytest.raises(ValueError, match="first-layer sums"):
        scorer.scores(w.requests(scorer), None, 1, np.zeros((2, 9, 8), np.float32))
    for name, value in (
        ("codes", np.zeros((9, 2), np.int32)),
        ("keys", w.anchors["keys"][::-1].copy()),
        ("sets", w.anchors["sets"] + np.int32(99)),
        ("kinds", np.full(41, 2, np.int32)),
        ("layer", np.zeros((3, 8), np.float32)),
    ):
        with pytest.raises(ValueError):
            w._replace(anchors={**w.anchors, name: value}).scorer()
    # Codes that no set has count as none: a file is mapped, and may be damaged.
    codes = np.array([[2**31 - 1, -1]] * 10, np.int32)
    damaged = w._replace(anchors={**w.anchors, "codes": codes}).scorer()
    none = w._replace(anchors={**w.anchors, "codes": codes * 0}).scorer()
    np.testing.assert_array_equal(
        *(one.scores(w.requests(one), None, 1) for one in (damaged, none))
    )


def test_the_scorer_refuses_what_it_cannot_do():
    of = shop("lime-mha")
    with pytest.raises(SpecError, match="no path 'mmx'"):
        NativeScorer(of.run.ranker, of.index, path="mmx")
    with pytest.raises(SpecError, match="threads is 0"):
        NativeScorer(of.run.ranker, of.index, threads=0)


def test_calls_from_several_threads_do_not_disturb_each_other():
    of = shop("lime-xor")
    scorer = NativeScorer(of.run.ranker, of.index, threads=2)
    state = of.state()
    alone = scorer.top(state, 10)
    wrong = []

    def work():
        for _ in range(30):
            found = scorer.top(state, 10)
            if not (found.rows == alone.rows).all():
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and alone.rows.shape == (12, min(10, ITEMS))


@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=200).map(sorted),
    wanted=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=60),
)
def test_searches_side_by_side_are_numpys(keys, wanted):
    held = np.array(keys, np.int64)
    asked = np.array([*wanted, *keys[::3]], np.int64)
    found = _native.search(held, asked)
    assert found.dtype == np.int64 and (found == np.searchsorted(held, asked)).all()
    rows = np.arange(len(keys), dtype=np.int32)[::-1].copy()
    table = dict(zip(keys, rows.tolist(), strict=True))
    assert _native.find(held, rows, asked).tolist() == [table.get(k, -1) for k in asked.tolist()]


def test_rows_for_other_keys_are_refused():
    with pytest.raises(ValueError, match="one row for each key"):
        _native.find(np.arange(3), np.arange(2, dtype=np.int32), np.arange(3))


def test_lists_of_integers_are_read_and_others_are_not():
    numbers = [0, -1, 2**63 - 1, -(2**63)]
    found = _native.integers(numbers)
    assert found.dtype == np.int64 and found.tolist() == numbers
    assert _native.integers([]).tolist() == []
    for other in (2**63, -(2**63) - 1, 1.0, True, "1", None, np.int64(1)):
        assert _native.integers([1, other]) is None


def test_an_empty_candidate_list_is_not_the_full_catalogue():
    w = world(items=40)
    w.arrays["hidden_rows"] = np.array([3, 5], np.int32)
    weights = np.ones((2, 1), np.float32)
    for held in (True, False):
        scorer = w.scorer(held=held)
        requests = scorer.requests(w.links, w.head)
        ends = np.zeros(2, np.int64)
        rows, values, logits = scorer.top(requests, 5, weights, NONE, NONE, ends, None, 1)
        assert rows.shape == values.shape == (2, 0) and logits.shape == (2, 0, 1)
