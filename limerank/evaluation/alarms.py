"""Alarms: what makes a run not worth deploying, and what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limerank.data.coverage import NEAR_ZERO
from limerank.evaluation.list_metrics import ListEvaluation
from limerank.models.registry import FITTED
from limerank.runs.alarms import Alarm

LEAST_LINKS = 2.0
"""Fewer effective links raise an alarm."""
LEAST_GAIN = 0.001
"""An NE of 1 minus this, or more, raises an alarm: calibrated weights hardly ever exceed 1 on the
validation split."""
MOST_LOST = 0.01
"""An alarm is raised where the validation metric gets worse than its best by more than this share,
while the training loss still falls."""
LEAST_COUNTED = 0.25
"""An alarm is raised where counters have fewer than this share of the impressions that they had at
the end of training."""
UNKNOWN = 0.01
"""A feature with a smaller share of known values counts as one that nothing matched."""

MOST_CONCENTRATED = 0.5
"""An alarm is raised where as many items as a list has positions fill more than this share of the
positions of all lists."""
LEAST_LISTS, LEAST_ITEMS = 50, 100
"""Fewer lists, or a smaller catalogue, do not show whether lists are concentrated."""

ADVICE = {
    "few-links": "a lower learning_rate, or fewer links; if slices with long histories are no "
    "better than those with short ones, histories may not matter in this log",
    "ne": "compare the mean outcomes of the splits (limerank prepare prints them); lower "
    "table_learning_rate; raise table_accumulator, dropout and id_dropout; more data",
    "below-popularity": "a higher table_accumulator or id_dropout; check that items and "
    "histories of the split match those of the training window",
    "lists-below-popularity": "item-kNN (limerank train --model item-knn), which is only counted; "
    'a log of positives learns lists (kind = "positive" in the description); a model of '
    "impressions orders what was shown, and lists of the full catalogue are another job: give it "
    "candidates to rank",
    "lists-below-item-knn": "more epochs; anchored links and collaborative vectors, so that the "
    "model can tell what goes together; more negatives; or serve item-kNN itself (limerank train "
    "--model item-knn)",
    "same-items": "compare coverage with that of item-kNN; a lower learning_rate; check that "
    "histories of the split are not empty (limerank evaluate --at-least 1)",
    "first-validation": "half of learning_rate and table_learning_rate; validations=4; a higher "
    "dropout",
    "no-gain": "check that the new part of the log is complete and labelled as before (limerank "
    "prepare prints the means of labels); a lower learning_rate; more replay; if it stays, train "
    "without --from",
    "counters": "a dataset that has the earlier log as well: limerank prepare --extend, which adds "
    "the new part of the log to the dataset of before",
    "overfitting": "fewer epochs, so that the learning rate decays earlier; a higher dropout, "
    "id_dropout or weight_decay",
    "unmatched": "compare the notation of ids and values in both files (limerank prepare shows "
    "examples); correct the column in the description, or remove the feature",
}
"""Name of each alarm -> what to try."""

Curve = Sequence[Mapping[str, Any]]
"""Lines of ``metrics.jsonl``."""


def _alarm(name: str, message: str) -> Alarm:
    return Alarm(name, message, ADVICE[name])


def measured(
    split: str,
    metrics: Mapping[str, Mapping[str, float]],
    popularity: Mapping[str, tuple[str, float]],
    effective_links: float | None = None,
    links: int | None = None,
) -> list[Alarm]:
    """Alarms about the metrics of one split: "few-links", "ne", "below-popularity".

    Args:
        split: that was measured.
        metrics: task -> metric -> value.
        popularity: task -> metric and value of :func:`limerank.evaluation.popularity.popularity`,
            on the same impressions.
        effective_links: of a LIME model; ``links``: how many it has.
    """
    found = []
    if effective_links is not None and links is not None and effective_links < LEAST_LINKS < links:
        found.append(
            _alarm(
                "few-links",
                f"items of the {split} split use {effective_links:.1f} of {links} links: the links "
                "collapsed, and histories count through anchored links and the profile, if at all",
            )
        )
    for task, values in metrics.items():
        if values.get("ne", 0.0) >= 1 - LEAST_GAIN:
            found.append(
                _alarm(
                    "ne",
                    f"{task}: the NE of the {split} split is {values['ne']:.4f}; predicting the "
                    "mean outcome for everything has 1",
                )
            )
    for task, (metric, value) in popularity.items():
        own = metrics.get(task, {}).get(metric)
        if own is not None and own < value:
            found.append(
                _alarm(
                    "below-popularity",
                    f"{task}: the {metric.upper()} of the {split} split is {own:.4f}; the mean "
                    f"outcome of each item in the training window has {value:.4f}",
                )
            )
    return found


def counted(split: str, trained: float, held: float) -> list[Alarm]:
    """Alarm "counters": in the measured log, items have hardly been shown.

    Args:
        split: that was measured.
        trained: impressions that the counters of all items had at the end of training.
        held: those that they have at the middle of the measured requests.
    """
    if held >= LEAST_COUNTED * trained:
        return []
    return [
        _alarm(
            "counters",
            f"counters of items begin with this dataset: at the middle of the {split} split they "
            f"have {held:,.0f} impressions; at the end of training they had {trained:,.0f}",
        )
    ]


def listed(split: str, model: str, lists: ListEvaluation) -> list[Alarm]:
    """Alarms about ranked lists: "lists-below-popularity", "lists-below-item-knn" (in a log of
    positives), "same-items".

    Lists are below those of a peer where the 95 % interval of the difference is below 0.

    Args:
        split: that was measured.
        model: name of the model; one that is fitted by counting raises none of them.
        lists: of the model.
    """
    found: list[Alarm] = []
    if model in FITTED:
        return found
    names = {"most-popular": "lists-below-popularity"}
    if lists.positives:
        names["item-knn"] = "lists-below-item-knn"
    for peer, name in names.items():
        gain = lists.gains.get(peer)
        if gain is not None and gain.high < 0:
            own, theirs = lists.metrics[gain.metric], lists.peers[peer][gain.metric]
            found.append(
                _alarm(
                    name,
                    f"the {gain.metric} of lists of the {split} split is {own:.4f}; {peer} has "
                    f"{theirs:.4f} (the difference is {gain.low:+.4f} to {gain.high:+.4f})",
                )
            )
    share, depth = next(
        (
            (value, key.partition("@")[2])
            for key, value in lists.metrics.items()
            if key.startswith("concentration@")
        ),
        (0.0, ""),
    )
    enough = lists.requests >= LEAST_LISTS and lists.catalogue >= LEAST_ITEMS
    if enough and share > MOST_CONCENTRATED:
        found.append(
            _alarm(
                "same-items",
                f"the same {depth} items fill {100 * share:.0f} % of the first {depth} positions "
                f"of {lists.requests:,} lists of the {split} split",
            )
        )
    return found


def learned(lines: Curve, task: str, metric: str, higher: bool) -> list[Alarm]:
    """Alarms about the curves of a training: "first-validation", "overfitting". A validation before
    the first step, of a training that started from a run, is none of these curves.

    Args:
        lines: of ``metrics.jsonl``.
        task, metric: what chose the weights; ``higher``: whether higher values are better.
    """
    steps, values, losses = [], [], []
    last, total, weight = 0, 0.0, 0
    for line in lines:
        if "loss" in line:  # a mean over the steps since the line before
            total += line["loss"] * (line["step"] - last)
            weight += line["step"] - last
            last = line["step"]
        elif "validation" in line and line["step"]:
            steps.append(line["step"])
            values.append(line["validation"][task][metric])
            losses.append(total / max(weight, 1))
            total, weight = 0.0, 0
    if len(values) < 2:
        return []
    best = max(range(len(values)), key=lambda at: values[at] if higher else -values[at])
    name = f"{task}/{metric}"
    found = []
    if best == 0:
        found.append(
            _alarm(
                "first-validation",
                f"{name} is best at the first of {len(values)} validations ({values[0]:.4f} at "
                f"step {steps[0]:,}): most of the training made the model worse",
            )
        )
    worse = (values[best] - values[-1]) * (1 if higher else -1)
    if worse > MOST_LOST * abs(values[best]) and losses[-1] < losses[best]:
        found.append(
            _alarm(
                "overfitting",
                f"{name} went from {values[best]:.4f} at step {steps[best]:,} to "
                f"{values[-1]:.4f} at step {steps[-1]:,}, while the training loss fell from "
                f"{losses[best]:.4f} to {losses[-1]:.4f}; the stored weights are those of step "
                f"{steps[best]:,}",
            )
        )
    return found


def unimproved(parent: str, metric: str, value: float, best_step: int) -> list[Alarm]:
    """The alarm "no-gain" of a training that started from a run.

    Args:
        parent: that run.
        metric: that chose the weights, and ``value``: that of the run's weights.
        best_step: the step of the chosen weights; 0: those of the run.
    """
    if best_step:
        return []
    message = (
        f"no validation is better than {metric} {value:.4f}, which the weights of {parent} have "
        "on the new validation split: the stored weights are these"
    )
    return [_alarm("no-gain", message)]


def unmatched(manifest: Mapping[str, Any]) -> list[Alarm]:
    """The alarm "unmatched": tables and features of a dataset of which (almost) nothing matched.

    Args:
        manifest: of the dataset, with its full summary.
    """
    summary = manifest["summary"]
    parts = []
    features = [("event", one) for one in summary.get("event_features", ())]
    for what, table in summary.get("tables", {}).items():
        if table["ids"] and table["matched"] < NEAR_ZERO * table["ids"]:
            parts.append(
                f"the {what} table has a row for {table['matched']:,} of {table['ids']:,} {what}s"
            )
        else:
            features += [(what, one) for one in table["features"]]
    parts += [
        f"{what} feature {one['name']}: {one['known']:,} of {one['rows']:,} rows have a value that "
        "training knows"
        for what, one in features
        if one["rows"] and one["known"] < UNKNOWN * one["rows"]
    ]
    return [_alarm("unmatched", "; ".join(parts))] if parts else []
