"""Labels that never vary in the training window: a model learns nothing from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from limerank.data.labels import Label
from limerank.errors import DataError

BY_CHANCE = 100
"""Impressions: with fewer, a label may be constant by chance."""


def constant_labels(
    labels: Sequence[Label], means: Mapping[str, float], impressions: int
) -> list[str]:
    """A warning for each binary label that is 1, or 0, in all impressions.

    Args:
        labels: of the description.
        means: of each label over the impressions of the training window.
        impressions: how many these are.

    Raises:
        DataError: no label of the log varies, and there are at least :data:`BY_CHANCE` impressions.
    """
    found = {
        label.name: _advice(label, means[label.name])
        for label in labels
        if label.kind == "binary" and means[label.name] in (0.0, 1.0)
    }
    if len(found) == len(labels) and impressions >= BY_CHANCE:
        raise DataError(next(iter(found.values())))
    return list(found.values())


def _advice(label: Label, mean: float) -> str:
    text = f"label {label.name} is {mean:.0f} in all impressions of the training window"
    if mean == 1:
        return (
            f"{text}, and a model learns a binary label from the difference. If the log has only "
            'what users did, without what else was shown, write kind = "positive" in place of '
            f'kind = "binary" (name = "{label.name}"; without column and at_least every event is a '
            "positive); else correct its column"
        )
    rule = f"at_least = {label.at_least:g}" if label.at_least is not None else "column"
    return (
        f"{text}: correct its {rule} ({label.column!r}). If the log has types of events, such as "
        'view and purchase, write kind = "positive", column = "TYPE" and equals = "purchase"'
    )
