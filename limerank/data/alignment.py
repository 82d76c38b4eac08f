"""Two encodings of the same things: which code of one means what in the other.

A log that is prepared again has other codes: more items, more values, perhaps other features. An
:class:`Alignment` maps each code of the newer encoding to the code of the earlier one that means
the same item or value, so that rows of an earlier model's tables can be used or copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import id_texts
from limerank.data.encoding import read_vocabulary, read_vocabulary_ids
from limerank.data.history import EventEncoder
from limerank.data.impressions import ImpressionEncoder

NONE = -1
"""The earlier encoding has no such row or column."""

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Coded:
    """An encoding, and the folder that has its vocabularies.

    Attributes:
        manifest: of a dataset (``dataset.json``), or of a run (``encoding.json``).
        folder: of the dataset or the run; its ``vocab`` is read.
    """

    manifest: Mapping[str, Any]
    folder: Path

    @property
    def encoding(self) -> Mapping[str, Any]:
        """The part of the manifest that gives codes."""
        found: Mapping[str, Any] = self.manifest["encoding"]
        return found

    def ids(self, name: str) -> pl.Series:
        """External ids of "items" or "users" by row, as text."""
        return id_texts(read_vocabulary_ids(self.folder, name))

    def codes(self, name: str, size: int) -> pl.DataFrame:
        """The vocabulary ``name``, such as ``item_category``: value (text) and code from 1, below
        ``size``."""
        return read_vocabulary(self.folder, name).filter(pl.col("code") < size)


@dataclass(frozen=True)
class Alignment:
    """What the codes of a newer encoding are in an earlier one.

    Attributes:
        items: of each item row the id in the earlier item table, i64 [I]; 0: unknown there. (Row
            r of a dataset has the id r + 1 where r is below its ``trained_items``, else 0.)
        item_tokens, user_tokens: of each row of the content table of items or users the earlier
            row, i64 [tokens]; ``NONE``: there is none. The row "unknown or missing" of a feature
            is that of the earlier feature of this name.
        item_numbers, user_numbers: of each column of normalised numbers the earlier column, i64
            [F]; ``NONE``: there is none that has the same scale.
        event_tokens, context_tokens: of each row of the event table and of the context table the
            earlier row, i64; ``NONE``: there is none. A bucket whose edges differ is that earlier
            bucket which holds its lower edge.
        impression_tokens: the same of the impression table; empty where there are no impression
            features.
        impression_features: of each impression feature the earlier one's position, i64 [F];
            ``NONE``: there is none that has the same scale.
    """

    items: Codes
    item_tokens: Codes
    user_tokens: Codes
    item_numbers: Codes
    user_numbers: Codes
    event_tokens: Codes
    context_tokens: Codes
    impression_tokens: Codes
    impression_features: Codes


def align(newer: Coded, earlier: Coded) -> Alignment:
    """The codes of ``newer`` as ``earlier`` has them.

    Args:
        newer: of a dataset: ``Coded(dataset.manifest, dataset.path)``.
        earlier: of a run, ``Coded(run.manifest, run.path)``, or of another dataset.

    Raises:
        FormatError: a vocabulary is missing or damaged.
    """
    item_tokens, item_numbers = _content(newer, earlier, "item")
    user_tokens, user_numbers = _content(newer, earlier, "user")
    encoders = [EventEncoder(one.encoding, one.manifest["clock"]) for one in (newer, earlier)]
    new, old = encoders
    buckets = {
        name: _event_codes(newer, earlier, name, size)
        for name, (_, size) in {**new.parts, **new.context_parts}.items()
        if name in old.parts or name in old.context_parts
    }
    impressions, positions = _impressions(newer, earlier)
    return Alignment(
        items=item_ids(newer, earlier),
        item_tokens=item_tokens,
        user_tokens=user_tokens,
        item_numbers=item_numbers,
        user_numbers=user_numbers,
        event_tokens=_rows(new.parts, old.parts, buckets, new.tokens),
        context_tokens=_rows(new.context_parts, old.context_parts, buckets, new.context_tokens),
        impression_tokens=impressions,
        impression_features=positions,
    )


def item_ids(newer: Coded, earlier: Coded) -> Codes:
    """Of each item row of ``newer`` the id in the item table of ``earlier``, i64 [I]; 0: unknown.

    Raises:
        FormatError: a vocabulary is missing or damaged.
    """
    known = earlier.ids("items").head(earlier.encoding["trained_items"])
    frame = pl.DataFrame({"id": known, "code": np.arange(1, len(known) + 1)})
    return _joined(newer.ids("items"), frame.rename({"id": "value"}), 0)


def value_codes(newer: Coded, earlier: Coded, name: str, sizes: tuple[int, int]) -> Codes:
    """Of each code of a vocabulary of ``newer`` the code in that of ``earlier``, i64 [size]; 0:
    unknown there.

    Args:
        newer, earlier: the encodings.
        name: of the vocabulary, such as ``item_category`` or ``event_device``.
        sizes: numbers of codes of ``newer`` and of ``earlier``, 0 among them.

    Raises:
        FormatError: a vocabulary is missing or damaged.
    """
    found = np.zeros(sizes[0], np.int64)
    table = newer.codes(name, sizes[0])
    found[table["code"].to_numpy()] = _joined(table["value"], earlier.codes(name, sizes[1]), 0)
    return found


def _joined(values: pl.Series, known: pl.DataFrame, absent: int) -> Codes:
    """The code of each value; ``absent`` where ``known`` (columns value, code) lacks it."""
    codes = (
        pl.DataFrame({"value": values})
        .join(known, on="value", how="left", maintain_order="left")["code"]
        .fill_null(absent)
    )
    return codes.to_numpy().astype(np.int64)


def _content(newer: Coded, earlier: Coded, kind: str) -> tuple[Codes, Codes]:
    """Rows of the content table, and columns of numbers, of items or users."""
    new, old = newer.encoding[f"{kind}s"], earlier.encoding[f"{kind}s"]
    tokens = np.full(new["tokens"], NONE, np.int64)
    columns = np.full(new["numeric"], NONE, np.int64)
    entries = {(one["name"], one["kind"]): one for one in old["features"]}
    for feature in new["features"]:
        entry = entries.get((feature["name"], feature["kind"]))
        if entry is None:
            continue
        if feature["kind"] == "categorical":
            sizes = feature["size"], entry["size"]
            codes = value_codes(newer, earlier, f"{kind}_{feature['name']}", sizes)
            codes[1:][codes[1:] == 0] = NONE - entry["start"]
            start = feature["start"]
            tokens[start : start + sizes[0]] = codes + entry["start"]
        elif same_scale(feature, entry):
            width = feature.get("dim", 1)
            first = feature["column"]
            columns[first : first + width] = entry["column"] + np.arange(width)
    return tokens, columns


def same_scale(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries of numeric features, or of vectors, give every number the same value."""
    return all(one.get(name) == other.get(name) for name in ("dim", "mean", "std", "transform"))


def _rows(
    new: Mapping[str, tuple[int, int]],
    old: Mapping[str, tuple[int, int]],
    codes: Mapping[str, Codes],
    total: int,
) -> Codes:
    """Rows of a table of which each part belongs to a column."""
    found = np.full(total, NONE, np.int64)
    for name, (start, size) in new.items():
        if name in old:
            first, _ = old[name]
            found[start : start + size] = np.where(codes[name] < 0, NONE, first + codes[name])
    return found


def _event_codes(newer: Coded, earlier: Coded, name: str, size: int) -> Codes:
    """Of each code of a column of events the earlier code; ``NONE``: there is none."""
    if name == "gap":
        edges = (EventEncoder(one.encoding, clock=True).gap_edges for one in (newer, earlier))
        return bucket_codes(*(of.tolist() for of in edges))
    kind, _, short = name.partition("_")
    group = {"label": "labels", "feature": "event_features"}.get(kind)
    if group is None:
        return np.arange(size)
    new, old = (
        next(one for one in each.encoding[group] if one["name"] == short)
        for each in (newer, earlier)
    )
    if new["kind"] != old["kind"]:
        return np.full(size, NONE, np.int64)
    if new["kind"] == "categorical":
        codes = value_codes(newer, earlier, f"event_{short}", (size, old["size"]))
        codes[1:][codes[1:] == 0] = NONE
        return codes
    return bucket_codes(new["edges"], old["edges"]) if "edges" in new else np.arange(size)


def bucket_codes(edges: list[float], earlier: list[float]) -> Codes:
    """Of each code of a bucket the code of the earlier bucket that holds its lower edge; 0, the
    unknown value, stays 0."""
    lower = np.searchsorted(np.array(earlier), np.array(edges), side="right") + 1
    return np.concatenate([[0, 1], lower]).astype(np.int64)


def _impressions(newer: Coded, earlier: Coded) -> tuple[Codes, Codes]:
    """Rows of the impression table, and positions of the features."""
    new, old = (ImpressionEncoder(one.encoding) for one in (newer, earlier))
    tokens = np.full(new.tokens, NONE, np.int64)
    positions = np.full(len(new.features), NONE, np.int64)
    if not new.features or not old.features:
        return tokens, positions
    tokens[0] = 0
    order = list(old.features)
    for at, (name, feature) in enumerate(new.features.items()):
        entry = old.features.get(name)
        if entry is None or entry["kind"] != feature["kind"]:
            continue
        if feature["kind"] == "numeric":
            codes = bucket_codes(feature["edges"], entry["edges"])
        else:
            codes = value_codes(newer, earlier, f"event_{name}", (feature["size"], entry["size"]))
        start, first = new.starts[at], old.starts[order.index(name)]
        rows = codes[1:]
        tokens[start + 1 : start + feature["size"]] = np.where(rows > 0, rows + first, NONE)
        if same_scale(feature, entry):
            positions[at] = order.index(name)
    return tokens, positions
