"""Hand-made features of impressions, for peers that are not sequence models.

What a competent person writes in an afternoon, computed from a prepared dataset for its main label
(the first binary one):

- the smoothed rate and log count of the item, of each categorical item feature and of each
  categorical user feature; the numeric features of item and user;
- the request's context features, hour, weekday and time since the user's last event;
- of the user's history: its length; the mean label of all, of the last 5, 20 and 100 events, and
  with weights that halve every 10 events; the same of the label minus the item's rate;
- of the *same item* in the history, and of the same value of the first three categorical item
  features: count, share, mean and decayed mean label, newest label, how many events ago, how many
  events ago with label 1;
- the similarity of the candidate to the history: cosines of 32-dimensional vectors, a truncated SVD
  of which users had a positive label on which items.

Nothing of the request itself or of later events enters:

- History features read the events strictly before the request: the history that models read, but
  unlimited in length.
- Rates, counts and vectors come from the training window. For a training impression they come from
  the users of the other folds (five folds of users), for all other impressions from all users.
  Counts of folds are scaled up to the full window.

Shapes: n impressions, C candidates of one request, N events before it, I items, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limerank.data.canonical import DAY_MS, HOUR_MS
from limerank.data.dataset import Dataset
from limerank.data.folder import SPLITS

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FOLDS = 5
SMOOTHING = 20.0
"""Impressions at the base rate that are added to every rate."""
VECTOR_SIZE = 32
HALF_LIFE = 10.0
"""Events after which the weight of an event in a decayed mean is halved."""
LATEST = (5, 20, 100)
MATCHED_FEATURES = 3
"""Categorical item features that are compared with the history, the first ones of the dataset."""
MATCHES = ("count", "share", "mean", "decayed_mean", "last", "ago", "positive_ago")
SIMILARITIES = (
    "similarity_to_positives",
    "similarity_to_negatives",
    "similarity_max",
    "similarity_by_label",
    "similarity_to_last_5",
)


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


def impressions_of(dataset: Dataset, split: str) -> Impressions:
    """The impressions of a split, in the order in which models predict them."""
    requests = dataset.requests_of(split)
    rows = dataset.impression_rows(requests)
    owners = np.repeat(requests, dataset.requests["count"][requests])
    items = np.asarray(dataset.events["item"][rows])
    events = dataset.events["item"]
    repeats = [
        np.isin(items[part], events[history_of(dataset, request)])
        for request, part in parts(owners)
    ]
    return Impressions(
        owners,
        items,
        np.asarray(dataset.requests["user"][owners]),
        np.asarray(dataset.events[f"label_{main_label(dataset)}"][rows]),
        np.concatenate(repeats) if repeats else np.zeros(0, dtype=bool),
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


# Features


class Features:
    """The features of a dataset's impressions, with the statistics that they need.

    Args:
        dataset: a prepared dataset with a binary label.
        similarity: whether to make vectors and the features of :data:`SIMILARITIES`.
    """

    def __init__(self, dataset: Dataset, *, similarity: bool = True) -> None:
        self.dataset = dataset
        self.folds = folds_of_users(len(dataset.users))
        encoding = dataset.encoding
        self.item_values = first_values(dataset.items, encoding["items"]["features"])
        self.user_values = first_values(dataset.users, encoding["users"]["features"])
        self.matched = tuple(self.item_values)[:MATCHED_FEATURES]
        train = impressions_of(dataset, "train")
        folds = self.folds[train.users]

        def rates(keys: NDArray[Any], values: int) -> Rates:
            return Rates.of(keys, train.labels, folds, values)

        self.items = rates(train.items, len(dataset.items))
        self.rates: list[tuple[str, Ints, Rates]] = []
        """(feature, key of each item or user row, rates)."""
        for name, codes in self.item_values.items():
            of_value = rates(codes[train.items], int(codes.max(initial=0)) + 1)
            self.rates.append((f"item {name}", codes, of_value))
        for name, codes in self.user_values.items():
            of_value = rates(codes[train.users], int(codes.max(initial=0)) + 1)
            self.rates.append((f"user {name}", codes, of_value))
        self.vectors: list[Floats] = []
        """By fold, like the rates."""
        if similarity:
            self.vectors = [
                vectors(positives(dataset, self.folds != fold)) for fold in range(FOLDS + 1)
            ]

    def fold_of(self, request: int) -> int:
        """Which statistics an impression of this request may read."""
        if self.dataset.requests["split"][request] == SPLITS.index("train"):
            return int(self.folds[self.dataset.requests["user"][request]])
        return FOLDS

    def table(self, shown: Impressions) -> tuple[list[str], Floats]:
        """Names [F] and values f32 [n, F] of the features; NaN: not defined."""
        of_history = [self.of_history(request, shown.items[part]) for request, part in
                      parts(shown.requests)]  # fmt: skip
        names, values = self.of_impressions(shown)
        return names + self.history_names(), np.hstack([values, np.concatenate(of_history)])

    def of_impressions(self, shown: Impressions) -> tuple[list[str], Floats]:
        """The features that need no history."""
        dataset = self.dataset
        requests, of_impression = np.unique(shown.requests, return_inverse=True)
        fold = np.array([self.fold_of(request) for request in requests])[of_impression]
        columns: dict[str, NDArray[Any]] = {
            "item rate": self.items.rates[fold, shown.items],
            "item count": np.log1p(self.items.counts[fold, shown.items]),
        }
        for name, codes, of_value in self.rates:
            key = codes[shown.items if name.startswith("item ") else shown.users]
            columns[f"{name} rate"] = of_value.rates[fold, key]
            columns[f"{name} count"] = np.log1p(of_value.counts[fold, key])
        for kind, features, rows in (
            ("item", dataset.items, shown.items),
            ("user", dataset.users, shown.users),
        ):
            for position in range(features.numeric.shape[1]):
                columns[f"{kind} number {position}"] = features.numeric[rows, position]
        first = dataset.requests["first"][shown.requests]
        for name in dataset.encoder.context_columns:
            columns[name.replace("feature_", "context ")] = dataset.events[name][first]
        if dataset.clock:
            time = dataset.events["time"][first]
            columns["hour"] = time // HOUR_MS % 24
            columns["weekday"] = (time // DAY_MS + 3) % 7
        values = np.column_stack([np.asarray(of, dtype=np.float32) for of in columns.values()])
        return list(columns), values

    def history_names(self) -> list[str]:
        """Names of what :meth:`of_history` gives."""
        names = ["history length", "seconds since last event"]
        for what in ("label", "label minus rate"):
            names += [f"{what} mean", *(f"{what} mean of last {n}" for n in LATEST)]
            names.append(f"{what} decayed mean")
        for what in ("item", *self.matched):
            names += [f"same {what} {measure}" for measure in MATCHES]
        return names + (list(SIMILARITIES) if self.vectors else [])

    def of_history(self, request: int, candidates: NDArray[np.int32]) -> Floats:
        """The features of a request's candidates that the history decides, f32 [C, F]."""
        dataset, fold = self.dataset, self.fold_of(request)
        rows = history_of(dataset, request)
        items = np.asarray(dataset.events["item"][rows])
        labels = dataset.events[f"label_{main_label(dataset)}"][rows].astype(np.float32)
        decay = 0.5 ** (np.arange(len(rows), 0, -1) / HALF_LIFE)
        gap = np.nan
        if dataset.clock and len(rows):
            now = dataset.events["time"][dataset.requests["first"][request]]
            gap = float(now - dataset.events["time"][rows[-1]]) / 1000
        of_user = [float(len(rows)), gap]
        for values in (labels, labels - self.items.rates[fold, items]):
            of_user += [_mean(values), *(_mean(values[-n:]) for n in LATEST)]
            of_user.append(float(values @ decay / decay.sum()) if len(rows) else np.nan)
        found = [np.broadcast_to(np.array(of_user, np.float32), (len(candidates), len(of_user)))]
        found.append(matches(candidates[:, None] == items, labels, decay))
        for name in self.matched:
            codes = self.item_values[name]
            of_candidate = codes[candidates][:, None]
            same = (of_candidate == codes[items]) & (of_candidate > 0)
            found.append(matches(same, labels, decay))
        if self.vectors:
            of_item = self.vectors[fold]
            found.append(similarities(of_item[candidates] @ of_item[items].T, labels))
        return np.hstack(found)


def matches(same: NDArray[np.bool_], labels: Floats, decay: NDArray[np.float64]) -> Floats:
    """What :data:`MATCHES` names, f32 [C, 7].

    Args:
        same: whether candidate and event match, [C, N].
        labels: of the events, oldest first, f32 [N].
        decay: weights of the events, f64 [N].
    """
    candidates, events = same.shape
    found = np.full((candidates, len(MATCHES)), np.nan, dtype=np.float32)
    found[:, :2] = 0
    if not same.any():
        return found
    count = same.sum(axis=1)
    some = np.flatnonzero(count)
    same = same[some]
    liked = same & (labels > 0)
    ago = 1 + np.argmax(same[:, ::-1], axis=1)  # 1: the newest event
    positive_ago = 1 + np.argmax(liked[:, ::-1], axis=1)
    weights = same * decay
    found[some] = np.column_stack(
        [
            count[some],
            count[some] / events,
            same @ labels / count[some],
            weights @ labels / weights.sum(axis=1).clip(1e-300),
            labels[events - ago],
            ago,
            np.where(liked.any(axis=1), positive_ago, np.nan),
        ]
    )
    return found


def similarities(cosine: Floats, labels: Floats) -> Floats:
    """What :data:`SIMILARITIES` names, f32 [C, 5].

    Args:
        cosine: of each candidate and event, [C, N].
        labels: of the events, oldest first, f32 [N].
    """
    found = np.full((len(cosine), len(SIMILARITIES)), np.nan, dtype=np.float32)
    positive = labels > 0
    if positive.any():
        of_positives = cosine[:, positive]
        found[:, 0] = of_positives.mean(axis=1)
        found[:, 2] = of_positives.max(axis=1)
        found[:, 4] = of_positives[:, -5:].mean(axis=1)
    if not positive.all():
        found[:, 1] = cosine[:, ~positive].mean(axis=1)
    if len(labels):
        found[:, 3] = cosine @ (labels - labels.mean()) / len(labels)
    return found


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
