"""One contract for every scorer; the quantised one within its bound of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limerank.errors import FingerprintError, SpecError, UnknownError
from limerank.index import Index
from limerank.index import items as items_module
from limerank.index.building import build_index
from limerank.models.ranker import plus
from limerank.ranking.fidelity import quantisation_report
from limerank.ranking.scorer import (
    ModelScorer,
    NativeScorer,
    QuantisedScorer,
    chunked,
    scorer_for,
)
from limerank.ranking.scorer.anchored import CodedLinks, Postings, item_keys
from limerank.ranking.scorer.quantised import integer_products
from tests.catalogues import ITEMS, MODELS, SCORERS, make_scorer, plain_log, shop

TASKS = 2
ANCHORED = {"anchors": None}


@pytest.fixture(
    params=[
        *((m, s, "") for m in ("lime-mha", "lime-xor") for s in SCORERS),
        *((m, "model", "") for m in MODELS if not m.startswith("lime")),
        *(("lime-mha", s, "anchored") for s in SCORERS),
        *((m, "model", "anchored") for m in ("two-tower", "din")),
    ],
    ids="-".join,
)
def pair(request):
    model, scorer, anchored = request.param
    of = shop(model, **(ANCHORED if anchored else {}))
    return of, make_scorer(scorer, of)


def best(values, k, removed=()):
    """Brute force: rows by falling value, then rising row."""
    values = np.array(values, dtype=np.float64)
    rows = np.setdiff1d(np.arange(len(values)), removed)
    return rows[np.lexsort((rows, -values[rows]))][:k].tolist()


# The contract

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def test_all_rows_or_some_have_the_same_scores(pair):
    of, scorer = pair
    state = of.state()
    full = scorer.scores(state)
    assert full.shape == (12, ITEMS, TASKS) and full.dtype == np.float32
    rows = np.array([5, 3, 88, 3])
    np.testing.assert_allclose(scorer.scores(state, rows), full[:, rows], **CLOSE)
    own = np.random.default_rng(0).integers(0, ITEMS, (12, 7))
    expected = np.take_along_axis(full, own[..., None], 1)
    np.testing.assert_allclose(scorer.scores(state, own), expected, **CLOSE)
    assert scorer.scores(state, []).shape == (12, 0, TASKS)
    np.testing.assert_allclose(scorer.scores(state, slice(70, None)), full[:, 70:], **CLOSE)


def test_chunks_do_not_matter(pair, monkeypatch):
    of, scorer = pair
    state = of.state()
    full, top = scorer.scores(state), scorer.top(state, 30)
    monkeypatch.setattr(
        chunked.ChunkedScorer,
        "_chunks",
        lambda self, b, n: ((at, min(at + 7, n)) for at in range(0, n, 7)),
    )
    np.testing.assert_allclose(scorer.scores(state), full, **CLOSE)
    again = scorer.top(state, 30)
    np.testing.assert_allclose(again.values, top.values, **CLOSE)
    assert (again.rows == top.rows).mean() > 0.99


@pytest.mark.parametrize("k", [1, 10, ITEMS, ITEMS + 5])
@pytest.mark.parametrize("weights", [None, [0.0, 1.0], [0.7, -0.4]])
def test_top_is_the_brute_force(pair, k, weights):
    of, scorer = pair
    state = of.state()
    logits = scorer.scores(state)
    top = scorer.top(state, k, weights=weights)
    values = logits[..., 0] if weights is None else logits @ np.array(weights, np.float32)
    count = min(k, ITEMS)
    assert top.rows.shape == top.values.shape == (12, count)
    assert top.logits.shape == (12, count, TASKS)
    for b in range(12):
        np.testing.assert_allclose(top.values[b], values[b][best(values[b], k)], **CLOSE)
        np.testing.assert_allclose(top.values[b], values[b][top.rows[b]], **CLOSE)
        assert len(set(top.rows[b])) == count
    np.testing.assert_allclose(
        top.logits, np.take_along_axis(logits, top.rows[..., None], 1), **CLOSE
    )


def test_additions_of_the_caller(pair):
    of, scorer = pair
    state, rng = of.state(4), np.random.default_rng(0)
    own = np.stack([rng.permutation(ITEMS)[:20] for _ in range(4)])
    reference = ModelScorer(of.run.ranker, of.index)
    extra = torch.from_numpy(rng.normal(size=(4, 20, of.run.ranker.added)).astype(np.float32))
    for rows in (own, own[0]):
        true, plain = (x.scores(state, rows, extra=extra) for x in (reference, scorer))
        assert np.abs(plain - true).max() < 0.1 * true.std() + 0.01
        assert np.abs(plain - scorer.scores(state, rows)).max() > 0.1
        np.testing.assert_allclose(
            scorer.scores(state, rows, extra=extra * 0), scorer.scores(state, rows), **CLOSE
        )
    np.testing.assert_allclose(
        scorer.scores(state, own[0], extra=extra[:1])[1:],
        scorer.scores(state, own[0], extra=extra[[0, 0, 0, 0]])[1:],
        **CLOSE,
    )
    values = scorer.scores(state, own[0], extra=extra)[..., 0]
    exclude = [[own[0, 3]], [], [], []]
    top = scorer.top(state, 5, rows=own[0], extra=extra, exclude=exclude)
    for b in range(4):
        at = best(values[b], 5, [3] if b == 0 else [])
        np.testing.assert_allclose(top.values[b], values[b][at], **CLOSE)
        assert set(top.rows[b]) <= set(own[0])
    with pytest.raises(SpecError, match="without rows"):
        scorer.top(state, 5, extra=extra)
    with pytest.raises(SpecError, match="each row once"):
        scorer.top(state, 5, rows=[*own[0, :19], own[0, 0]], extra=extra)
    with pytest.raises(SpecError, match="expected"):
        scorer.scores(state, own, extra=extra[:, :3])


def test_weights_of_each_request(pair):
    of, scorer = pair
    state = of.state(3)
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    together = scorer.top(state, 8, weights=weights)
    for b in range(3):
        alone = scorer.top(state, 8, weights=weights[b])
        assert together.rows[b].tolist() == alone.rows[b].tolist()


def test_exclusions_candidates_and_filters(pair):
    of, scorer = pair
    state = of.state(4)
    values = scorer.scores(state)[..., 0]
    exclude = [[], [3, 3, 0], np.arange(80), np.argsort(-values[3])[:20]]
    top = scorer.top(state, 15, exclude=exclude)
    for b in range(4):
        expected = best(values[b], 15, exclude[b])
        found = top.rows[b][top.rows[b] >= 0]
        assert len(found) == len(expected)
        np.testing.assert_allclose(values[b][found], values[b][expected], atol=1e-5)
        assert not np.isin(found, exclude[b]).any()
    # Ten items are left for the third request: the positions behind them hold -1.
    assert top.rows[2, 10:].tolist() == [-1] * 5
    assert (top.values[2, 10:] == -np.inf).all() and np.isnan(top.logits[2, 10:]).all()

    rows = np.array([9, 80, 2, 9, 33, 34, 35])
    top = scorer.top(state, 5, rows=rows, exclude=[[9, 1], [], [], [2, 9, 80, 33, 34, 35]])
    assert top.rows.shape == (4, 5) and set(top.rows[1]) <= set(rows)
    assert 9 not in top.rows[0] and (top.rows[0] >= 0).all()
    assert (top.rows[3] == -1).all()

    allow = np.zeros(ITEMS, dtype=bool)
    allow[[1, 5, 50]] = True
    assert (np.sort(scorer.top(state, 9, allow=allow).rows, 1) == [1, 5, 50]).all()
    assert (scorer.top(state, 9, allow=allow, rows=[5, 6]).rows == [[5]] * 4).all()
    each = np.stack([allow, ~allow, allow & False, allow | True])
    top = scorer.top(state, ITEMS, allow=each, exclude=[[5], [], [], [7]])
    assert (top.rows >= 0).sum(1).tolist() == [2, ITEMS - 3, 0, ITEMS - 1]
    top = scorer.top(state, 3, allow=each, rows=np.arange(2))
    assert (top.rows >= 0).sum(1).tolist() == [1, 1, 0, 2]
    assert scorer.top(state, 3, rows=[]).rows.shape == (4, 0)
    assert (np.sort(scorer.top(state, 9, rows=slice(80, 85)).rows, 1) == np.arange(80, 85)).all()


def test_wrong_arguments(pair):
    of, scorer = pair
    state = of.state(2)
    for rows in ([0, ITEMS], [-1], np.array([[0], [ITEMS]])):
        with pytest.raises(UnknownError, match=f"rows 0 .. {ITEMS - 1}; got"):
            scorer.scores(state, rows)
    with pytest.raises(UnknownError):
        scorer.top(state, 1, exclude=[[ITEMS], []])
    wrong = [
        {"k": 0},
        {"weights": [1.0]},
        {"weights": [1.0, float("nan")]},
        {"weights": np.ones((3, TASKS))},
        {"exclude": [[]]},
        {"allow": np.ones(ITEMS - 1, bool)},
        {"allow": np.ones(ITEMS)},
        {"rows": [0.5]},
        {"rows": np.zeros((1, 1, 1), int)},
    ]
    for arguments in wrong:
        with pytest.raises(SpecError):
            scorer.top(state, **{"k": 3, **arguments})
    with pytest.raises(SpecError, match="3 requests"):
        scorer.scores(state, np.zeros((3, 1), int))


def test_an_index_without_items(tmp_path, monkeypatch):
    of = shop("lime-mha")
    read = items_module.read_table
    monkeypatch.setattr(items_module, "read_table", lambda *given: (read(*given)[0][:0], 0))
    build_index(of.run, tmp_path / "index", items=plain_log() / "items.csv")
    index = Index.open(tmp_path / "index")
    for scorer in (
        ModelScorer(of.run.ranker, index),
        ModelScorer(of.run.ranker, index, keep=True),
        QuantisedScorer(of.run.ranker, index),
        NativeScorer(of.run.ranker, index),
    ):
        assert scorer.scores(of.state(2)).shape == (2, 0, TASKS)
        assert scorer.top(of.state(2), 4, exclude=[[], []]).rows.shape == (2, 0)


def test_the_scorer_is_chosen_by_name(pair):
    of, _ = pair
    ranker, index = of.run.ranker, of.index
    assert scorer_for("model", ranker, index).name == "model"
    with pytest.raises(SpecError, match="no scorer 'fast'"):
        scorer_for("fast", ranker, index)
    if index.weights is None:
        assert scorer_for("auto", ranker, index).name == "model"
        for name in ("quantised", "native"):
            with pytest.raises(SpecError, match="for LIME models"):
                scorer_for(name, ranker, index)
    else:
        assert scorer_for("auto", ranker, index).name == "native"
        assert scorer_for("quantised", ranker, index).name == "quantised"
    with pytest.raises(FingerprintError):
        ModelScorer(shop("lime-xor", width=8).run.ranker, index)


# Ties, against a scorer whose logits are given


class Given(chunked.ChunkedScorer):
    """Gives the logits that it was made with."""

    name = "given"

    def __init__(self, logits_bnk, chunk):
        super().__init__(shop("lime-mha").run.ranker, shop("lime-mha").index)
        self.logits, self.chunk = torch.from_numpy(logits_bnk), chunk
        self.tasks = logits_bnk.shape[2]

    def __len__(self):
        return self.logits.shape[1]

    def _chunks(self, batch, count):
        return ((at, min(at + self.chunk, count)) for at in range(0, count, self.chunk))

    def _requests(self, state):
        return None

    def _logits(self, requests, rows, extra=None):
        return self.logits[:, rows]


@given(st.data())
def test_ties_go_to_the_lower_row(data):
    b, n, k = (data.draw(st.integers(*span)) for span in ((1, 3), (0, 30), (1, 35)))
    seed, chunk = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(seed)
    values = rng.choice([-np.inf, -1.5, -0.0, 0.0, 1e-38, 2.0, np.inf], (b, n, 1))
    scorer = Given(values.astype(np.float32), chunk)
    exclude = [rng.integers(0, n, rng.integers(0, 9)) if n else [] for _ in range(b)]
    top = scorer.top((torch.zeros(b),), k, exclude=exclude)
    for row in range(b):
        expected = best(values[row, :, 0], k, exclude[row])
        assert top.rows[row].tolist() == expected + [-1] * (min(k, n) - len(expected))
        np.testing.assert_array_equal(
            top.values[row, : len(expected)], values[row, expected, 0].astype(np.float32)
        )


def test_nan_ranks_last():
    values = np.array([[[np.nan], [-9.0], [-np.nan], [3.0]]], dtype=np.float32)
    for chunk in (1, 4):
        top = Given(values, chunk).top((torch.zeros(1),), 4)
        assert top.rows.tolist() == [[3, 1, 0, 2]]
        assert np.isnan(top.logits[0, 2:]).all()


# Against the model


@pytest.mark.parametrize("settings", [{}, ANCHORED], ids=str)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("keep", [False, True])
def test_the_model_scorer_is_the_model(model, keep, settings):
    of = shop(model, **settings)
    batch = of.data.batch(of.requests())
    with torch.inference_mode():
        expected = of.run.ranker(batch)
    real = batch.real.numpy()
    rows = np.where(real, of.data.events["item"][_rows_of(of, real)], 0)
    found = ModelScorer(of.run.ranker, of.index, keep=keep).scores(of.state(), rows)
    np.testing.assert_allclose(found[real], expected.numpy()[real], atol=1e-5)


def _rows_of(of, real):
    first = of.data.requests["first"][of.requests()][:, None]
    return np.where(real, first + np.arange(real.shape[1]), first)


SHAPES = [
    {},
    {"gated": False},
    {"links": 1, "heads": 1, "hidden": 3},
    {
        "links": 150,
        "seed": 2,
        "heads": 8,
        "activation": "relu",
        "anchors": (),
    },  # more columns than one exact sum
    ANCHORED,
    {"anchors": ("item",), "gated": False},
    {"anchors": ("tags", "group"), "anchor_width": 3},
]


@pytest.mark.parametrize("settings", SHAPES, ids=str)
@pytest.mark.parametrize("model", ["lime-mha", "lime-xor"])
def test_the_quantised_scorer_is_within_its_bound(model, settings):
    of = shop(model, **settings)
    scorer, ranker, state = make_scorer("quantised", of), of.run.ranker, of.state()
    with torch.inference_mode():
        terms = ranker.encode_items(torch.from_numpy(np.array(of.index.vectors)))
        exact = terms.weights @ ranker.fold(state) + terms.head + state.head[:, None]
        keys, all_items = item_keys(of.index, slice(None)), torch.arange(ITEMS)
        exact = plus(exact, ranker.extra(state, keys, all_items, counted=of.counted()))
        # The head is what both share: look at the sums that go into it.
        sums = []
        ranker.head.register_forward_pre_hook(lambda _, given: sums.append(given[0]))
        try:
            scorer.scores(state)
        finally:
            ranker.head._forward_pre_hooks.clear()
    error = (torch.cat(sums, 1) - exact).abs().amax(1).numpy()
    assert (error <= scorer.bound(state) + 1e-5).all()
    assert (error > 0).any()
    model_scores = ModelScorer(ranker, of.index).scores(state)
    off = np.abs(scorer.scores(state) - model_scores)
    assert (off <= scorer.logit_bound(state) + 1e-4).all()
    # Anchored links are rounded twice more: their codes, and their rows of the matrix.
    assert off.max() < (0.05 if of.run.ranker.anchors is None else 0.1) * model_scores.std() + 0.01
    assert np.quantile(off, 0.99) < 0.05 * model_scores.std()
    assert np.sqrt(np.square(off).mean()) < 0.02 * model_scores.std()


def test_the_quantised_arithmetic_is_what_the_module_says():
    """The definition in the docstring, in float64 and integers, one request and item at a time."""
    of = shop("lime-xor", anchors=())
    scorer, state, lime = make_scorer("quantised", of), of.state(4), of.run.ranker
    s, heads = of.index.scales, lime.config.heads
    with torch.inference_mode():
        folded = lime.fold(state).double().numpy()
    found = scorer.scores(state)
    for b in range(4):
        f = folded[b].reshape(heads, -1, folded.shape[2])
        means = f.mean(1, keepdims=True)
        f0 = (f - means).reshape(folded[b].shape)
        low, weight_step, mean = (
            x[: len(f0)] for x in (s.weight_low, s.weight_step, s.weight_mean)
        )
        m = weight_step[:, None] * f0
        step = abs(m).max(0) / 127
        q = np.round(m / step)
        assert abs(q).max() == 127
        constant = state.head[b].double().numpy() + means.sum((0, 1)) + s.term_middle
        constant += low @ f0 + mean @ (m - step * q)
        for item in (0, 17, ITEMS - 1):
            links = of.index.weights[item, : len(q)].astype(np.int64)
            full = links @ q.astype(np.int64)
            a = step * full + s.term_step * of.index.terms[item] + constant
            with torch.inference_mode():
                logits = lime.head(torch.from_numpy(a).float()).numpy()
            key = of.index.weights[item, len(q) :].astype(np.int64)
            for k, query in enumerate(state.query[b].double().numpy()):
                low_k, step_k, mean_k = (
                    x[len(f0) :] for x in (s.weight_low, s.weight_step, s.weight_mean)
                )
                scaled = step_k * query
                own = abs(scaled).max() / 127 or 1.0
                codes = np.round(scaled / own)
                logits[k] += own * (key @ codes.astype(np.int64))
                logits[k] += low_k @ query + mean_k @ (scaled - own * codes)
            np.testing.assert_allclose(found[b, item], logits, atol=2e-3)


@given(st.integers(1, 1300), st.integers(1, 3), st.integers(0, 4), st.integers(0, 9))
def test_integer_products_are_exact(columns, batch, items, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(200, 256, (items, columns))
    matrix = rng.integers(90, 128, (batch, columns, 2))
    expected = np.einsum("mc,bcg->bmg", codes, matrix).astype(np.float32)
    as_float = [torch.from_numpy(part).float() for part in (codes, matrix)]
    np.testing.assert_array_equal(integer_products(*as_float).numpy(), expected)
    own = as_float[0].expand(batch, -1, -1)
    np.testing.assert_array_equal(integer_products(own, as_float[1]).numpy(), expected)


def test_codes_of_anchored_links_are_what_the_module_says():
    """The definition in the docstring, one request and item at a time."""
    of = shop("lime-mha", **ANCHORED)
    anchors, state = of.index.anchors, of.state(6)
    postings = Postings.of(anchors)
    links, step = CodedLinks.of(state.anchored, anchors, postings)
    seen = 0
    for b in range(6):
        part = slice(*state.anchored.offsets[b : b + 2].tolist())
        z = dict(
            zip(state.anchored.keys[part].tolist(), state.anchored.links[part].numpy(), strict=True)
        )
        of_kind = [[np.zeros(8, np.float32)] for _ in range(len(anchors.features) + 1)]
        true = {}
        for s in range(1, anchors.sets):
            tokens, shares, _ = anchors.of_sets(np.array([s]))
            held = [z[t] * share for t, share in zip(tokens, shares, strict=True) if t in z]
            if held:
                true[s] = sum(held)
                kind = [start < tokens[0] < start + size for start, size in anchors.features]
                of_kind[kind.index(True)].append(np.abs(true[s]))
        for key, link in z.items():
            if key >= anchors.item_tokens:
                true[anchors.sets + key - anchors.item_tokens] = link
                of_kind[-1].append(np.abs(link))
        expected = sum(np.max(kind, 0) for kind in of_kind) / (127 - len(of_kind) / 2)
        np.testing.assert_allclose(step[b], expected, rtol=1e-5)
        part = slice(*links.offsets[b : b + 2].tolist())
        assert links.keys[part].tolist() == sorted(true)
        for key, code in zip(links.keys[part].tolist(), links.links[part], strict=True):
            np.testing.assert_allclose(code, true[key] / expected, atol=0.501)
            seen += 1
    assert seen > 50


def test_a_state_of_zeros_divides_by_nothing():
    of = shop("lime-mha")
    state = of.state(2)
    silent = state._replace(links=state.links * 0, head=state.head * 0)
    assert np.isfinite(make_scorer("quantised", of).scores(silent)).all()


def test_the_report_of_what_quantisation_costs(tmp_path):
    of = shop("lime-mha", neighbours=0)
    report = quantisation_report(of.run, of.index, of.data, depth=10, users=20)
    assert report.users == len(np.unique(of.data.requests["user"][of.data.requests_of("test")]))
    assert report.impressions > 50 and 0 < report.logit_error_rms < report.logit_error_max
    assert abs(report.tasks[0].lost) < 5e-3 and abs(report.tasks[1].lost) < 5e-3
    assert report.overlap > 0.95 and report.overlap_min >= 0.7
    assert list(report.to_dict()) == [
        "requests", "impressions", "users", "logit_error_max", "logit_error_rms", "overlap",
        "overlap_min", "click/auc", "click/auc_lost", "watch/xauc", "watch/xauc_lost",
    ]  # fmt: skip
    assert report.to_polars().rows()[1][:2] == ("watch", "xauc")
    assert "first 10 items of" in repr(report)
    # The model itself loses nothing.
    reference = ModelScorer(of.run.ranker, of.index)
    report = quantisation_report(of.run, of.index, of.data, depth=10, scorer=reference)
    assert report.overlap == 1 and report.tasks[0].lost == report.logit_error_max == 0
    (tmp_path / "some.csv").write_text("item_id,group,tags,length\n1,g1,t1,3\n")
    build_index(of.run, tmp_path / "index", items=tmp_path / "some.csv")
    with pytest.raises(UnknownError, match=f"lacks {ITEMS - 1} items"):
        quantisation_report(of.run, Index.open(tmp_path / "index"), of.data)


def test_many_items_are_scored_in_chunks(monkeypatch):
    of = shop("lime-mha")
    monkeypatch.setattr(chunked, "CHUNK_NUMBERS", 1)
    assert list(ModelScorer(of.run.ranker, of.index)._chunks(of.state(1), 600)) == [
        (0, 256),
        (256, 512),
        (512, 600),
    ]
