"""Ids that stand for nobody: words such as NULL, and ids with an outsized share of the events."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.coverage import missing_words, percent

PLACEHOLDERS = ("0", "-1")
TIMES_THE_MEAN = {"user": 20, "item": 20}
LEAST_SHARE = {"user": 0.01, "item": 0.1}
"""An id is outsized with this share of the events, and so many times the mean of the others."""
PLACEHOLDER_TIMES = 5
PLACEHOLDER_SHARE = {"user": 0.01, "item": 0.02}
"""The same for ids that are often given to nobody. (Item 0 may well be the most popular one.)"""
MANY = 1000
"""Events. A user with fewer may well be one who is busy, where they are 1 % of a short log:"""
SHORT_SHARE = {True: 0.05, False: 0.1}
"""there it takes this share, of a placeholder and of another id."""
SHOWN = 3


def suspects(what: str, ids: pl.Series, counts: NDArray[np.int64]) -> list[str]:
    """Warnings of ids that seem to stand for nobody, or for many.

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
                f"the {what} id {ids[code]!r} has {_share(counts[code], total)}; if it stands "
                f"for a missing one, name it in null_values"
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
                f"{mean:,.1f} on average; if it stands for no single {what}, name it in null_values"
            )
    return warnings


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} events ({percent(int(count), total)})"
