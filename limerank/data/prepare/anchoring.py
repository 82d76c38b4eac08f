"""Which features of items have anchored links (limerank.models.anchors).

An anchored value tells something where histories and candidates share it. By default these are the
categorical features of the item table whose values repeat: for at least :data:`REPEATED` of the
candidates that are new to a user, their value stands in the history before them. (What a value
tells of an item that stands there itself, the item's own link tells.) Features with more than
:data:`MOST_VALUES` values per item, such as the words of a title, are left out: every pair of items
shares some.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from limerank.data.features import FeatureTable
from limerank.data.folder import SPLITS, open_array
from limerank.data.prepare.earlier import Earlier
from limerank.data.ragged import ragged_index
from limerank.data.spec import Spec

REPEATED = 0.01
"""Share of new candidates whose value stands in the history, at least."""
MOST_VALUES = 5.0
"""Values of an item, on average over the items that have any, at most."""
SAMPLED = 2000
"""Requests of the training split that are looked at, evenly spaced."""
EVENTS = 64
"""Latest events of a history that are looked at."""


def choose_anchors(
    spec: Spec, encoding: dict[str, Any], folder: Path, earlier: Earlier | None = None
) -> list[str]:
    """Names of the anchored features, in their order.

    Args:
        spec: its item features may say ``anchor``, which decides.
        encoding: of the items, a part of the manifest.
        folder: the dataset, with its arrays.
        earlier: whose choice stays for the features that it has, where the description leaves it
            open.
    """
    if spec.items is None:
        return []
    wanted = {feature.name: feature.anchor for feature in spec.items.features}
    if earlier is not None:
        for one in earlier.content("item", spec.items.features).manifest["features"]:
            if wanted[one["name"]] is None:
                wanted[one["name"]] = one["name"] in earlier.anchors
    entries = [entry for entry in encoding["features"] if entry["kind"] == "categorical"]
    undecided = [entry for entry in entries if wanted[entry["name"]] is None]
    chosen = {entry["name"] for entry in entries if wanted[entry["name"]]}
    table = FeatureTable.open(folder / "items")
    shares = _repeats(undecided, table, folder)
    for entry, share in zip(undecided, shares, strict=True):
        if share >= REPEATED and _values(entry, table) <= MOST_VALUES:
            chosen.add(entry["name"])
    return [entry["name"] for entry in entries if entry["name"] in chosen]


def _values(entry: dict[str, Any], table: FeatureTable) -> float:
    """Mean number of values of the items that have any."""
    start, size = entry["start"], entry["size"]
    total = having = 0
    step = 1 << 20
    for first in range(0, len(table), step):
        offsets = table.offsets[first : first + step + 1]
        tokens = table.tokens[offsets[0] : offsets[-1]]
        own = np.concatenate([[0], np.cumsum((tokens > start) & (tokens < start + size))])
        counts = np.diff(own[offsets - offsets[0]])
        total, having = total + int(counts.sum()), having + int((counts > 0).sum())
    return total / having if having else 0.0


def _repeats(entries: list[dict[str, Any]], table: FeatureTable, folder: Path) -> list[float]:
    """Of each feature, the share of sampled new candidates whose value stands in the history."""
    columns = {
        name: open_array(folder / "requests" / f"{name}.npy")
        for name in ("first", "history_start", "history_end", "split")
    }
    item = open_array(folder / "events" / "item.npy")
    rows = folder / "history" / "rows.npy"
    retained = open_array(rows) if rows.exists() else None
    requests = np.flatnonzero(columns["split"] == SPLITS.index("train"))
    requests = requests[np.linspace(0, len(requests) - 1, min(len(requests), SAMPLED)).astype(int)]
    if not entries or not len(requests):
        return [0.0] * len(entries)
    end = columns["history_end"][requests]
    count = np.minimum(end - columns["history_start"][requests], EVENTS)
    at = ragged_index(end - count, count)
    if retained is not None:
        at = retained[at]
    history, owner = item[at], np.repeat(np.arange(len(requests)), count)
    candidate = item[columns["first"][requests]]
    new = np.ones(len(requests), dtype=bool)
    new[owner[history == candidate[owner]]] = False
    found = []
    for entry in entries:
        pairs = []
        for items, of in ((history, owner), (candidate, np.arange(len(requests)))):
            first = table.offsets[items]
            values = table.offsets[items + 1] - first
            token = table.tokens[ragged_index(first, values)].astype(np.int64)
            held = (token > entry["start"]) & (token < entry["start"] + entry["size"])
            pairs.append(
                (np.repeat(of, values) * (entry["size"] + 1) + token - entry["start"])[held]
            )
        again = np.unique(pairs[1][np.isin(pairs[1], pairs[0])] // (entry["size"] + 1))
        found.append(float(new[again].sum() / max(new.sum(), 1)))
    return found
