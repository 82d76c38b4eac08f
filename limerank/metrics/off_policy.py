"""Off-policy estimates: how often users would act on what another policy shows, from a log whose
policy chose at random with known probabilities (*propensities*).

- ``ips``: inverse-propensity scores (Horvitz and Thompson, 1952): unbiased; large weights make its
  interval wide.
- ``snips``: the same, divided by the sum of the weights (Swaminathan and Joachims, "The
  Self-Normalized Estimator for Counterfactual Learning", NIPS 2015): a bias that vanishes, and less
  variance.
- ``replay``: the rows in which a policy that chooses one item agrees with the log (Li, Chu,
  Langford and Wang, 2011). Unbiased where the log chose uniformly.

Shapes: n rows, each an item that was shown, or R requests with several rows each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError
from limerank.metrics.experiments import CONFIDENCE, Interval, Sums, rate


def ips(
    rewards: ArrayLike,
    propensities: ArrayLike,
    target: ArrayLike,
    users: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The mean reward of a target policy.

    Args:
        rewards: of each row, such as 1 for a click [n].
        propensities: probability with which the log's policy showed the row's item [n].
        target: probability with which the target policy shows it [n].
        users: of each row [n]; rows of one user are alike, so that intervals count users. When not
            given, each row is a unit.
        confidence: of the interval.

    Raises:
        DataError: lengths differ, or a number is not a probability; a propensity is above 0.
    """
    reward, weight, unit = _checked(rewards, propensities, target, users)
    return rate(_by_unit(reward * weight, np.ones(len(reward)), unit), confidence)


def snips(
    rewards: ArrayLike,
    propensities: ArrayLike,
    target: ArrayLike,
    users: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The same by the self-normalised estimator; NaN where the target shows no row."""
    reward, weight, unit = _checked(rewards, propensities, target, users)
    return rate(_by_unit(reward * weight, weight, unit), confidence)


def replay(
    rewards: ArrayLike,
    agrees: ArrayLike,
    users: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The mean reward of rows in which the target chooses the item that was shown.

    Args:
        rewards: of each row [n].
        agrees: whether the target chooses the row's item [n].
        users, confidence: see :func:`ips`.

    Raises:
        DataError: lengths differ.
    """
    chosen: NDArray[Any] = np.asarray(agrees, dtype=np.float64)
    return snips(rewards, np.ones(len(chosen)), chosen, users, confidence)


def effective(propensities: ArrayLike, target: ArrayLike) -> float:
    """How many rows of the target policy the weighted rows are worth: (sum w)^2 / sum w^2 (Kish).
    Where it is small, the log says little about the target."""
    _, weight, _ = _checked(np.zeros(len(np.asarray(target))), propensities, target, None)
    squares = float(weight @ weight)
    return float(weight.sum() ** 2 / squares) if squares else math.nan


def _by_unit(x: NDArray[Any], y: NDArray[Any], unit: NDArray[Any] | None) -> Sums:
    if unit is None:
        return Sums.of(x, y)
    count = int(unit.max(initial=-1)) + 1
    return Sums.of(np.bincount(unit, x, count), np.bincount(unit, y, count))


def _checked(
    rewards: ArrayLike, propensities: ArrayLike, target: ArrayLike, users: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    reward: NDArray[Any] = np.asarray(rewards, dtype=np.float64)
    logged: NDArray[Any] = np.asarray(propensities, dtype=np.float64)
    wanted: NDArray[Any] = np.asarray(target, dtype=np.float64)
    unit = None if users is None else np.unique(np.asarray(users), return_inverse=True)[1]
    lengths = {len(one) for one in (reward, logged, wanted, *(() if unit is None else (unit,)))}
    if len(lengths) != 1 or not len(reward):
        raise DataError(f"columns have {sorted(lengths)} rows, expected as many, and at least one")
    if not ((logged > 0) & (logged <= 1)).all():
        raise DataError("a propensity is not above 0 and at most 1; leave out rows without one")
    if not ((wanted >= 0) & (wanted <= 1)).all() or not np.isfinite(reward).all():
        raise DataError("expected finite rewards, and target probabilities between 0 and 1")
    return reward, wanted / logged, unit
