"""Which entries of an earlier model those of a new one start as: items, values, numbers, tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.alignment import NONE, Coded, align
from limerank.data.dataset import Dataset
from limerank.data.history import EventEncoder
from limerank.models import axes
from limerank.models.config import ITEM, DataShape, ModelConfig
from limerank.models.tasks import Task, columns
from limerank.runs.model import Trained
from limerank.training.renumbering import NEW, NOTHING, Sources

GROUPS = {
    "label": "labels",
    "event feature": "event_features",
    "impression feature": "impression_features",
}
"""What a message calls the entries of a list in an encoding."""


@dataclass(frozen=True)
class Numbering:
    """How a new model's entries follow from an earlier one's.

    Attributes:
        sources: name of an axis (:mod:`limerank.models.axes`) -> the sources of its entries.
        sizes: name of an axis -> its entries in the earlier model.
        known_items: items of the new training window that the earlier one has.
        added, dropped: labels and features that only the new dataset, or only the earlier one,
            has, such as "item feature brand".
    """

    sources: dict[str, Sources]
    sizes: dict[str, int]
    known_items: int
    added: tuple[str, ...]
    dropped: tuple[str, ...]


def numbering(
    dataset: Dataset, shape: DataShape, model: ModelConfig, earlier: Trained
) -> Numbering:
    """The numbering of a model of ``dataset`` that starts as ``earlier``.

    Args:
        dataset: that is trained on.
        shape, model: of the new model.
        earlier: the run.

    Raises:
        FormatError: a vocabulary is missing or damaged.
    """
    found = align(Coded(dataset.manifest, dataset.path), Coded(earlier.manifest, earlier.path))
    new, old = dataset.encoding, earlier.manifest["encoding"]
    ids = found.items[: dataset.trained_items]
    encoders = EventEncoder(new, dataset.clock), EventEncoder(old, earlier.manifest["clock"])
    encoder = encoders[0]
    now, before = shape, earlier.ranker.shape
    content = [_features(new[f"{kind}s"]) for kind in ("item", "user")]
    anchors = [
        _anchors(of, config) for of, config in ((now, model), (before, earlier.ranker.config))
    ]
    sources = {
        axes.ITEMS: _of_items(ids),
        axes.ITEM_TOKENS: _of_values(found.item_tokens, content[0]),
        axes.USER_TOKENS: _of_values(found.user_tokens, content[1]),
        axes.EVENT_TOKENS: _of_values(found.event_tokens, encoder.parts.values()),
        axes.CONTEXT_TOKENS: _of_values(found.context_tokens, encoder.context_parts.values()),
        axes.IMPRESSION_TOKENS: _of_values(found.impression_tokens, ()),
        axes.ITEM_NUMBERS: _of_numbers(new["items"]["features"], old["items"]["features"]),
        axes.USER_NUMBERS: _of_numbers(new["users"]["features"], old["users"]["features"]),
        axes.ITEM_CURVES: _of_curves(new["items"]["features"], old["items"]["features"]),
        axes.USER_CURVES: _of_curves(new["users"]["features"], old["users"]["features"]),
        axes.IMPRESSION_NUMBERS: _of_impressions(new, old),
        axes.ANCHORS: Sources.of(np.array([_position(one, anchors[1]) for one in anchors[0]])),
        axes.OUTPUTS: _of_tasks(now.tasks, before.tasks),
    }
    sizes = {
        axes.ITEMS: before.item_ids,
        axes.ITEM_TOKENS: max(before.item_tokens, 1),
        axes.USER_TOKENS: max(before.user_tokens, 1),
        axes.EVENT_TOKENS: before.event_tokens,
        axes.CONTEXT_TOKENS: max(before.context_tokens, 1),
        axes.IMPRESSION_TOKENS: before.impression_tokens,
        axes.ITEM_NUMBERS: before.item_numeric,
        axes.USER_NUMBERS: before.user_numeric,
        axes.ITEM_CURVES: len(before.item_numbers),
        axes.USER_CURVES: len(before.user_numbers),
        axes.IMPRESSION_NUMBERS: before.impression_features,
        axes.ANCHORS: len(anchors[1]),
        axes.OUTPUTS: before.outputs,
    }
    return Numbering(
        sources,
        sizes,
        int((ids > 0).sum()),
        tuple(name for name in _named(new) if name not in _named(old)),
        tuple(name for name in _named(old) if name not in _named(new)),
    )


def _of_items(ids: NDArray[np.int64]) -> Sources:
    """Of the id table; row 0 stands for all items that training has not seen. ``ids``: earlier rows
    of today's items, 0: none."""
    at = np.concatenate([[0], ids])
    same = at > 0
    same[0] = True
    return Sources(at, same)


def _of_values(found: NDArray[np.int64], parts: Iterable[tuple[int, int]]) -> Sources:
    """Of a table of values.

    Args:
        found: earlier row of each row; NONE: there is none.
        parts: first row and number of rows of each feature. The first is that of unknown values:
            the others start as it where they are new. A new feature starts from zero.
    """
    at, same = found.copy(), found != NONE
    for start, size in parts:
        own = at[start : start + size]
        if found[start] != NONE:
            own[own == NONE] = found[start]
    at[at == NONE] = NOTHING
    if not len(at):  # tables have a row at least
        return Sources(np.zeros(1, np.int64), np.ones(1, bool))
    return Sources(at, same)


def _features(encoding: Mapping[str, Any]) -> list[tuple[int, int]]:
    """First row and number of rows of each categorical feature in a content table."""
    kinds = (one for one in encoding["features"] if one["kind"] == "categorical")
    return [(one["start"], one["size"]) for one in kinds]


def _of_numbers(new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]]) -> Sources:
    """Of the numbers of a table, which another dataset may normalise otherwise."""
    at: list[int] = []
    scale: list[float] = []
    for one in (one for one in new if one["kind"] != "categorical"):
        width = one.get("dim", 1)
        entry = next((other for other in old if _alike(one, other)), None)
        if entry is None:
            at += [NOTHING] * width
            scale += [1.0] * width
        else:
            at += range(entry["column"], entry["column"] + width)
            scale += [one["std"] / entry["std"]] * width
    return _scaled(at, scale)


def _of_curves(new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]]) -> Sources:
    """Of the curves of a table. Knots are numbers as they are normalised: a feature that another
    dataset normalises otherwise starts from zero."""
    before, now = ([one for one in of if one["kind"] == "numeric"] for of in (old, new))
    alike = ("name", "transform", "mean", "std")
    at = [
        next(
            (
                number
                for number, other in enumerate(before)
                if all(one.get(name) == other.get(name) for name in alike)
            ),
            NOTHING,
        )
        for one in now
    ]
    return Sources.of(np.array(at, dtype=np.int64))


def _of_impressions(new: Mapping[str, Any], old: Mapping[str, Any]) -> Sources:
    """Of the numbers of impression features: one each, 0 of a category."""
    entries = old.get("impression_features", [])
    at: list[int] = []
    scale: list[float] = []
    for one in new.get("impression_features", []):
        found = [number for number, other in enumerate(entries) if _alike(one, other)]
        at.append(found[0] if found else NOTHING)
        numeric = found and one["kind"] == "numeric"
        scale.append(one["std"] / entries[found[0]]["std"] if numeric else 1.0)
    return _scaled(at, scale)


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries are of the same feature and differ by normalisation at most."""
    return all(one.get(name) == other.get(name) for name in ("name", "kind", "dim", "transform"))


def _scaled(at: Sequence[int], scale: Sequence[float]) -> Sources:
    found = np.array(at, dtype=np.int64)
    return Sources(found, found >= 0, np.array(scale, dtype=np.float32))


def _anchors(shape: DataShape, model: ModelConfig) -> list[str]:
    """What the scales of anchored links belong to: the items, which come first whether they are
    anchored or not, then features by name."""
    wanted = (ITEM, *shape.anchors) if model.anchors is None else model.anchors
    return [ITEM, *(name for name in wanted if name != ITEM)]


def _position(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else NOTHING


def _of_tasks(new: Sequence[Task], old: Sequence[Task]) -> Sources:
    """Of the outputs; those of another task or kind start as in a new model."""
    own = {(task.name, task.kind): part for task, part in zip(old, columns(old), strict=True)}
    at: list[int] = []
    for task in new:
        part = own.get((task.name, task.kind))
        if part is None:
            at += [NEW] * task.of_kind.outputs
        else:
            at += range(part.start, part.stop)
    return Sources.of(np.array(at, dtype=np.int64))


def _named(encoding: Mapping[str, Any]) -> list[str]:
    """The labels and features of an encoding, as a message calls them."""
    named = [
        f"{what} {one['name']}" for what, key in GROUPS.items() for one in encoding.get(key, [])
    ]
    return named + [
        f"{kind} feature {one['name']}"
        for kind in ("item", "user")
        for one in encoding[f"{kind}s"]["features"]
    ]
