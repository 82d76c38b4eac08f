"""What is learned from the training window: counts, base rates, buckets and vocabularies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.canonical import iso
from limerank.data.coverage import missing_words
from limerank.data.encoding import transformed, vocabulary_of
from limerank.data.pipeline import ahead
from limerank.data.prepare.ids import CodeCounter, CodeMap, Counts
from limerank.data.prepare.partition import Histogram
from limerank.data.prepare.sorting import SortedEvents
from limerank.data.prepare.splitting import Splitter
from limerank.data.prepare.spooling import Spooling
from limerank.data.prepare.varying import constant_labels
from limerank.data.spec import EventFeature
from limerank.errors import DataError
from limerank.progress import Bar

EDGES = [k / 32 for k in range(1, 32)]
"""Quantiles at which numeric event features and durations are cut into buckets."""


@dataclass(frozen=True)
class Categories:
    """The vocabulary of a categorical event feature.

    Attributes:
        codes: codes of the spooled events -> codes of the dataset; 0: unknown.
        size: number of codes of the dataset, 0 among them.
        missing_words: how many events have a word for missing values, and the first such word.
        unknown: a value without a code; None: there is none.
    """

    codes: CodeMap
    size: int
    missing_words: tuple[int, str | None]
    unknown: str | None


@dataclass(frozen=True)
class Learned:
    """What the events of the training window tell.

    Attributes:
        item_counts: of each item its impressions and events in training, and all its events.
        trained_users: which users have events in training.
        label_means: mean of each label over the impressions in training. (This and all below is
            taken from the earlier dataset whose codes are used, where it has it.)
        constant: warnings of labels that never vary there.
        label_edges, feature_edges: buckets of durations and of numeric event features.
        scales: of each numeric impression feature, mean and standard deviation after its transform.
        categories: of each categorical event feature.
    """

    item_counts: Counts
    trained_users: NDArray[np.bool_]
    label_means: dict[str, float]
    constant: list[str]
    label_edges: dict[str, list[float]]
    feature_edges: dict[str, list[float]]
    scales: dict[str, tuple[float, float]]
    categories: dict[str, Categories]


def learn(
    spools: Spooling,
    events: SortedEvents,
    splitter: Splitter,
    folder: Path,
    table_limit: int,
    quiet: bool,
) -> Learned:
    """Read all events once; vocabularies of event features are written below ``folder``.

    Raises:
        DataError: the training window has no impressions, or no positives; or no label varies.
    """
    spec = spools.spec
    labels = [label for label in spec.labels if label.kind == "duration"]
    features = spec.event_features
    wanted = splitter.wanted + [f"label_{label.name}" for label in spec.labels]
    wanted = list(dict.fromkeys(wanted)) + [f"feature_{feature.name}" for feature in features]
    lowest, highest = spools.coder.item_range
    item_counter = CodeCounter(lowest, highest, 3, table_limit)
    counters: dict[str, CodeCounter] = {}
    for feature in features:
        if feature.kind == "categorical":
            counters[feature.name] = CodeCounter(0, 0, 1, 0)
    earlier = spools.earlier
    label_entries: dict[str, Mapping[str, Any]] = {}
    entries: dict[str, Mapping[str, Any]] = {}
    if earlier is not None:  # what is known already is not learned again
        label_entries = _found({one.name: earlier.label(one.name, one.kind) for one in spec.labels})
        entries = _found({one.name: earlier.event_feature(one) for one in features})
    label_histograms = {
        label.name: Histogram() for label in labels if label.name not in label_entries
    }
    histograms = {
        f.name: Histogram() for f in features if f.kind == "numeric" and f.name not in entries
    }
    label_sums = {label.name: 0.0 for label in spec.labels}
    train_shown = 0
    trained_users = np.zeros(len(events.keys), bool)
    with Bar("learning", total=events.total, unit="events", quiet=quiet) as bar:
        for block in ahead(events.stream(wanted)):
            columns = block.columns
            splits, held = splitter.splits_of(block)
            train = (splits == 0) & ~held
            impressions = train & columns["shown"] if splitter.some_hidden else train
            item_counter.add(columns["item"], [impressions, train, None])
            starts = np.cumsum(block.counts) - block.counts
            users = slice(block.first_user, block.first_user + len(block.counts))
            trained_users[users] = np.add.reduceat(train.astype(np.int64), starts) > 0
            train_shown += int(impressions.sum())
            for label in spec.labels:
                values = columns[f"label_{label.name}"]
                label_sums[label.name] += float(values[impressions].sum(dtype=np.float64))
                if label.name in label_histograms:
                    label_histograms[label.name].add(values[train & (values > 0)])
            for feature in features:
                values = columns[f"feature_{feature.name}"]
                counted = impressions if feature.when == "impression" else train
                if feature.name in histograms:
                    histograms[feature.name].add(values[counted & np.isfinite(values)])
                elif feature.name in counters:
                    counters[feature.name].add(values[counted], [None])
            bar.advance(block.size)
    if train_shown == 0:
        raise DataError(
            "the training window holds no impressions"
            + (" that are positives" if spec.requests_by else "")
            + "; check the split's cut points or shares"
            + (f" (training ends at {iso(splitter.cuts[0])})" if splitter.cuts else "")
            + (', or split by = "position" if the times are all alike' if splitter.cuts else "")
            + "".join(f"; {hint}" for hint in spools.findings.unit_hints[:1])
        )
    label_means = {name: total / train_shown for name, total in label_sums.items()}
    constant = constant_labels(spec.labels, label_means, train_shown)
    return Learned(
        item_counts=item_counter.result(),
        trained_users=trained_users,
        label_means=label_means | {name: one["mean"] for name, one in label_entries.items()},
        constant=constant,
        label_edges={
            **{name: found.quantiles(EDGES) for name, found in label_histograms.items()},
            **{name: one["edges"] for name, one in label_entries.items() if "edges" in one},
        },
        feature_edges={
            **{name: found.quantiles(EDGES) for name, found in histograms.items()},
            **{name: one["edges"] for name, one in entries.items() if "edges" in one},
        },
        scales={
            feature.name: histograms[feature.name].moments(
                partial(transformed, transform=feature.transform)
            )
            if feature.name in histograms
            else (entries[feature.name]["mean"], entries[feature.name]["std"])
            for feature in features
            if feature.kind == "numeric" and feature.when == "impression"
        },
        categories={
            feature.name: _categories(
                spools, feature, counters[feature.name].result(), folder, table_limit
            )
            for feature in features
            if feature.kind == "categorical"
        },
    )


def _found(entries: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Mapping[str, Any]]:
    return {name: entry for name, entry in entries.items() if entry is not None}


def _categories(
    spools: Spooling, feature: EventFeature, counts: Counts, folder: Path, table_limit: int
) -> Categories:
    """The vocabulary of an event feature by its counts in training; it is written as well."""
    ids = spools.coder.features[feature.name]
    known = counts.codes != spools.coder.missing(feature)
    codes, sums = counts.codes[known], counts.sums[0][known]
    text = ids.values(codes - 1 if ids.text else codes).cast(pl.String)
    frame = pl.DataFrame({"value": text, "count": sums})
    words = frame.filter(missing_words(frame["value"]))
    known = None if spools.earlier is None else spools.earlier.categories(feature)
    vocabulary = vocabulary_of(
        frame.group_by("value").agg(pl.col("count").sum()), feature.min_count, known
    )
    if known is not None:  # those that training does not have, too
        more = np.setdiff1d(np.arange(1, len(known) + 1), codes)
        codes = np.concatenate([codes, more])
        text = pl.concat([text, known["value"].gather(more - 1).alias(text.name)])
    new = (
        pl.DataFrame({"value": text})
        .join(vocabulary, on="value", how="left", maintain_order="left")["code"]
        .fill_null(0)
        .to_numpy()
    )
    write_vocabulary(folder, f"event_{feature.name}", vocabulary)
    return Categories(
        codes=CodeMap(codes, new, table_limit),
        size=len(vocabulary) + 1,
        missing_words=(int(words["count"].sum()), _first_text(words["value"])),
        unknown=_first_text(text.filter(pl.Series(new == 0))),
    )


def write_vocabulary(folder: Path, name: str, frame: pl.DataFrame) -> None:
    """Write ``vocab/NAME.parquet`` of a dataset's folder."""
    path = folder / "vocab" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    frame.write_parquet(path)


def _first_text(values: pl.Series) -> str | None:
    """The first value as text; None: there is none."""
    return None if len(values) == 0 else str(values[0])
