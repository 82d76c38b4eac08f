"""Experiments: rates with intervals, also such that stay valid while one looks; the sample ratio.

Users are the units: the requests of one user are alike, so intervals of rates per request come from
sums per user (delta method of a ratio of means; Deng, Knoblich and Lu, "Applying the Delta Method
in Metric Analytics", KDD 2018).

An interval of a fixed sample is valid once, at a time that was chosen before. A *sequential*
interval is valid at all times together, so that one may look every day and stop when it
excludes 0: the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences" (Annals of Statistics, 2024,
theorem 2.2)::

    mean +- s sqrt( 2 (n rho^2 + 1) / (n^2 rho^2) ln( sqrt(n rho^2 + 1) / alpha ) )

Shapes: U users of an arm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError

CONFIDENCE = 0.95
PLANNED = 10_000
"""Users for which a sequential interval is the narrowest, unless another number is given."""


class Interval(NamedTuple):
    """An estimate and the bounds of its interval; NaN where they are not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sums:
    """What estimates need of the users of one arm: they can be added up user by user.

    Attributes:
        users: number of users U.
        x, y: sums over users of numerator and denominator.
        xx, yy, xy: sums over users of their products.
    """

    users: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    @classmethod
    def of(cls, numerators: ArrayLike, denominators: ArrayLike) -> Sums:
        """Of the users' numerators [U] and denominators [U].

        Raises:
            DataError: lengths differ, or a number is not finite.
        """
        x, y = _column(numerators), _column(denominators)
        if len(x) != len(y):
            raise DataError(f"{len(x)} numerators and {len(y)} denominators, expected as many")
        products = (float(np.dot(one, other)) for one, other in ((x, x), (y, y), (x, y)))
        return cls(len(x), float(x.sum()), float(y.sum()), *products)

    @property
    def ratio(self) -> float:
        """The sum of the numerators over that of the denominators."""
        return float(self.x / self.y) if self.y else math.nan

    @property
    def variance(self) -> float:
        """Of the ratio, by the delta method; NaN for fewer than two users."""
        n, r = self.users, self.ratio
        if n < 2 or not self.y:
            return math.nan
        squares = self.xx - 2 * r * self.xy + r * r * self.yy  # of x - r y, whose mean is 0
        mean = self.y / n
        return float(max(squares, 0.0) / (n - 1) / mean**2 / n)


def rate(sums: Sums, confidence: float = CONFIDENCE) -> Interval:
    """A ratio of sums over users, such as outcomes per request, with its interval."""
    half = _quantile(confidence) * math.sqrt(sums.variance)
    return Interval(sums.ratio, sums.ratio - half, sums.ratio + half)


def difference(sums: Sums, other: Sums, confidence: float = CONFIDENCE) -> Interval:
    """The ratio of an arm minus that of another, with the interval of a fixed sample."""
    value = sums.ratio - other.ratio
    half = _quantile(confidence) * math.sqrt(sums.variance + other.variance)
    return Interval(value, value - half, value + half)


def sequential_difference(
    sums: Sums, other: Sums, confidence: float = CONFIDENCE, planned: int = PLANNED
) -> Interval:
    """The same, with an interval that is valid at all times together.

    Args:
        sums, other: of two arms.
        confidence: that it contains the difference at all times.
        planned: users of both arms for which the interval is the narrowest. It is valid for any
            number that was chosen before the experiment.
    """
    value, n = sums.ratio - other.ratio, sums.users + other.users
    spread = math.sqrt(n * (sums.variance + other.variance))  # of one user
    half = spread * _boundary(n, 1 - confidence, planned)
    return Interval(value, value - half, value + half)


def sequential_mean(sums: Sums, confidence: float = CONFIDENCE, planned: int = PLANNED) -> Interval:
    """A ratio of sums with an interval that is valid at all times together."""
    spread = math.sqrt(sums.users * sums.variance)
    half = spread * _boundary(sums.users, 1 - confidence, planned)
    return Interval(sums.ratio, sums.ratio - half, sums.ratio + half)


def _boundary(n: int, alpha: float, planned: int) -> float:
    """Half the width of a confidence sequence for a spread of 1. Its rho is the one that the paper
    gives as approximately best for ``planned`` users."""
    if n < 2:
        return math.nan
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / planned
    inside = math.log(math.sqrt(n * rho2 + 1) / alpha)
    return math.sqrt(2 * (n * rho2 + 1) / (n * n * rho2) * inside)


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> float:
    """How likely counts of users are that differ from their shares as much as these: the p-value of
    Pearson's chi-square test. Below 0.001, something is wrong with the experiment: users of an arm
    are not logged, or not as those of the others (Fabijan et al., "Diagnosing Sample Ratio
    Mismatch", KDD 2019). NaN without users or with one arm.

    Raises:
        DataError: lengths differ, or a share is not above 0.
    """
    if len(counts) != len(shares) or any(share <= 0 for share in shares):
        raise DataError(
            f"{len(counts)} counts and {len(shares)} shares, expected as many, and shares above 0"
        )
    total, scale = sum(counts), math.fsum(shares)
    if total == 0 or len(counts) < 2:
        return math.nan
    statistic = math.fsum(
        (count - total * share / scale) ** 2 / (total * share / scale)
        for count, share in zip(counts, shares, strict=True)
    )
    return _chi_square(statistic, len(counts) - 1)


def _chi_square(statistic: float, freedom: int) -> float:
    """Probability of at least this value under a chi-square distribution: the recurrence of the
    incomplete gamma function, from 1 or 2 degrees of freedom on."""
    half = statistic / 2
    if freedom % 2:
        at, found = 0.5, math.erfc(math.sqrt(half))
    else:
        at, found = 1.0, math.exp(-half)
    term = half**at * math.exp(-half) / math.gamma(at + 1)
    while at < freedom / 2:
        found += term
        at += 1
        term *= half / at
    return min(1.0, found)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise DataError(f"the confidence is {confidence:g}, expected a number between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _column(given: ArrayLike) -> NDArray[np.float64]:
    found: NDArray[Any] = np.asarray(given, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise DataError("expected one finite number per user")
    return found
