"""The metrics against scikit-learn and loops over all pairs, and under what must not matter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from sklearn.linear_model import LogisticRegression

from limerank import metrics
from limerank.errors import DataError

TIGHT = 1e-12  # float64 sums of at most some thousand terms
quick = settings(max_examples=60, deadline=None)

labels_and_scores = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=40
)  # few values, hence many ties
dtypes = st.sampled_from([np.int8, np.int64, np.uint64, np.float16, np.float32, np.float64])


def same(got: float, expected: float) -> bool:
    return got == pytest.approx(expected, rel=TIGHT, abs=TIGHT, nan_ok=True)


def auc_by_pairs(labels: Any, scores: Any, weights: Any) -> float:
    wins = pairs = 0.0
    for y, s, w in zip(labels, scores, weights, strict=True):
        for z, t, v in zip(labels, scores, weights, strict=True):
            if y == 1 and z == 0:
                wins += w * v * ((s > t) + (s == t) / 2)
                pairs += w * v
    return wins / pairs if pairs else math.nan


def gauc_by_loop(labels: Any, scores: Any, users: Any) -> float:
    total = rows = 0.0
    for user in np.unique(users):
        mine = users == user
        value = auc_by_pairs(labels[mine], scores[mine], np.ones(mine.sum()))
        if not math.isnan(value):
            total += mine.sum() * value
            rows += mine.sum()
    return total / rows if rows else math.nan


def xauc_by_pairs(truth: Any, predicted: Any) -> float:
    above = truth[:, None] > truth[None, :]
    better = predicted[:, None] > predicted[None, :]
    equal = predicted[:, None] == predicted[None, :]
    if not above.any():
        return math.nan
    return float((better[above] + equal[above] / 2).mean())


def sample(n: int = 500, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with ties in every column."""
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(1, 40, n) / 40
    return {
        "labels": (rng.random(n) < probabilities).astype(np.int64),
        "probabilities": probabilities,
        "users": rng.integers(-7, 20, n),
        "watch": rng.integers(0, 30, n) / 4,
        "predicted": rng.integers(0, 30, n) / 8,
    }


# Each metric of rows as a function of `sample`.
ROW_METRICS: dict[str, Callable[[dict[str, np.ndarray]], float]] = {
    "auc": lambda d: metrics.auc(d["labels"], d["probabilities"]),
    "auc weighted": lambda d: metrics.auc(d["labels"], d["probabilities"], d["watch"]),
    "gauc": lambda d: metrics.gauc(d["labels"], d["probabilities"], d["users"]),
    "wtauc": lambda d: metrics.wtauc(d["labels"], d["probabilities"], d["watch"]),
    "log_loss": lambda d: metrics.log_loss(d["labels"], d["probabilities"]),
    "normalized_entropy": lambda d: metrics.normalized_entropy(d["labels"], d["probabilities"]),
    "calibrated_entropy": lambda d: metrics.calibrated_entropy(d["labels"], d["probabilities"]),
    "calibration": lambda d: metrics.calibration(d["labels"], d["probabilities"]),
    "ece": lambda d: metrics.ece(d["labels"], d["probabilities"]),
    "xauc": lambda d: metrics.xauc(d["watch"], d["predicted"]),
    "mae": lambda d: metrics.mae(d["watch"], d["predicted"]),
    "hit_rate": lambda d: metrics.hit_rate(1 + d["watch"], 3),
    "ndcg": lambda d: metrics.ndcg(1 + d["watch"], 3),
    "mrr": lambda d: metrics.mrr(1 + d["watch"]),
}


def test_the_module_exports_what_it_defines() -> None:
    defined = [
        name
        for name, value in vars(metrics).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith(metrics.__name__)
    ]
    assert metrics.__all__ == sorted(defined)


# Order of binary labels


def test_auc_equals_scikit_learn() -> None:
    data = sample()
    labels, scores, weights = data["labels"], data["probabilities"], data["watch"]
    assert same(metrics.auc(labels, scores), sklearn.roc_auc_score(labels, scores))
    weighted = sklearn.roc_auc_score(labels, scores, sample_weight=weights)
    assert same(metrics.auc(labels, scores, weights), weighted)


@quick
@given(labels_and_scores, dtypes)
def test_auc_and_wtauc_equal_the_loop_over_pairs(
    rows: list[tuple[int, int, int]], dtype: Any
) -> None:
    labels, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores + 3 if np.dtype(dtype).kind == "u" else scores
    scores = scores.astype(dtype)
    assert same(metrics.auc(labels, scores), auc_by_pairs(labels, scores, np.ones(len(rows))))
    assert same(metrics.auc(labels, scores, weights), auc_by_pairs(labels, scores, weights))
    by_watch = auc_by_pairs(labels, scores, np.where(labels == 1, weights, 1))
    assert same(metrics.wtauc(labels, scores, weights), by_watch)


@quick
@given(labels_and_scores, dtypes, st.sampled_from([np.int8, np.int64, np.str_]))
def test_gauc_equals_the_loop_over_users(
    rows: list[tuple[int, int, int]], dtype: Any, user_dtype: Any
) -> None:
    labels, scores, users = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores + 3 if np.dtype(dtype).kind == "u" else scores
    users = (users - 2).astype(user_dtype)
    got = metrics.gauc(labels, scores.astype(dtype), users)
    assert same(got, gauc_by_loop(labels, scores, users))


def test_gauc_takes_any_user_ids_and_all_digits_of_the_scores() -> None:
    data = sample()
    rng = np.random.default_rng(1)
    scores = rng.normal(size=500)  # not representable in float32
    expected = gauc_by_loop(data["labels"], scores, data["users"])
    wide = data["users"] * (2**62 // 20)  # a range beyond 31 bits
    for users in (data["users"], wide, data["users"].astype(str), data["users"].astype(bytes)):
        assert same(metrics.gauc(data["labels"], scores, users), expected)
    close = np.array([1.0, 1.0 + 2**-52])  # one value in float32
    assert metrics.gauc([0, 1], close, [5, 5]) == 1.0
    assert metrics.gauc([0, 1], np.array([2**60, 2**60 + 1]), [5, 5]) == 1.0


def test_one_class_leaves_the_order_undefined() -> None:
    for labels in ([0, 0, 0], [1, 1, 1]):
        assert math.isnan(metrics.auc(labels, [1.0, 2.0, 3.0]))
        assert math.isnan(metrics.auc(labels, [1.0, 2.0, 3.0], [1, 1, 1]))
        assert math.isnan(metrics.gauc(labels, [1.0, 2.0, 3.0], [1, 1, 2]))
    assert math.isnan(metrics.gauc([0, 0, 1], [1.0, 2.0, 3.0], [1, 1, 2]))
    assert math.isnan(metrics.wtauc([0, 1], [1.0, 2.0], [3.0, 0.0]))
    # User 2 has one class and does not count; user 1 does, at weight 2 of 2.
    assert metrics.gauc([0, 1, 1], [1.0, 2.0, 0.0], [1, 1, 2]) == 1.0


def test_infinite_scores_and_signed_zeros_are_ordered_as_numbers() -> None:
    scores = np.array([-np.inf, -0.0, 0.0, np.inf])
    assert metrics.auc([0, 0, 1, 1], scores) == 0.875
    assert metrics.gauc([0, 0, 1, 1], scores, [1, 1, 1, 1]) == 0.875
    assert metrics.xauc([0, 0, 1, 1], scores) == 0.875
    huge = np.array([1e300, 2e300])  # inf, both of them, in float32
    assert metrics.xauc([0, 1], huge) == 1.0


# Pairs of watch times


@quick
@given(st.lists(st.tuples(st.integers(-3, 4), st.integers(-3, 3)), min_size=1, max_size=70), dtypes)
def test_xauc_equals_the_loop_over_pairs(rows: list[tuple[int, int]], dtype: Any) -> None:
    truth, predicted = (np.array(column) for column in zip(*rows, strict=True))
    predicted = predicted + 3 if np.dtype(dtype).kind == "u" else predicted
    expected = xauc_by_pairs(truth, predicted)
    assert same(metrics.xauc(truth, predicted.astype(dtype)), expected)
    assert same(metrics.xauc(truth * 0.3, predicted.astype(dtype)), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 1000])
def test_xauc_of_permutations(n: int) -> None:
    rng = np.random.default_rng(n)
    truth, predicted = rng.permutation(n), rng.normal(size=n)
    assert same(metrics.xauc(truth, predicted), xauc_by_pairs(truth, predicted))
    if n > 1:
        assert metrics.xauc(truth, truth) == 1.0
        assert metrics.xauc(truth, -truth) == 0.0
        assert metrics.xauc(truth, np.zeros(n)) == 0.5


def test_xauc_of_binary_truth_is_the_auc() -> None:
    data = sample()
    expected = metrics.auc(data["labels"], data["predicted"])
    assert same(metrics.xauc(data["labels"], data["predicted"]), expected)


def test_xauc_of_equal_truths_is_undefined() -> None:
    assert math.isnan(metrics.xauc([2.0, 2.0], [1.0, 2.0]))


def test_mae() -> None:
    assert metrics.mae([1, 2, 6], [1.0, 4.0, 5.0]) == 1.0
    assert metrics.mae(np.array([1], np.uint8), np.array([3], np.uint8)) == 2.0


# Probabilities


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss_equals_scikit_learn(dtype: Any) -> None:
    data = sample()
    probabilities = data["probabilities"].astype(dtype)
    # scikit-learn takes 1 - p and the logarithm in float32.
    tolerance = 1e-6 if dtype is np.float32 else TIGHT
    expected = sklearn.log_loss(data["labels"], probabilities)
    assert metrics.log_loss(data["labels"], probabilities) == pytest.approx(expected, rel=tolerance)


def test_log_loss_of_certainty() -> None:
    assert metrics.log_loss([0, 1], [0.0, 1.0]) == pytest.approx(0.0, abs=1e-15)
    assert metrics.log_loss([1], [0.0]) == pytest.approx(52 * math.log(2))
    assert metrics.log_loss([0], np.ones(1, np.float32)) == pytest.approx(23 * math.log(2))
    assert metrics.log_loss([0], np.ones(1, np.float16)) == pytest.approx(23 * math.log(2))
    assert metrics.log_loss([0, 1], [0, 1]) == pytest.approx(0.0, abs=1e-15)


def test_normalized_entropy() -> None:
    labels = np.array([0, 0, 0, 1])
    assert same(metrics.normalized_entropy(labels, np.full(4, 0.25)), 1.0)
    assert same(metrics.normalized_entropy(labels, np.full(4, 0.1), base_rate=0.1), 1.0)
    data = sample()
    rate = np.full(500, data["labels"].mean())
    expected = sklearn.log_loss(data["labels"], data["probabilities"])
    expected /= sklearn.log_loss(data["labels"], rate)
    assert same(metrics.normalized_entropy(data["labels"], data["probabilities"]), expected)
    assert math.isnan(metrics.normalized_entropy([1, 1], [0.5, 0.5]))
    assert same(metrics.normalized_entropy([1, 1], [0.5, 0.5], base_rate=0.5), 1.0)


def test_platt_scaling_equals_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=3000)
    labels = rng.random(3000) < 1 / (1 + np.exp(-(0.3 * z - 1)))
    found = metrics.platt_scaling(labels, 1 / (1 + np.exp(-z)))
    # scikit-learn's penalty is |a|^2 / 2; with that of an offset z, it is |a - 1|^2 / 2. The
    # penalty of its intercept is 0: with 3,000 rows it hardly matters.
    fitted = LogisticRegression(C=1e6, tol=1e-10).fit(z[:, None], labels)
    assert found.scale == pytest.approx(float(fitted.coef_[0, 0]), abs=3e-3)
    assert found.shift == pytest.approx(float(fitted.intercept_[0]), abs=3e-3)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-60, 60)), min_size=1, max_size=30))
def test_platt_scaling_is_the_least_loss(rows: list[tuple[int, int]]) -> None:
    labels, z = np.array(rows, dtype=float).T / [[1], [4]]

    def loss(scale: float, shift: float) -> float:
        losses = np.logaddexp(0, scale * z + shift) - labels * (scale * z + shift)
        return float(losses.sum() + ((scale - 1) ** 2 + shift**2) / 2)

    found = metrics.platt_scaling(labels, 1 / (1 + np.exp(-z)))
    assert found.scale >= 0.01
    least = loss(*found)
    for by in (1e-3, 1e-2, 0.1):
        for scale, shift in ((by, 0), (-by, 0), (0, by), (0, -by), (by, by), (by, -by)):
            if found.scale + scale >= 0.01:
                assert least <= loss(found.scale + scale, found.shift + shift) + 1e-7


def test_calibrated_entropy_forgives_what_calibration_removes() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=4000)
    p = 1 / (1 + np.exp(-z))
    labels = rng.random(4000) < p
    honest = metrics.normalized_entropy(labels, p)
    loud = 1 / (1 + np.exp(-(5 * z + 2)))
    assert metrics.normalized_entropy(labels, loud) > 1
    assert metrics.calibrated_entropy(labels, loud) == pytest.approx(honest, abs=2e-3)
    assert metrics.calibrated_entropy(labels, 1 - p) == pytest.approx(1, abs=0.01)
    assert np.isnan(metrics.calibrated_entropy([1, 1], [0.2, 0.3]))


def test_calibration() -> None:
    assert same(metrics.calibration([0, 0, 1, 1], [0.2, 0.4, 0.9, 1.0]), 1.25)
    assert math.isnan(metrics.calibration([0, 0], [0.2, 0.4]))


def test_reliability_by_hand() -> None:
    labels = np.array([1, 0, 1, 0, 0, 1])
    probabilities = np.array([0.9, 0.1, 0.8, 0.2, 0.4, 0.6])
    prediction, label, rows = metrics.reliability(labels, probabilities, bins=3)
    assert np.allclose(prediction, [0.15, 0.5, 0.85], rtol=TIGHT)
    assert np.allclose(label, [0.0, 0.5, 1.0], rtol=TIGHT)
    assert rows.tolist() == [2, 2, 2]
    assert same(metrics.ece(labels, probabilities, bins=3), (0.15 + 0.0 + 0.15) / 3)


def test_reliability_keeps_ties_together_and_drops_empty_bins() -> None:
    labels = [0, 1, 1, 0, 1]
    result = metrics.reliability(labels, [0.5, 0.5, 0.5, 0.5, 0.7], bins=4)
    assert result.rows.tolist() == [4, 1]
    assert np.allclose(result.label, [0.5, 1.0])
    assert metrics.reliability(labels, [0.1, 0.2, 0.3, 0.4, 0.5], bins=99).rows.tolist() == [1] * 5
    assert metrics.ece(labels, np.full(5, 0.6)) == pytest.approx(0.0, abs=TIGHT)


@quick
@given(labels_and_scores, st.integers(1, 50))
def test_reliability_preserves_the_sums(rows: list[tuple[int, int, int]], bins: int) -> None:
    labels, scores, _ = (np.array(column) for column in zip(*rows, strict=True))
    probabilities = (scores + 3) / 6
    result = metrics.reliability(labels, probabilities, bins)
    assert 1 <= len(result.rows) <= bins
    assert result.rows.sum() == len(rows)
    assert result.rows.min() > 0
    assert same(result.prediction @ result.rows, probabilities.sum())
    assert same(result.label @ result.rows, labels.sum())
    assert np.all(np.diff(result.prediction) > 0)


def test_equal_mass_bins_differ_by_at_most_one_row_without_ties() -> None:
    probabilities = np.random.default_rng(0).permutation(997) / 997
    rows = metrics.reliability(np.ones(997), probabilities).rows
    assert len(rows) == 20
    assert rows.max() - rows.min() <= 1


# Lists


def test_single_relevant_item() -> None:
    ranks = [1, 3, 11, math.inf]
    assert metrics.hit_rate(ranks, 10) == 0.5
    assert same(metrics.ndcg(ranks, 10), (1 + 1 / 2) / 4)
    assert same(metrics.mrr(ranks), (1 + 1 / 3 + 1 / 11) / 4)


def test_one_rank_per_list_is_the_case_of_lists_of_one() -> None:
    ranks = np.random.default_rng(0).integers(1, 20, 100)
    offsets = np.arange(101)
    assert same(metrics.ndcg(ranks, 5), metrics.ndcg(ranks, 5, offsets))
    assert same(metrics.hit_rate(ranks, 5), metrics.hit_rate(ranks, 5, offsets))
    assert same(metrics.mrr(ranks), metrics.mrr(ranks, offsets))


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_lists_equal_scikit_learn_and_the_definitions(k: int) -> None:
    rng = np.random.default_rng(k)
    relevant = rng.random((50, 12)) < 0.25
    relevant[7] = False
    scores = rng.permuted(np.tile(np.arange(12.0), (50, 1)), axis=1)
    all_ranks = 12 - scores  # [50, 12]
    ranks = all_ranks[relevant]
    offsets = np.append(0, np.cumsum(relevant.sum(axis=1)))
    some = relevant.any(axis=1)  # lists without a relevant item are left out
    first = np.where(relevant, all_ranks, np.inf).min(axis=1)[some]
    expected = sklearn.ndcg_score(relevant[some], scores[some], k=k)
    assert same(metrics.ndcg(ranks, k, offsets), expected)
    assert same(metrics.hit_rate(ranks, k, offsets), (first <= k).mean())
    assert same(metrics.mrr(ranks, offsets), (1 / first).mean())


def test_empty_lists_are_left_out_wherever_they_stand() -> None:
    for offsets in ([0, 2, 3], [0, 0, 2, 3], [0, 2, 2, 2, 3], [0, 2, 3, 3]):
        assert metrics.hit_rate([4, 1, 2], 1, offsets) == 0.5
        assert metrics.mrr([4, 1, 2], offsets) == 0.75
        assert 0 < metrics.ndcg([4, 1, 2], 1, offsets) == 0.5


def test_missing_items_may_repeat_in_a_list() -> None:
    expected = 1 / (1 + 1 / math.log2(3) + 1 / 2)
    assert same(metrics.ndcg([math.inf, 1, math.inf], 10, [0, 3]), expected)


@quick
@given(st.data())
def test_rank_of_equals_counting(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7))
    cells = st.lists(st.integers(-2, 2), min_size=rows * columns, max_size=rows * columns)
    scores = np.array(data.draw(cells), np.float32).reshape(rows, columns)
    columns_drawn = st.lists(st.integers(0, columns - 1), min_size=rows, max_size=rows)
    targets = data.draw(columns_drawn)
    got = metrics.rank_of(scores, targets)
    for row, target, rank in zip(scores, targets, got, strict=True):
        others = np.delete(row, target)
        assert rank == 1 + (others > row[target]).sum() + (others == row[target]).sum() / 2
    assert got.dtype == np.float64


def test_rank_of_with_masked_columns() -> None:
    scores = np.array([[0.5, -np.inf, 0.7], [1.0, 1.0, 1.0]], np.float32)
    assert metrics.rank_of(scores, [0, 2]).tolist() == [2.0, 2.0]


# What must not matter


@pytest.mark.parametrize("name", ROW_METRICS)
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    data = sample()
    order = np.random.default_rng(5).permutation(500)
    shuffled = {key: column[order] for key, column in data.items()}
    assert same(ROW_METRICS[name](shuffled), ROW_METRICS[name](data))


@pytest.mark.parametrize("name", ROW_METRICS)
def test_inputs_are_left_as_they_were(name: str) -> None:
    data = sample()
    for column in data.values():
        column.setflags(write=False)
    ROW_METRICS[name](data)
    single = {key: column.astype(np.float32) for key, column in data.items()}
    single["users"] = data["users"]
    for column in single.values():
        column.setflags(write=False)
    ROW_METRICS[name](single)


@pytest.mark.parametrize("name", ROW_METRICS)
def test_results_are_plain_floats(name: str) -> None:
    assert type(ROW_METRICS[name](sample())) is float


@pytest.mark.parametrize("transform", [np.log, np.exp, lambda p: 3 * p - 7, lambda p: p**3])
def test_monotone_transforms_of_the_scores_do_not_matter(
    transform: Callable[[np.ndarray], np.ndarray],
) -> None:
    data = sample()
    scores = transform(data["probabilities"])
    labels, users, watch = data["labels"], data["users"], data["watch"]
    before = data["probabilities"]
    assert metrics.auc(labels, scores) == metrics.auc(labels, before)
    assert metrics.gauc(labels, scores, users) == metrics.gauc(labels, before, users)
    assert metrics.wtauc(labels, scores, watch) == metrics.wtauc(labels, before, watch)
    assert metrics.xauc(watch, scores) == metrics.xauc(watch, before)
    assert metrics.xauc(np.log1p(watch), scores) == metrics.xauc(watch, before)


def test_negated_scores_mirror_the_auc() -> None:
    data = sample()
    labels, scores = data["labels"], data["probabilities"]
    assert same(metrics.auc(labels, -scores), 1 - metrics.auc(labels, scores))
    assert same(metrics.xauc(data["watch"], -scores), 1 - metrics.xauc(data["watch"], scores))


def test_the_dtype_of_the_labels_does_not_matter() -> None:
    data = sample()
    expected = metrics.auc(data["labels"], data["probabilities"])
    for dtype in (bool, np.int8, np.uint64, np.float16, np.float64):
        assert metrics.auc(data["labels"].astype(dtype), data["probabilities"]) == expected
    assert metrics.auc(data["labels"].tolist(), data["probabilities"].tolist()) == expected


# Errors

BAD: list[tuple[str, Callable[[], object]]] = [
    (
        "labels: got 3 values, expected as many as scores",
        lambda: metrics.auc([0, 1, 1], [1.0, 2.0]),
    ),
    ("weights: got 1 values, expected as many", lambda: metrics.auc([0, 1], [1.0, 2.0], [1.0])),
    ("users: got 1 values, expected as many", lambda: metrics.gauc([0, 1], [1.0, 2.0], [1])),
    ("predicted: got 1 values, expected as many", lambda: metrics.xauc([1.0, 2.0], [1.0])),
    ("predicted: got 3 values, expected as many", lambda: metrics.mae([1.0, 2.0], [1, 2, 3])),
    ("scores: got NaN in 1 of 2 values, first at", lambda: metrics.auc([0, 1], [1.0, math.nan])),
    ("weights: got NaN", lambda: metrics.auc([0, 1], [1.0, 2.0], [1.0, math.nan])),
    ("weights: got values from -1.0", lambda: metrics.auc([0, 1], [1.0, 2.0], [-1.0, 1.0])),
    ("watch: got values from 1.0 to inf", lambda: metrics.wtauc([0, 1], [1, 2], [1.0, math.inf])),
    ("labels: got NaN", lambda: metrics.log_loss([0.0, math.nan], [0.5, 0.5])),
    ("labels: got 2 at row 1, expected 0 or 1", lambda: metrics.auc([0, 2], [1.0, 2.0])),
    ("labels: got 0.5 at row 0", lambda: metrics.log_loss([0.5], [0.5])),
    ("scores: got no values", lambda: metrics.auc([], [])),
    ("truth: got no values", lambda: metrics.mae([], [])),
    ("ranks: got no values", lambda: metrics.mrr([], [0, 0])),
    ("probabilities: got values from -0.1 to 0.5", lambda: metrics.ece([0, 1], [-0.1, 0.5])),
    ("labels: got 1 values", lambda: metrics.calibration([1], [0.5, 1.5])),
    ("scores: got shape", lambda: metrics.auc([0, 1], [[1.0, 2.0]])),
    ("scores: got dtype <U1, expected numbers", lambda: metrics.auc([0, 1], ["a", "b"])),
    ("users: got dtype float64", lambda: metrics.gauc([0, 1], [1.0, 2.0], [1.5, 2.5])),
    ("bins: got 0, expected an integer", lambda: metrics.ece([0, 1], [0.1, 0.2], bins=0)),
    ("k: got 0, expected an integer", lambda: metrics.ndcg([1], 0)),
    ("k: got 2.5, expected an integer", lambda: metrics.hit_rate([1], 2.5)),  # type: ignore[arg-type]
    ("k: got True, expected an integer", lambda: metrics.hit_rate([1], True)),
    ("base_rate: got 0", lambda: metrics.normalized_entropy([0, 1], [0.1, 0.2], 0)),
    ("base_rate: got nan", lambda: metrics.normalized_entropy([0, 1], [0.1, 0.2], math.nan)),
    ("ranks: got 0.0, expected 1-based", lambda: metrics.mrr([0, 1])),
    ("offsets: got 2 values from 0 to 2", lambda: metrics.mrr([1, 2, 3], [0, 2])),
    ("offsets: got 3 values from 1 to 3", lambda: metrics.mrr([1, 2, 3], [1, 2, 3])),
    ("offsets: got 4 values", lambda: metrics.mrr([1, 2, 3], [0, 2, 1, 3])),
    ("ranks: got 2 twice in one list", lambda: metrics.ndcg([2, 1, 2], 10, [0, 3])),
    ("scores: got shape", lambda: metrics.rank_of([1.0, 2.0], [0])),
    ("scores: got NaN", lambda: metrics.rank_of([[1.0, math.nan]], [0])),
    ("targets: got 2, expected one per row", lambda: metrics.rank_of([[1.0, 2.0]], [0, 1])),
    ("targets: got columns 2..2, expected 0..1", lambda: metrics.rank_of([[1.0, 2.0]], [2])),
    ("targets: got dtype float64, expected integers", lambda: metrics.rank_of([[1.0]], [0.0])),
]


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message for message, _ in BAD])
def test_bad_input_is_named(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(DataError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert ";" in str(caught.value)  # the part that says what to do


def test_a_repeated_rank_in_two_lists_is_no_error() -> None:
    assert metrics.ndcg([2, 2], 10, [0, 1, 2]) == pytest.approx(1 / math.log2(3))


def test_extreme_values_raise_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = np.array([-1.7e308, 1.7e308, 5e-324, -5e-324])
        assert metrics.auc([0, 1, 1, 0], scores) == 1.0
        assert metrics.gauc([0, 1, 1, 0], scores, [0, 0, 0, 0]) == 1.0
        assert metrics.xauc(scores, scores) == 1.0
        ids = np.array([-(2**63), 2**63 - 1, 0, -(2**63)])
        assert metrics.xauc(ids, ids) == 1.0
        small = np.array([-128, 127, 0, -1], np.int8)
        assert metrics.xauc(small, small) == 1.0
        tiny = np.full(4, 1e-200)
        assert metrics.auc([0, 1, 1, 0], scores, tiny) == pytest.approx(1.0)
