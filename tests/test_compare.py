"""Paired intervals: resampled AUCs by brute force, coverage on known differences."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from limerank import metrics
from limerank.errors import DataError, SpecError
from limerank.evaluation.bootstrap import Resampled, draws, paired_auc, resampled_auc
from limerank.evaluation.compare import Comparison, Difference, compare
from limerank.evaluation.evaluate import evaluate
from tests.catalogues import data, shop


def log(seed=0, users=40, ties=False):
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, users, 600)
    truth = rng.normal(size=600) + 0.5 * rng.normal(size=users)[owner]
    labels = (truth + rng.normal(size=600) > 0).astype(float)
    scores = truth + rng.normal(size=600)
    return owner, labels, (np.round(scores) if ties else scores).astype(np.float32)


@pytest.mark.parametrize("ties", [False, True])
def test_each_resample_is_the_auc_of_its_rows(ties):
    users, labels, scores = log(ties=ties)
    counts = draws(users, 5, seed=3)
    found = resampled_auc(labels, scores, counts)
    for drawn, value in zip(counts, found, strict=True):
        rows = np.repeat(np.arange(600), drawn)
        assert value == pytest.approx(metrics.auc(labels[rows], scores[rows]))


def test_users_are_drawn_with_all_their_requests():
    users, _, _ = log()
    counts = draws(users, 20)
    for user in np.unique(users):
        assert (np.ptp(counts[:, users == user], axis=1) == 0).all()
    first = np.unique(users, return_index=True)[1]
    assert (counts[:, first].sum(1) == len(first)).all()


def test_the_difference_is_that_of_the_aucs():
    users, labels, scores = log()
    worse = scores + np.random.default_rng(1).normal(size=600).astype(np.float32)
    found = paired_auc(labels, users, [scores, scores], [worse, scores])
    gap = (metrics.auc(labels, scores) - metrics.auc(labels, worse)) / 2
    assert found.difference == pytest.approx(gap)
    assert found.low < found.difference < found.high and found.low > 0
    same = paired_auc(labels, users, [scores], [scores])
    assert same == (0, 0, 0)


def test_about_as_many_intervals_hold_the_truth_as_they_say():
    """Two models of one quality: 0 lies in most intervals, and not in all of them."""
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        users, labels, _ = log(seed)
        base = labels + 1.5 * rng.normal(size=600)
        one, other = (base + rng.normal(size=600) for _ in range(2))
        found = paired_auc(labels, users, [one], [other], resamples=100, seed=seed, level=0.8)
        inside += found.low <= 0 <= found.high
    assert 0.65 <= inside / 60 <= 0.92


def test_a_single_user_gives_no_bounds():
    _, labels, scores = log()
    found = paired_auc(labels, np.zeros(len(labels)), [scores], [-scores])
    assert found.difference == pytest.approx(2 * metrics.auc(labels, scores) - 1)
    assert np.isnan(found.low) and np.isnan(found.high)
    part = Difference("history 0", 9, 0.1, *found[1:])
    result = Comparison("t", "test", (("a",), ("b",)), (part,))
    assert result.text().splitlines()[-1].split() == ["history", "0", "9", "+0.1000", "-"]
    assert result.to_dict() == {
        "task": "t",
        "metric": "auc",
        "split": "test",
        "runs": [["a"], ["b"]],
        "differences": [
            {"slice": "history 0", "impressions": 9, "difference": 0.1, "low": None, "high": None}
        ],
    }
    assert result.to_polars()["low"].to_list() == [None]


def test_runs_must_match():
    users, labels, scores = log()
    with pytest.raises(DataError, match="got 1 and 0 runs"):
        paired_auc(labels, users, [scores], [])


def test_runs_are_compared_on_the_same_impressions(tmp_path):
    ours, theirs = shop("lime-mha").run, shop("two-tower").run
    result = compare([ours.path], [theirs.path], data=data().path, resamples=50)
    found = {part.slice: part for part in result.differences}
    values = [
        evaluate(run.path, data=data().path, lists=0, out=tmp_path / "m.json")
        for run in (ours, theirs)
    ]
    gap = values[0].tasks["click"]["auc"] - values[1].tasks["click"]["auc"]
    assert found[""].difference == pytest.approx(gap)
    assert found[""].impressions == values[0].impressions
    kind, name = ("history", "10-49")
    old = next(p for p in values[0].slices if (p.kind, p.name) == (kind, name))
    assert found[f"{kind} {name}"].impressions == old.impressions
    text = result.text()
    assert f"{gap:+.4f}" in text and f"{kind} {name}" in text
    lines = text.splitlines()
    assert lines[0] == "click AUC, A minus B, test split, 95 % intervals over users"
    assert lines[1:3] == [f"  A: {ours.path}", f"  B: {theirs.path}"]
    assert lines[4].endswith("95 % interval")
    assert compare(str(ours.path), theirs.path, data=data().path, resamples=50) == result
    with pytest.raises(SpecError, match="no binary task 'watch'; known: click"):
        compare([ours.path], [theirs.path], data=data().path, task="watch")
    with pytest.raises(DataError, match="got 2 and 1 runs"):
        compare([ours.path, ours.path], [theirs.path], data=data().path)


def test_memory_does_not_grow_with_the_number_of_resamples():
    """2,000 resamples of 20,000 impressions: 160 MB at once, and a hundredth of that one by one."""
    rng = np.random.default_rng(0)
    users, labels = rng.integers(0, 500, 20_000), rng.integers(0, 2, 20_000)
    scores = [rng.random(20_000, dtype=np.float32) for _ in range(2)]
    tracemalloc.start()
    paired_auc(labels, users, scores[:1], scores[1:], resamples=2)
    few = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    paired_auc(labels, users, scores[:1], scores[1:], resamples=100)
    many = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert many < few + 20_000 * 8


def test_an_interval_is_that_of_all_resamples_held_at_once():
    """The same draws in the same order, bit for bit."""
    users, labels, scores = log()
    worse = scores + np.random.default_rng(1).normal(size=600).astype(np.float32)
    found = paired_auc(labels, users, [scores], [worse], resamples=50, seed=4)
    distinct, positions = np.unique(users, return_inverse=True)
    generator = np.random.default_rng(4)
    gaps = []
    for _ in range(50):
        drawn = generator.integers(0, len(distinct), len(distinct))
        counts = np.bincount(drawn, minlength=len(distinct)).astype(np.int32)[positions]
        gaps.append(Resampled(labels, scores).auc(counts) - Resampled(labels, worse).auc(counts))
    low, high = np.quantile(gaps, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    assert (found.low, found.high) == (low, high)


def test_a_long_name_of_a_slice_keeps_the_columns_apart():
    names = ("", "a slice with quite a long name")
    parts = tuple(Difference(name, 123456789, 0.1, 0.05, 0.2) for name in names)
    lines = Comparison("t", "test", (("a",), ("b",)), parts).text().splitlines()[-3:]
    assert lines[1].split() == ["all", "123,456,789", "+0.1000", "*", "+0.0500", "to", "+0.2000"]
    assert lines[2].split("  ")[1] == names[1]
    assert (
        len(
            {
                line.index("difference") if n == 0 else line.index("+0.1000") + 7 - 10
                for n, line in enumerate(lines)
            }
        )
        == 1
    )
