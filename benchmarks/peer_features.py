"""Hand-made features of impressions, for peers that are not sequence models.

What a competent person writes in an afternoon, computed from a prepared dataset for its main label
(the first binary one):

- the smoothed rate and log count of the item, of each categorical item feature and of each
  categorical user feature; the numeric features of item and user;
- the impression features, as numbers or as codes of their categories;
- the request's context features, hour, weekday and time since the user's last event;
- of the user's history: its length; the smoothed mean label; the mean label of all, of the last 5,
  20 and 100 events, and with weights that halve every 10 events; the same means of the label minus
  the item's rate;
- of the *same item* in the history, and of the same value of the first three categorical item
  features: count, share, mean and decayed mean label, newest label, how many events ago, how many
  events ago with label 1;
- the similarity of the candidate to the history (:class:`Similarity`): cosines of 32-dimensional
  vectors, a truncated SVD of which users had a positive label on which items.

A third form adds what this package's models have by default:

- the counters of the candidate (:class:`Lately`): its rate, its impressions, both of the latest
  day, and its age, as of the hour before the request.

Nothing of the request itself or of later events enters:

- History features read the events strictly before the request: the history that models read, but
  unlimited in length.
- Rates, counts and vectors come from the training window: for validation and test impressions from
  all of it; for a training impression from the users of the other folds (five folds of users,
  counts scaled up to the full window), or, rates and counts only, from what was shown before its
  request. Validation chooses between the two.

Shapes: n impressions, C candidates of one request, N events before it, I items, U users.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_statistics import (
    FOLDS,
    SMOOTHING,
    Counters,
    Floats,
    Impressions,
    Ints,
    Rates,
    first_values,
    folds_of_users,
    history_of,
    impressions_of,
    main_label,
    parts,
    positives,
    vectors,
)
from limerank.data.canonical import DAY_MS, HOUR_MS
from limerank.data.counters import COUNTERS
from limerank.data.dataset import Dataset
from limerank.data.folder import SPLITS

Encoding = Literal["folds", "before"]
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


def fold_of(dataset: Dataset, folds: Ints, requests: Ints) -> Ints:
    """The fold of users that statistics for these requests leave out; FOLDS: none.

    Args:
        folds: of each user, i64 [U].
    """
    train = dataset.requests["split"][requests] == SPLITS.index("train")
    return np.where(train, folds[dataset.requests["user"][requests]], FOLDS)


class Features:
    """The features of a dataset's impressions but for similarity, with the statistics that they
    need.

    Args:
        dataset: a prepared dataset with a binary label.
        encoding: which impressions the rates and counts of a training impression read: "folds",
            those of the users of other folds, or "before", those shown before its request.
    """

    def __init__(self, dataset: Dataset, *, encoding: Encoding = "folds") -> None:
        self.dataset, self.encoding = dataset, encoding
        self.folds = folds_of_users(len(dataset.users))
        train = impressions_of(dataset, "train")
        self.times = np.unique(dataset.events["time"][dataset.requests["first"][train.requests]])
        moments = self.moments(train.requests)

        def rates(keys: NDArray[Any], values: int) -> Rates | Counters:
            if encoding == "folds":
                return Rates.of(keys, train.labels, self.folds[train.users], values)
            return Counters.of(keys, train.labels, moments, len(self.times))

        features = dataset.encoding
        self.item_values = first_values(dataset.items, features["items"]["features"])
        user_values = first_values(dataset.users, features["users"]["features"])
        self.matched = tuple(self.item_values)[:MATCHED_FEATURES]
        self.base = rates(np.zeros_like(train.items), 1)
        self.items = rates(train.items, len(dataset.items))
        self.rates: list[tuple[str, Ints, Rates | Counters]] = []
        """(feature, value of each item or user row, rates)."""
        for kind, values, rows in (
            ("item", self.item_values, train.items),
            ("user", user_values, train.users),
        ):
            for name, codes in values.items():
                of_value = rates(codes[rows], int(codes.max(initial=0)) + 1)
                self.rates.append((f"{kind} {name}", codes, of_value))

    def moments(self, requests: Ints) -> Ints:
        """What rates and counts for these requests are as of: a fold, or the number of a time."""
        if self.encoding == "folds":
            return fold_of(self.dataset, self.folds, requests)
        time = self.dataset.events["time"][self.dataset.requests["first"][requests]]
        train = self.dataset.requests["split"][requests] == SPLITS.index("train")
        return np.where(train, np.searchsorted(self.times, time), len(self.times))

    def table(self, shown: Impressions) -> tuple[list[str], Floats]:
        """Names [F] and values f32 [n, F] of the features; NaN: not defined."""
        of_history = [self.of_history(request, shown.items[part]) for request, part in
                      parts(shown.requests)]  # fmt: skip
        names, values = self.of_impressions(shown)
        return names + self.history_names(), np.hstack([values, np.concatenate(of_history)])

    def of_impressions(self, shown: Impressions) -> tuple[list[str], Floats]:
        """The features that need no history."""
        dataset, moments = self.dataset, self.moments(shown.requests)
        columns: dict[str, NDArray[Any]] = {}
        for name, codes, of_value in (("item", None, self.items), *self.rates):
            keys = shown.items if name.startswith("item") else shown.users
            found, count = of_value.at(keys if codes is None else codes[keys], moments)
            columns[f"{name} rate"], columns[f"{name} count"] = found, np.log1p(count)
        for kind, features, rows in (
            ("item", dataset.items, shown.items),
            ("user", dataset.users, shown.users),
        ):
            for position in range(features.numeric.shape[1]):
                columns[f"{kind} number {position}"] = features.numeric[rows, position]
        requests = np.array([request for request, _ in parts(shown.requests)], dtype=np.int64)
        events = dataset.impression_rows(requests)
        for name in dataset.impressions.columns:
            columns[name.replace("impression_", "impression ")] = dataset.events[name][events]
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
        names = ["history length", "seconds since last event", "label smoothed mean"]
        for what in ("label", "label minus rate"):
            names += [f"{what} mean", *(f"{what} mean of last {n}" for n in LATEST)]
            names.append(f"{what} decayed mean")
        for what in ("item", *self.matched):
            names += [f"same {what} {measure}" for measure in MATCHES]
        return names

    def of_history(self, request: int, candidates: NDArray[np.int32]) -> Floats:
        """The features of a request's candidates that the history decides, f32 [C, F]."""
        dataset = self.dataset
        moment = int(self.moments(np.array([request]))[0])
        rows = history_of(dataset, request)
        items = np.asarray(dataset.events["item"][rows])
        labels = dataset.events[f"label_{main_label(dataset)}"][rows].astype(np.float32)
        decay = 0.5 ** (np.arange(len(rows), 0, -1) / HALF_LIFE)
        gap = np.nan
        if dataset.clock and len(rows):
            now = dataset.events["time"][dataset.requests["first"][request]]
            gap = float(now - dataset.events["time"][rows[-1]]) / 1000
        base = self.base.at(np.zeros(1, dtype=np.int64), moment)[0][0]
        smoothed = (labels.sum() + SMOOTHING * base) / (len(rows) + SMOOTHING)
        of_user = [float(len(rows)), gap, float(smoothed)]
        for values in (labels, labels - self.items.at(items, moment)[0]):
            of_user += [_mean(values), *(_mean(values[-n:]) for n in LATEST)]
            of_user.append(float(values @ decay / decay.sum()) if len(rows) else np.nan)
        found = [np.broadcast_to(np.array(of_user, np.float32), (len(candidates), len(of_user)))]
        found.append(matches(candidates[:, None] == items, labels, decay))
        for name in self.matched:
            codes = self.item_values[name]
            of_candidate = codes[candidates][:, None]
            same = (of_candidate == codes[items]) & (of_candidate > 0)
            found.append(matches(same, labels, decay))
        return np.hstack(found)


class Lately:
    """The counters of impressions' items, see :mod:`limerank.data.counters`.

    Args:
        dataset: a prepared dataset with a clock and a binary label.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def table(self, shown: Impressions) -> tuple[list[str], Floats]:
        """Names [F] and values f32 [n, F] of the counters."""
        names = [f"counter {name}" for name in COUNTERS]
        return names, self.dataset.counted_at(shown.items, shown.requests, 1).numpy()


class Similarity:
    """The similarity of impressions to the history before them: the features of
    :data:`SIMILARITIES`.

    Args:
        dataset: a prepared dataset with a binary label.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.folds = folds_of_users(len(dataset.users))
        self.vectors = [
            vectors(positives(dataset, self.folds != fold)) for fold in range(FOLDS + 1)
        ]
        """By fold; the last ones are of all users."""

    def table(self, shown: Impressions) -> tuple[list[str], Floats]:
        """Names [F] and values f32 [n, F] of the features; NaN: not defined."""
        found = [self.of_history(request, shown.items[part]) for request, part in
                 parts(shown.requests)]  # fmt: skip
        return list(SIMILARITIES), np.concatenate(found)

    def of_history(self, request: int, candidates: NDArray[np.int32]) -> Floats:
        """The features of a request's candidates, f32 [C, F]."""
        dataset = self.dataset
        rows = history_of(dataset, request)
        items = np.asarray(dataset.events["item"][rows])
        labels = dataset.events[f"label_{main_label(dataset)}"][rows].astype(np.float32)
        of_item = self.vectors[int(fold_of(dataset, self.folds, np.array([request]))[0])]
        return similarities(of_item[candidates] @ of_item[items].T, labels)


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
            (same * labels).sum(axis=1) / count[some],
            (weights * labels).sum(axis=1) / weights.sum(axis=1).clip(1e-300),
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
