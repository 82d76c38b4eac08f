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
TINY = 1e-9
"""Steps below this size end the search."""


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
    return normalized_entropy(positive_n, _sigmoid(scale * z_n + shift))


def _logits(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    probabilities = probabilities_of(probabilities)
    positive_n = labels_of(labels, "probabilities", probabilities)
    least, eps = np.finfo(probabilities.dtype).tiny, np.finfo(probabilities.dtype).epsneg
    p_n = np.clip(probabilities.astype(np.float64), float(least), 1.0 - float(eps))
    return positive_n, np.log(p_n) - np.log1p(-p_n)


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
    value = _loss(at, positive_n, z_n)
    for _ in range(STEPS):
        p_n = _sigmoid(at[0] * z_n + at[1])
        off_n, spread_n = p_n - positive_n, p_n * (1.0 - p_n)
        gradient = np.array([off_n @ z_n + at[0] - 1.0, off_n.sum() + at[1]])
        mixed = spread_n @ z_n
        hessian = np.array([[spread_n @ z_n**2 + 1.0, mixed], [mixed, spread_n.sum() + 1.0]])
        if fixed_scale is None:
            step = np.linalg.solve(hessian, gradient)
        else:
            step = np.array([0.0, gradient[1] / hessian[1, 1]])
        for halving in range(HALVINGS):
            new = at - step * 0.5**halving
            new_value = _loss(new, positive_n, z_n)
            if new_value <= value:
                break
        else:
            break
        done = float(np.abs(new - at).max()) < TINY
        at, value = new, new_value
        if done:
            break
    return Affine(float(at[0]), float(at[1]))


def _loss(
    at: NDArray[np.float64], positive_n: NDArray[np.bool_], z_n: NDArray[np.float64]
) -> float:
    scaled_n = at[0] * z_n + at[1]
    losses = np.logaddexp(0.0, scaled_n).sum() - scaled_n[positive_n].sum()
    return float(losses + ((at[0] - 1.0) ** 2 + at[1] ** 2) / 2)


def _sigmoid(z_n: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -z_n))
