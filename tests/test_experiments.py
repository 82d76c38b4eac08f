"""Reading an experiment: intervals against simulation, and estimates from logs of known chances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from limerank.errors import DataError
from limerank.metrics.experiments import (
    Sums,
    difference,
    rate,
    sample_ratio,
    sequential_difference,
    sequential_mean,
)
from limerank.metrics.off_policy import effective, ips, replay, snips


def population(rng, users, chance=0.1):
    """Requests and clicks of users who differ in both."""
    requests = 1 + rng.poisson(4, users)
    own = rng.beta(20 * chance, 20 * (1 - chance), users)
    return rng.binomial(requests, own), requests


def test_sums_are_those_of_all_users():
    rng = np.random.default_rng(0)
    x, y = population(rng, 500)
    sums = Sums.of(x, y)
    assert sums.ratio == pytest.approx(x.sum() / y.sum())
    residual = (x - sums.ratio * y) / y.mean()
    assert sums.variance == pytest.approx(residual.var(ddof=1) / 500)
    boot = []
    for _ in range(2000):
        chosen = rng.integers(0, 500, 500)
        boot.append(x[chosen].sum() / y[chosen].sum())
    assert math.sqrt(sums.variance) == pytest.approx(np.std(boot), rel=0.08)


def test_intervals_contain_the_truth_as_often_as_they_say():
    """95 % of 400: within four standard deviations of 380."""
    inside = per_user = 0
    for seed in range(400):
        x, y = population(np.random.default_rng(seed), 400)
        found = rate(Sums.of(x, y))
        inside += found.low <= 0.1 <= found.high
        each = rate(Sums.of(x, np.ones(400)))
        per_user += each.low <= 0.5 <= each.high
    assert 362 <= inside <= 397 and 362 <= per_user <= 397


def test_looking_every_day_finds_no_difference_that_is_not_there():
    """Two equal arms, looked at 60 times: fixed intervals exclude 0 far more often than 5 % of the
    time, sequential ones less often."""
    fixed = sequential = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        arms = [population(rng, 3000) for _ in range(2)]
        excluded = [False, False]
        for users in range(50, 3001, 50):
            a, b = (Sums.of(x[:users], y[:users]) for x, y in arms)
            for k, found in enumerate(
                (difference(a, b), sequential_difference(a, b, planned=3000))
            ):
                excluded[k] |= not found.low <= 0 <= found.high
        fixed += excluded[0]
        sequential += excluded[1]
    assert fixed > 40 and sequential <= 10


def test_a_difference_that_is_there_is_found():
    rng = np.random.default_rng(1)
    a, b = (Sums.of(*population(rng, 20_000, chance)) for chance in (0.12, 0.10))
    for found in (difference(a, b), sequential_difference(a, b)):
        assert found.low > 0 and found.value == pytest.approx(0.02, abs=0.005)
    narrow, wide = difference(a, b), sequential_difference(a, b)
    assert wide.high - wide.low > narrow.high - narrow.low
    assert sequential_mean(a).low < 0.12 < sequential_mean(a).high


@pytest.mark.parametrize("arms", [2, 3, 4, 5, 7])
def test_the_sample_ratio_equals_scipy(arms):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(arms)
    for _ in range(20):
        shares = rng.dirichlet(np.full(arms, 5.0))
        counts = rng.multinomial(3000, 0.97 * shares + 0.03 / arms)
        expected = stats.chisquare(counts, 3000 * shares).pvalue
        assert sample_ratio(counts.tolist(), shares.tolist()) == pytest.approx(expected, abs=1e-12)


def test_what_is_not_defined():
    assert math.isnan(rate(Sums()).value) and math.isnan(rate(Sums.of([1], [1])).low)
    assert math.isnan(sample_ratio([0, 0], [1, 1])) and math.isnan(sample_ratio([5], [1]))
    for wrong in (lambda: Sums.of([1], [1, 2]), lambda: Sums.of([math.nan], [1]),
                  lambda: sample_ratio([1, 2], [1, 0]), lambda: rate(Sums(), 1.5)):  # fmt: skip
        with pytest.raises(DataError):
            wrong()


# Off-policy


def logged(rng, rows=500, actions=5):
    """A log whose policy prefers some actions, and the truth of each action."""
    chances = rng.dirichlet(np.full(actions, 2.0), rows)
    truth = rng.beta(2, 5, (rows, actions))
    action = np.array([rng.choice(actions, p=row) for row in chances])
    at = np.arange(rows)
    reward = (rng.random(rows) < truth[at, action]).astype(float)
    return chances, truth, action, reward, chances[at, action]


def test_estimates_contain_the_truth_of_another_policy():
    inside = {"ips": 0, "snips": 0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        chances, truth, action, reward, propensity = logged(rng)
        target = 0.5 * chances + 0.5 / chances.shape[1]
        wanted = target[np.arange(len(action)), action]
        value = (target * truth).sum(1).mean()
        for name, estimate in (("ips", ips), ("snips", snips)):
            found = estimate(reward, propensity, wanted)
            inside[name] += found.low <= value <= found.high
    assert 86 <= inside["ips"] <= 100 and 86 <= inside["snips"] <= 100


def test_replay_of_a_uniform_log():
    rng = np.random.default_rng(3)
    truth, rows = np.array([0.1, 0.3, 0.6]), 6000
    action, best = rng.integers(0, 3, rows), 2
    reward = rng.random(rows) < truth[action]
    found = replay(reward, action == best)
    assert found.low < 0.6 < found.high
    assert found.value == pytest.approx(reward[action == best].mean())
    same = snips(reward, np.full(rows, 1 / 3), action == best)
    assert found == pytest.approx(same)
    assert effective(np.full(rows, 1 / 3), action == best) == pytest.approx((action == best).sum())


def test_rows_of_one_user_are_one_unit():
    rng = np.random.default_rng(4)
    reward, users = np.repeat(rng.integers(0, 2, 50), 20), np.repeat(np.arange(50), 20)
    ones = np.full(1000, 0.5)
    alone, grouped = ips(reward, ones, ones), ips(reward, ones, ones, users)
    assert alone.value == pytest.approx(grouped.value)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


@pytest.mark.parametrize(
    "given",
    [
        ([1], [0], [1]),
        ([1], [0.5], [2]),
        ([1, 2], [0.5], [1]),
        ([], [], []),
        ([math.nan], [1], [1]),
    ],
)
def test_chances_that_are_none_are_refused(given):
    with pytest.raises(DataError):
        ips(*given)
