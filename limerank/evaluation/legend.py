"""What each metric means: the table behind legends on the command line, in reports and in docs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

WIDTH = 100
"""Columns of a legend's lines."""

Of = Literal["binary", "duration", "lists", "model"]
Better = Literal["higher", "lower", "at 1", "neither"]


@dataclass(frozen=True)
class Metric:
    """One metric of an evaluation.

    Attributes:
        name: its key in results and files, with ``k`` for a depth: ``ndcg@k``.
        title: its name in the literature.
        of: which predictions it measures: those of a binary task, those of a duration, ranked
            lists of the full catalogue, or the model itself.
        brief: its meaning in a few words, for a legend.
        meaning: its meaning in a sentence, for docs.
        unit: of its values; empty for shares and ratios.
        better: which values are better.
    """

    name: str
    title: str
    of: Of
    brief: str
    meaning: str
    better: Better
    unit: str = ""


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "auc",
            "AUC",
            "binary",
            "chance that a positive is scored above a negative",
            "Area under the ROC curve: the probability that a random positive impression is scored "
            "above a random negative one. 0.5 is chance.",
            "higher",
        ),
        Metric(
            "gauc",
            "GAUC",
            "binary",
            "AUC within each user",
            "AUC among each user's own impressions, averaged with the impressions as weights. "
            "Users whose outcomes are all alike are left out. Unlike AUC, it gains nothing from "
            "telling active users from passive ones.",
            "higher",
        ),
        Metric(
            "log_loss",
            "log loss",
            "binary",
            "in nats",
            "Mean negative log-likelihood of the outcomes under the predicted probabilities.",
            "lower",
            "nats",
        ),
        Metric(
            "ne",
            "normalised entropy (NE)",
            "binary",
            "log loss relative to predicting the base rate; 1 is no better than that",
            "Log loss divided by the log loss of predicting the mean outcome for every impression. "
            "A model with a value above 1 is worse than that constant.",
            "lower",
        ),
        Metric(
            "calibrated_ne",
            "calibrated normalised entropy",
            "binary",
            "NE after the affine map of the logits that fits these impressions best",
            "Normalised entropy after Platt scaling: an affine map of the logits that is fitted on "
            "the same impressions. It is the part of NE that calibration cannot remove; NE minus "
            "this value is what miscalibration costs.",
            "lower",
        ),
        Metric(
            "calibration",
            "calibration",
            "binary",
            "sum of predictions over sum of outcomes",
            "Sum of the predictions divided by the sum of the outcomes: above 1 where the model "
            "predicts too much. It is reported for durations as well.",
            "at 1",
        ),
        Metric(
            "ece",
            "expected calibration error (ECE)",
            "binary",
            "mean gap between predicted and observed rates",
            "Impressions are sorted by prediction into 20 bins of equal size; the mean over bins "
            "of the distance between mean prediction and observed rate.",
            "lower",
        ),
        Metric(
            "xauc",
            "XAUC",
            "duration",
            "share of pairs of impressions whose durations are ordered correctly",
            "Among all pairs of impressions with different durations, the share that the "
            "predictions put in the right order. 0.5 is chance.",
            "higher",
        ),
        Metric(
            "wtauc",
            "watch-time-weighted AUC (WTAUC)",
            "duration",
            "AUC of positives weighted by their duration",
            "AUC of the predicted duration over the outcome of the first binary task (over "
            "duration > 0 where there is none), with each positive weighted by its duration: "
            "whether watched time, rather than watched items, comes first.",
            "higher",
        ),
        Metric(
            "mae_s",
            "mean absolute error (MAE)",
            "duration",
            "mean absolute error in seconds",
            "Mean distance between predicted and observed duration.",
            "lower",
            "seconds",
        ),
        Metric(
            "ndcg@k",
            "NDCG@k",
            "lists",
            "gain of liked items among the first k, by rank",
            "Normalised discounted cumulative gain: liked items among the first k of the full "
            "catalogue, each counted as 1 / log2(1 + rank), relative to the best possible list. "
            "Mean over requests.",
            "higher",
        ),
        Metric(
            "hr@k",
            "hit rate (HR@k)",
            "lists",
            "share of requests with a liked item among the first k",
            "Share of requests with at least one liked item among the first k of the full "
            "catalogue.",
            "higher",
        ),
        Metric(
            "recall@k",
            "recall@k",
            "lists",
            "share of the liked items that stand among the first k",
            "Share of a request's liked items that stand among the first k of the full catalogue. "
            "Mean over requests; with one liked item it equals HR@k.",
            "higher",
        ),
        Metric(
            "mrr",
            "mean reciprocal rank (MRR)",
            "lists",
            "mean of 1 / rank of the first liked item",
            "Mean over requests of 1 / rank of the first liked item in the full catalogue.",
            "higher",
        ),
        Metric(
            "coverage@k",
            "coverage@k",
            "lists",
            "share of the catalogue that stands among anyone's first k",
            "Distinct items among the first k of all lists, as a share of the items that can be "
            "ranked. It grows with the number of lists: compare it with that of item-kNN on the "
            "same requests.",
            "higher",
        ),
        Metric(
            "novelty@k",
            "novelty@k",
            "lists",
            "mean rarity of the first k: self-information",
            "Mean over the first k items of all lists of -log2 of the item's share of the "
            "positives in the training window (with one positive added to every item). Lists of "
            "popular items have low values.",
            "neither",
            "bits",
        ),
        Metric(
            "concentration@k",
            "concentration@k",
            "lists",
            "share of all first k positions that the k most frequent items fill",
            "Share of the first k positions of all lists that are filled by the k items which "
            "stand there most often. 1 where everybody has the same list.",
            "lower",
        ),
        Metric(
            "repeats@k",
            "repeats@k",
            "lists",
            "share of the first k that the user has seen before",
            "Share of the first k items of all lists that the history before the request holds. "
            "It is reported where lists may hold seen items.",
            "neither",
        ),
        Metric(
            "effective_links",
            "effective links",
            "model",
            "number of links that items use: from 1, a collapse, to all",
            "Perplexity of the links' mean weights over the impressions, averaged over heads: the "
            "number of links where items use all alike, 1 where they use a single one. A value "
            "near 1 means that the links collapsed.",
            "neither",
            "links",
        ),
    )
}
"""Name -> metric, in the order of reports."""

_HEADINGS: dict[Better, str] = {
    "higher": "Higher is better",
    "lower": "Lower is better",
    "at 1": "Best at 1",
    "neither": "Neither higher nor lower is better",
}


def metric_of(name: str) -> Metric | None:
    """The metric of a key in a result, such as ``auc`` or ``ndcg@10``; None for other keys."""
    stem, at, _ = name.partition("@")
    return METRICS.get(f"{stem}@k" if at else name)


def metric_title(name: str) -> str:
    """The abbreviation of a metric in the literature, such as "AUC" for ``auc``; its key where it
    has none."""
    metric = metric_of(name)
    if metric is None:
        return name
    return metric.title.rpartition("(")[2].rstrip(")")


def legend(names: Iterable[str], width: int | None = WIDTH) -> list[str]:
    """Lines that explain some metrics, grouped by which values are better.

    Args:
        names: keys of results; keys that are not metrics are ignored.
        width: columns of a line; None for a line of any length per group, without indent.
    """
    found = dict.fromkeys(metric for name in names if (metric := metric_of(name)) is not None)
    lines = []
    for better, heading in _HEADINGS.items():
        parts = [f"{metric.name} ({metric.brief})" for metric in found if metric.better == better]
        if parts:
            text = f"{heading}: {', '.join(parts)}."
            if width is None:
                lines.append(text)
            else:
                lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    return lines


def reference() -> str:
    """The page of the documentation on metrics, in Markdown."""
    lines = [_INTRODUCTION]
    for of, (title, text) in _SECTIONS.items():
        lines += [f"## {title}", "", text, "", "| metric | key | better | meaning |"]
        lines.append("|---|---|---|---|")
        for metric in METRICS.values():
            if metric.of == of:
                unit = f" Unit: {metric.unit}." if metric.unit else ""
                cells = (metric.title, f"`{metric.name}`", metric.better, metric.meaning + unit)
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


_INTRODUCTION = """# metrics

What the numbers of `limerank evaluate`, of `limerank compare`, of a report and of the training's
curves mean. All of them are exact: nothing is sampled or put into buckets, but for the bins that
define ECE. The formulas are in the docstrings of `limerank.metrics`. A metric that the data leave
undefined, such as the AUC of impressions of one class, is shown as `-` and is null in JSON.

Each metric is reported for all impressions of a split and for slices of them: by whether the
user's history holds the candidate (*repeat*) or not (*new*), by the number of events in that
history, by the number of the item's impressions in training, and by the age of the user and of the
item.
"""

_SECTIONS: dict[Of, tuple[str, str]] = {
    "binary": (
        "Binary tasks",
        "Predictions are probabilities, outcomes are 0 or 1: a click, a like, a purchase.",
    ),
    "duration": (
        "Duration tasks",
        "Predictions are expected seconds, outcomes are seconds, such as watch time.",
    ),
    "lists": (
        "Ranked lists",
        "The full catalogue is ranked for requests that have a liked item: a positive of the "
        "first\n`positive` label of the dataset, else of the first `binary` label; without either, "
        "an outcome\nof the first label above 0. Of equal scores the item that stands first in "
        "the dataset comes\nfirst, as in an index. `-k` chooses k, and `--seen` whether lists may "
        "hold items that the user\nhas seen before.",
    ),
    "model": ("LIME models", "A property of the model rather than of its predictions."),
}
