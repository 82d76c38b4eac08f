"""Ids that may mean "no user" or "no item": words such as NULL, and ids with too many events."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.coverage import missing_words, percent

PLACEHOLDERS = ("0", "-1")
TIMES_THE_MEAN = {"user": 20, "item": 20}
LEAST_SHARE = {"user": 0.01, "item": 0.1}
"""An id is suspect with this share of the events and so many times the mean of the others."""
PLACEHOLDER_TIMES = 5
PLACEHOLDER_SHARE = {"user": 0.01, "item": 0.02}
"""The same for ids that often mean a missing one. (Item 0 may well be the most popular one.)"""
MANY = 1000
"""Events. A user with fewer may just be active, where 1 % of a short log is few events."""
SHORT_SHARE = {True: 0.05, False: 0.1}
"""The least share of such a user, by whether the id is a placeholder."""
SHOWN = 3


def suspects(what: str, ids: pl.Series, counts: NDArray[np.int64]) -> list[str]:
    """Warnings of ids that may mean a missing one, or many users or items at once.

    Args:
        what: "user" or "item".
        ids: distinct; ``counts``: the events of each.
    """
    total = int(counts.sum())
    if total == 0:
        return []
    warnings = []
    if ids.dtype == pl.String:
        words = missing_words(ids).arg_true().to_numpy()
        for code in words.tolist():
            warnings.append(
                f"the {what} id {ids[code]!r} has {_share(counts[code], total)}; if it means "
                f"a missing one, list it in null_values"
            )
        counts = counts.copy()
        counts[words] = 0
    some = min(SHOWN, len(counts))
    largest = np.argpartition(counts, -some)[-some:]
    largest = largest[np.argsort(counts[largest])[::-1]].tolist()
    known = PLACEHOLDERS if ids.dtype == pl.String else [int(one) for one in PLACEHOLDERS]
    placeholders = ids.is_in(known).arg_true().to_list()
    for code in dict.fromkeys([*largest, *placeholders]):
        count = int(counts[code])
        mean = (total - count) / max(len(counts) - 1, 1)
        placeholder = code in placeholders
        least = (PLACEHOLDER_SHARE if placeholder else LEAST_SHARE)[what]
        if what == "user" and count < MANY:
            least = SHORT_SHARE[placeholder]
        times = PLACEHOLDER_TIMES if placeholder and what == "user" else TIMES_THE_MEAN[what]
        if len(counts) > 1 and count >= least * total and count > times * mean:
            warnings.append(
                f"the {what} id {str(ids[code])!r} has {_share(count, total)}, the others "
                f"{mean:,.1f} on average; if it does not mean a single {what}, list it in "
                "null_values"
            )
    return warnings


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} events ({percent(int(count), total)})"
