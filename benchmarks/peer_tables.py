"""LightGBM's inputs and its settings, stored once they are made: a second seed starts at once.

Files lie in ``WORK/peers/tables``. Their names hold a digest of the dataset, of the code that makes
features and of the settings that are tried, so nothing of an older state is read.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peer_features, peer_statistics, peer_values
from benchmarks.datasets import WORK
from benchmarks.peer_features import Encoding, Features, Lately, Similarity
from benchmarks.peer_statistics import Floats, impressions_of, main_label
from benchmarks.peer_values import LatelyOfValues
from limerank.data.dataset import Dataset

FITTED: dict[str, Any] = {"objective": "binary", "min_data_in_leaf": 100}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"num_leaves": 31, "learning_rate": 0.1, "feature_fraction": 0.7},
    {"num_leaves": 31, "learning_rate": 0.03, "feature_fraction": 0.3},
    {"num_leaves": 7, "learning_rate": 0.1, "feature_fraction": 0.7},
    {"num_leaves": 7, "learning_rate": 0.1, "feature_fraction": 0.2},
)
ROUNDS, PATIENCE = 2000, 50
"""Trees at most, and trees without a lower log loss on validation after which boosting stops."""
ENCODINGS: tuple[Encoding, ...] = ("folds", "before")
ADDED = {
    "all": ("similarity",),
    "without similarity": (),
    "all and counters": ("similarity", "counters"),
    "all and counters of values": ("similarity", "counters", "counters of values"),
}
"""Features -> the groups that are added to those of the rates."""
SPLIT_NAMES = ("train", "validation", "test")


def stored(dataset: Dataset, what: str) -> Path:
    """Where something that is made of a dataset lies."""
    digest = hashlib.sha256((dataset.path / "dataset.json").read_bytes())
    more = (peer_values,) if "of-values" in what else ()
    for module in (peer_features, peer_statistics, *more):
        digest.update(inspect.getsource(module).encode())
    digest.update(repr((FITTED, SETTINGS, ROUNDS, PATIENCE)).encode())
    return WORK / "peers" / "tables" / f"{dataset.path.name}-{digest.hexdigest()[:12]}-{what}"


@dataclass(frozen=True)
class Tables:
    """The features of the impressions of each split, and what making them took.

    Attributes:
        names: of the features, [F].
        values: split -> f32 [n, F].
        labels: split -> u8 [n].
        seconds: for the training and validation impressions, and for the test impressions.
    """

    names: list[str]
    values: dict[str, Floats]
    labels: dict[str, NDArray[np.uint8]]
    seconds: tuple[float, float]

    def fit(self, setting: dict[str, Any], seed: int) -> Any:
        """Boosted trees, stopped by the log loss of the validation impressions."""
        import lightgbm as gbm

        train, validation = (
            gbm.Dataset(self.values[split], self.labels[split]) for split in SPLIT_NAMES[:2]
        )
        return gbm.train(
            {**FITTED, **setting, "seed": seed, "num_threads": 1, "verbosity": -1},
            train,
            ROUNDS,
            valid_sets=[validation],
            callbacks=[gbm.early_stopping(PATIENCE, verbose=False)],
        )


def columns(dataset: Dataset, what: str) -> tuple[list[str], dict[str, Floats], list[float]]:
    """Names, values by split, and seconds of a group of features: made, or read where they were.

    Args:
        what: "similarity", "counters", "counters of values", or the encoding of the rates of all
            other features.
    """
    file = stored(dataset, f"{what.replace(' ', '-')}.npz")
    if not file.exists():
        start = time.perf_counter()
        made: Features | Similarity | Lately | LatelyOfValues
        if what == "similarity":
            made = Similarity(dataset)
        elif what == "counters":
            made = Lately(dataset)
        elif what == "counters of values":
            made = LatelyOfValues(dataset)
        else:
            made = Features(dataset, encoding="folds" if what == "folds" else "before")
        found: dict[str, Any] = {}
        seconds = []
        for split in SPLIT_NAMES:
            names, found[split] = made.table(impressions_of(dataset, split))
            if split != "train":
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, names=np.array(names), seconds=np.array(seconds), **found)
        partial.replace(file)
    with np.load(file) as read:
        values = {split: read[split] for split in SPLIT_NAMES}
        return read["names"].tolist(), values, read["seconds"].tolist()


@lru_cache(maxsize=2)
def tables(folder: Path, features: str, encoding: Encoding) -> Tables:
    """LightGBM's inputs; ``features`` is one of :data:`ADDED`."""
    dataset = Dataset(folder)
    names, values, seconds = columns(dataset, encoding)
    for what in ADDED[features]:
        more, others, other_seconds = columns(dataset, what)
        names = names + more
        values = {split: np.hstack([values[split], others[split]]) for split in values}
        seconds = [a + b for a, b in zip(seconds, other_seconds, strict=True)]
    label = dataset.events[f"label_{main_label(dataset)}"]
    labels = {
        split: np.asarray(label[dataset.impression_rows(dataset.requests_of(split))])
        for split in SPLIT_NAMES
    }
    return Tables(names, values, labels, (seconds[0], seconds[1]))


def chosen(folder: Path, features: str) -> tuple[Encoding, int]:
    """The encoding of rates, and which of :data:`SETTINGS`, with the least validation log loss of
    seed 0. Without a clock there is no "before" that users share."""
    dataset = Dataset(folder)
    file = stored(dataset, f"{features.replace(' ', '-')}-setting.json")
    if not file.exists():
        losses = {
            (encoding, position): made.fit(setting, 0).best_score["valid_0"]["binary_logloss"]
            for encoding in ENCODINGS[: 1 + dataset.clock]
            for made in [tables(folder, features, encoding)]
            for position, setting in enumerate(SETTINGS)
        }
        file.write_text(json.dumps(min(losses, key=lambda key: losses[key])), encoding="utf-8")
    encoding, position = json.loads(file.read_text(encoding="utf-8"))
    return encoding, position
