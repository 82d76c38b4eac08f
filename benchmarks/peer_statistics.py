"""What peers read of a prepared dataset: its impressions, and statistics of the training window.

Statistics for validation and test impressions come from the full training window. For training
impressions they come from a part of it: from the users of the other folds (``Rates``), or from
what was shown before (``Counters``). Shapes: n impressions, N events before a request, I items,
U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.dataset import Dataset
from limerank.evaluation.slices import repeats

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FOLDS = 5
SMOOTHING = 20.0
"""Impressions at the base rate that are added to every rate."""
VECTOR_SIZE = 32


@dataclass(frozen=True)
class Impressions:
    """The impressions of one split, request by request.

    Attributes:
        requests: request row of each impression, i64 [n].
        items: item row, i32 [n].
        users: user row, i32 [n].
        labels: main label, u8 [n].
        repeats: whether the user's history holds the item, bool [n].
    """

    requests: Ints
    items: NDArray[np.int32]
    users: NDArray[np.int32]
    labels: NDArray[np.uint8]
    repeats: NDArray[np.bool_]


def main_label(dataset: Dataset) -> str:
    """The first binary label."""
    return next(str(x["name"]) for x in dataset.encoding["labels"] if x["kind"] == "binary")


def history_of(dataset: Dataset, request: int) -> Ints:
    """Event rows of the full history before a request, oldest first, i64 [N]."""
    columns = dataset.requests
    rows = np.arange(columns["history_start"][request], columns["history_end"][request])
    return rows if dataset.retained is None else np.asarray(dataset.retained[rows])


def earlier_impressions(dataset: Dataset) -> dict[int, Ints]:
    """Event rows of the user's impressions before each test request, whatever histories retain."""
    shown = np.zeros(len(dataset.events["item"]), dtype=bool)
    shown[dataset.impression_rows(np.arange(len(dataset.requests["user"])))] = True
    found = {}
    for request in dataset.requests_of("test"):
        first = dataset.requests["first"][request]
        start = dataset.event_offsets[dataset.requests["user"][request]]
        rows = np.arange(start, first)
        earlier = dataset.events["time"][rows] < dataset.events["time"][first]
        found[int(request)] = rows[earlier & shown[rows]]
    return found


def impressions_of(dataset: Dataset, split: str) -> Impressions:
    """The impressions of a split, in the order in which models predict them."""
    requests = dataset.requests_of(split)
    rows = dataset.impression_rows(requests)
    owners = np.repeat(requests, dataset.requests["count"][requests])
    items = np.asarray(dataset.events["item"][rows])
    return Impressions(
        owners,
        items,
        np.asarray(dataset.requests["user"][owners]),
        np.asarray(dataset.events[f"label_{main_label(dataset)}"][rows]),
        repeats(dataset, owners, items),
    )


def parts(owners: Ints) -> Iterator[tuple[int, slice]]:
    """Each request and the slice of its impressions."""
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    for start, end in zip(starts, np.append(starts[1:], len(owners)), strict=True):
        yield int(owners[start]), slice(int(start), int(end))


# Statistics of the training window


@dataclass(frozen=True)
class Rates:
    """Smoothed rates and scaled counts of the values of one key, by fold: f32 [FOLDS + 1, values].

    Row f < FOLDS leaves out the users of fold f; the last row has all users.
    """

    rates: Floats
    counts: Floats

    @classmethod
    def of(cls, keys: NDArray[Any], labels: NDArray[Any], folds: Ints, values: int) -> Rates:
        """Count the training impressions with these keys, labels and folds of users, [n] each."""
        rates = np.empty((FOLDS + 1, values), dtype=np.float32)
        counts = np.empty_like(rates)
        for fold in range(FOLDS + 1):
            used = folds != fold
            shown = np.bincount(keys[used], minlength=values)
            positive = np.bincount(keys[used], labels[used], minlength=values)
            base = positive.sum() / max(shown.sum(), 1)
            rates[fold] = (positive + SMOOTHING * base) / (shown + SMOOTHING)
            counts[fold] = shown * (len(keys) / max(used.sum(), 1))
        return cls(rates, counts)

    def at(self, keys: NDArray[Any], moments: NDArray[Any] | int) -> tuple[Floats, Floats]:
        """Rates and counts of these keys; ``moments`` are folds, or FOLDS for all users."""
        return self.rates[moments, keys], self.counts[moments, keys]


@dataclass(frozen=True)
class Counters:
    """Smoothed rates and counts of the values of one key, as of any time.

    Attributes:
        entries: key * (T + 1) + moment of each training impression, ascending, i64 [n]; moments
            number the T distinct times of training requests.
        positives: positive labels among the first i entries, i64 [n + 1].
        bases: rate of all training impressions before each moment, smoothed towards 1/2; the last
            one is of the full training window, f64 [T + 1].
    """

    entries: Ints
    positives: Ints
    bases: NDArray[np.float64]

    @classmethod
    def of(cls, keys: NDArray[Any], labels: NDArray[Any], moments: Ints, times: int) -> Counters:
        """Index the training impressions with these keys, labels and moments, [n] each."""
        entries = keys.astype(np.int64) * (times + 1) + moments
        order = np.argsort(entries, kind="stable")
        shown = np.append(0, np.cumsum(np.bincount(moments, minlength=times)))
        liked = np.append(0, np.cumsum(np.bincount(moments, labels, minlength=times)))
        bases = (liked + SMOOTHING / 2) / (shown + SMOOTHING)
        return cls(entries[order], np.append(0, np.cumsum(labels[order])), bases)

    def at(self, keys: NDArray[Any], moments: NDArray[Any] | int) -> tuple[Floats, Floats]:
        """Rates and counts of these keys over the impressions strictly before these moments; T:
        over the full training window."""
        first = keys.astype(np.int64) * len(self.bases)
        start = np.searchsorted(self.entries, first)
        end = np.searchsorted(self.entries, first + moments)
        count = (end - start).astype(np.float32)
        positive = self.positives[end] - self.positives[start]
        rates = (positive + SMOOTHING * self.bases[moments]) / (count + SMOOTHING)
        return rates.astype(np.float32), count


def folds_of_users(users: int, seed: int = 0) -> Ints:
    """The fold of each user, equal in size, i64 [U]."""
    return np.random.default_rng(seed).permutation(users) % FOLDS


def positives(dataset: Dataset, users: NDArray[np.bool_] | None = None) -> Any:
    """Which users had a positive label on which items in the training window: CSR f32 [U, I].

    The window of a user: the training impressions, and the histories before them.

    Args:
        users: only these, bool [U].
    """
    from scipy.sparse import csr_matrix

    requests = dataset.requests_of("train")
    label = dataset.events[f"label_{main_label(dataset)}"]
    used = np.zeros(len(label), dtype=bool)
    used[dataset.impression_rows(requests)] = True
    ends = dataset.requests["history_end"][requests]
    owners = dataset.requests["user"][requests]
    last = np.flatnonzero(np.diff(owners, append=-1))  # each user's last training request
    for request in requests[last[ends[last] > 0]]:
        used[history_of(dataset, int(request))] = True
    owner = np.repeat(np.arange(len(dataset.users)), np.diff(dataset.event_offsets))
    used &= label > 0
    if users is not None:
        used &= users[owner]
    rows = np.flatnonzero(used)
    shape = (len(dataset.users), len(dataset.items))
    ones = np.ones(len(rows), dtype=np.float32)
    found = csr_matrix((ones, (owner[rows], dataset.events["item"][rows])), shape=shape)
    found.data[:] = 1.0  # repeated pairs were added up
    return found


def vectors(user_items: Any, size: int = VECTOR_SIZE) -> Floats:
    """Unit vectors of items from a truncated SVD of the positives, f32 [I, size]; 0 where an item
    has none. Rows and columns are scaled by the inverse square root of their sums."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import svds

    of_user, of_item = (
        1 / np.sqrt(np.maximum(np.asarray(user_items.sum(axis=axis)).ravel(), 1)) for axis in (1, 0)
    )
    scaled = (diags(of_user) @ user_items @ diags(of_item)).tocsc()
    size = min(size, min(scaled.shape) - 1)
    start = np.random.default_rng(0).standard_normal(min(scaled.shape))
    _, strength, found = svds(scaled, k=size, v0=start)
    weighted = (found.T * strength).astype(np.float32)
    norm = np.linalg.norm(weighted, axis=1, keepdims=True)
    known = np.asarray(user_items.sum(axis=0)).ravel()[:, None] > 0
    unit: Floats = np.where(known, weighted / np.maximum(norm, 1e-12), 0).astype(np.float32)
    return unit


def first_values(tokens: Any, features: list[dict[str, Any]]) -> dict[str, NDArray[np.int64]]:
    """The first value of each categorical feature, as a code per row; 0: unknown.

    Args:
        tokens: a table of content features.
        features: their part of the dataset's encoding.
    """
    row = np.repeat(np.arange(len(tokens)), np.diff(tokens.offsets))
    token = np.asarray(tokens.tokens)
    found = {}
    for feature in features:
        if feature["kind"] == "categorical":
            of_feature = (token >= feature["start"]) & (token < feature["start"] + feature["size"])
            codes = np.zeros(len(tokens), dtype=np.int64)
            # Backwards: what is written last is the first value.
            codes[row[of_feature][::-1]] = token[of_feature][::-1] - feature["start"]
            found[feature["name"]] = codes
    return found
