"""Platt scaling: the affine map of the logits that fits the outcomes best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.metrics.binary import normalized_entropy
from limerank.metrics.checks import labels_of, probabilities_of

LEAST_SCALE = 0.01
"""Smallest scale: with a scale of 0 or below, predictions would lose or reverse their order."""
STEPS, HALVINGS = 50, 30
"""Newton steps, and halvings of one of them, at most."""
TINY = 1e-6
"""A step below this size is the last one: the error after it is about its square."""
BOUND = 700.0
"""Logits beyond it are those of probabilities 0 and 1; the exponential function has limits."""


class Affine(NamedTuple):
    """A map of logits, z -> scale z + shift; ``scale`` is above 0."""

    scale: float
    shift: float


def platt_scaling(labels: ArrayLike, probabilities: ArrayLike) -> Affine:
    """The affine map of the logits with the least log loss.

        min_{a >= 0.01, b}  sum_i BCE(y_i, sigmoid(a z_i + b)) + ((a - 1)^2 + b^2) / 2,
        z_i = logit(p_i)

    Platt, "Probabilistic outputs for support vector machines", 1999. The second term is a normal
    prior around the identity that weighs as much as a few impressions: it makes the minimum finite
    and unique where the labels are of one class or the predictions separate them.

    Args:
        labels: [n] 0 or 1.
        probabilities: [n] in 0..1; 0 and 1 count as the nearest numbers of their dtype.
    """
    return _fit(*_logits(labels, probabilities))


def calibrated_entropy(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Normalised entropy after :func:`platt_scaling` that is fitted on the same impressions.

    The part of the normalised entropy that calibration cannot remove: overconfidence and a wrong
    base rate do not count, wrong order does. Rarely above 1. NaN where the labels are of one class.

    Args:
        labels: [n] 0 or 1.
        probabilities: [n] in 0..1.
    """
    positive_n, z_n = _logits(labels, probabilities)
    scale, shift = _fit(positive_n, z_n)
    p_n = 1.0 / (1.0 + np.exp(-np.clip(scale * z_n + shift, -BOUND, BOUND)))
    return normalized_entropy(positive_n, p_n)


def _logits(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and logits; sorted, so that sums do not depend on the order of the rows."""
    probabilities = probabilities_of(probabilities)
    positive_n = labels_of(labels, "probabilities", probabilities)
    parts = [np.sort(probabilities[mask]) for mask in (~positive_n, positive_n)]
    least, eps = np.finfo(probabilities.dtype).tiny, np.finfo(probabilities.dtype).epsneg
    p_n = np.clip(np.concatenate(parts).astype(np.float64), float(least), 1.0 - float(eps))
    return np.arange(len(p_n)) >= len(parts[0]), np.log(p_n) - np.log1p(-p_n)


def _fit(positive_n: NDArray[np.bool_], z_n: NDArray[np.float64]) -> Affine:
    found = _newton(positive_n, z_n, None)
    if found.scale < LEAST_SCALE:  # the loss is convex: its least value lies on the bound
        return _newton(positive_n, z_n, LEAST_SCALE)
    return found


def _newton(
    positive_n: NDArray[np.bool_], z_n: NDArray[np.float64], fixed_scale: float | None
) -> Affine:
    """Newton's method with halved steps, from the identity; ``fixed_scale``: of the shift alone."""
    at = np.array([1.0 if fixed_scale is None else fixed_scale, 0.0])
    constant = np.array([z_n[positive_n].sum(), float(np.count_nonzero(positive_n))])
    value, gradient, hessian = _loss(at, z_n, constant)
    for _ in range(STEPS):
        if fixed_scale is None:
            step = np.linalg.solve(hessian, gradient)
        else:
            step = np.array([0.0, gradient[1] / hessian[1, 1]])
        for _ in range(HALVINGS):
            found = _loss(at - step, z_n, constant)
            if found[0] <= value:
                break
            step = step / 2
        else:
            break
        at, (value, gradient, hessian) = at - step, found
        if float(np.abs(step).max()) < TINY:
            break
    return Affine(float(at[0]), float(at[1]))


def _loss(
    at: NDArray[np.float64], z_n: NDArray[np.float64], constant: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """The sum that is minimised, its gradient [2] and its Hessian [2, 2].

    Args:
        at: scale and shift.
        z_n: logits.
        constant: sums over the positives, of their logits and of 1.
    """
    s_n = at[0] * z_n + at[1]
    e_n = np.exp(-np.abs(s_n))
    p_n = np.where(s_n >= 0, 1.0, e_n) / (1.0 + e_n)
    off = at - (1.0, 0.0)
    value = np.log1p(e_n).sum() + np.maximum(s_n, 0.0).sum() - at @ constant + off @ off / 2
    gradient = np.array([p_n @ z_n, p_n.sum()]) - constant + off
    p_n *= 1.0 - p_n
    weighted_n = p_n * z_n
    mixed = weighted_n.sum()
    hessian = np.array([[weighted_n @ z_n + 1.0, mixed], [mixed, p_n.sum() + 1.0]])
    return float(value), gradient, hessian
