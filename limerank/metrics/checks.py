"""Checks of arguments, which name the argument, what was given and what is expected."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limerank.errors import DataError


def vector_of(name: str, values: ArrayLike, kinds: str = "biuf") -> NDArray[Any]:
    """`values` as an array [n] with n >= 1, of one of the dtype kinds, without NaN."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(
            f"{name}: got shape {array.shape}, expected one dimension; flatten it, for example with"
            " reshape(-1)"
        )
    if array.size == 0:
        raise DataError(f"{name}: got no values, expected at least one; check the filter before it")
    if array.dtype.kind not in kinds:
        expected = (
            "numbers" if "f" in kinds else "integers or strings" if "U" in kinds else "integers"
        )
        raise DataError(
            f"{name}: got dtype {array.dtype}, expected {expected}; convert with astype"
        )
    if array.dtype == np.float16:
        array = array.astype(np.float32)  # lossless, and the sorts below know it
    refuse_nan(name, array)
    return array


def refuse_nan(name: str, array: NDArray[Any]) -> None:
    """Raise where a value is NaN."""
    # The minimum is NaN where any value is, and takes no temporary array.
    if array.dtype.kind == "f" and np.isnan(array.min()):
        at = np.argwhere(np.isnan(array))
        raise DataError(
            f"{name}: got NaN in {len(at)} of {array.size} values, first at {at[0].tolist()},"
            " expected none; repair or drop these rows"
        )


def require_length(name: str, array: NDArray[Any], other: str, reference: NDArray[Any]) -> None:
    """Raise where ``array`` has another size than ``reference``, which messages call ``other``."""
    if array.size != reference.size:
        raise DataError(
            f"{name}: got {array.size} values, expected as many as {other} ({reference.size}); pass"
            " one of each per row"
        )


def labels_of(labels: ArrayLike, other: str, reference: NDArray[Any]) -> NDArray[np.bool_]:
    """Labels as bool [n], from values of 0 and 1."""
    array = vector_of("labels", labels)
    require_length("labels", array, other, reference)
    if array.dtype == np.bool_:
        return array
    positive: NDArray[np.bool_] = array == 1
    good = positive | (array == 0)
    if not good.all():
        at = int(np.argmin(good))
        raise DataError(
            f"labels: got {array[at]} at row {at}, expected 0 or 1; threshold the label first"
        )
    return positive


def probabilities_of(probabilities: ArrayLike) -> NDArray[Any]:
    """Probabilities as floats [n], each in 0..1."""
    array = vector_of("probabilities", probabilities)
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        raise DataError(
            f"probabilities: got values from {low} to {high}, expected 0..1; pass logits through a"
            " sigmoid first"
        )
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def weights_of(
    name: str, weights: ArrayLike, other: str, reference: NDArray[Any]
) -> NDArray[np.float64]:
    """Weights as float64 [n], finite and not negative."""
    array = vector_of(name, weights)
    require_length(name, array, other, reference)
    low, high = array.min(), array.max()
    if low < 0 or np.isinf(high):
        raise DataError(
            f"{name}: got values from {low} to {high}, expected finite ones of at least 0; clip or"
            " drop these rows"
        )
    return array.astype(np.float64, copy=False)


def require_at_least_1(name: str, value: int) -> None:
    """Raise where a setting is not an integer of 1 or more."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise DataError(f"{name}: got {value!r}, expected an integer of at least 1; for example 10")
