"""Evaluation of a run: exact metrics on one split, by slice and in ranked lists."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from limerank.data.counters import impressions_of
from limerank.data.dataset import Dataset
from limerank.data.impressions import Use
from limerank.errors import FormatError, SpecError, check_choice
from limerank.evaluation.alarms import counted, listed, measured
from limerank.evaluation.legend import legend
from limerank.evaluation.list_metrics import (
    Gain,
    checked_depths,
    evaluate_lists,
    list_table,
)
from limerank.evaluation.lists import LIST_DEPTHS, Seen
from limerank.evaluation.measures import task_metrics
from limerank.evaluation.popularity import popularity
from limerank.evaluation.predict import Predictions, effective_links, predict
from limerank.evaluation.slices import column, slice_values, slices
from limerank.files import TABLE_ENDINGS, check_output, read_json, write_json, write_table
from limerank.models.ranker import Ranker
from limerank.results import TableResult, aligned, none_for_nan, rounded
from limerank.runs.alarms import Alarm, alarm_lines, alarms_of, read_alarms
from limerank.runs.folder import Run, load_run
from limerank.storage.arguments import ADDED, NEW_FILE, READ, with_uris

TaskMetrics = Mapping[str, Mapping[str, float]]
"""Task -> metric -> value; NaN where a metric is not defined, such as AUC of one class. In JSON,
and in tables, such a value is null."""


USES: dict[Use, str] = {
    "all": "all that the log has",
    "known": "those that rankings know",
    "none": "none",
}
"""Which impression features an evaluation uses."""


@dataclass(frozen=True)
class Slice:
    """A part of the impressions, by how much the log knows of the user or of the item.

    Attributes:
        kind: "candidate", "history", "item impressions", "user days" or "item days"; see
            :func:`~limerank.evaluation.slices.slice_values`.
        name: the range of its values, such as "10-49"; "new" or "repeat" of candidates.
        impressions: number of impressions.
        tasks: task -> metric -> value; empty without impressions.
    """

    kind: str
    name: str
    impressions: int
    tasks: TaskMetrics

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "slice": self.name,
            "impressions": self.impressions,
            "tasks": _plain(self.tasks),
        }


@dataclass(frozen=True, repr=False)
class Evaluation(TableResult):
    """The metrics of a run on one split; :mod:`limerank.evaluation.legend` explains them.

    As a table it has a row for all impressions and one for each slice, and a column
    ``TASK/METRIC`` for each metric.

    Attributes:
        model: the model's name.
        dataset: the dataset's name.
        split: that was measured.
        history: events of a history, at most.
        at_least: the least number of events before a request.
        requests, impressions: numbers of them.
        tasks: task -> metric -> value, NaN where a metric is not defined.
        slices: the same for parts of the impressions.
        effective_links: of LIME models; None for others.
        impression_features: which ones the model saw: "all" of the dataset, "known" to rankings, or
            "none"; None where the dataset has none. Ranked lists never have any.
        lists: metrics of ranked lists, with the number of ``requests`` that were ranked for, of
            ``requests_with_positive`` that they were drawn from, and of items in the ``catalogue``;
            None where lists were not asked for.
        lists_seen: whether lists may hold items that the user has seen before, "in" or "out".
        peers: the same metrics of "item-knn" and "most-popular", counted in the training window,
            and of "chance".
        gains: peer -> how much better the model's lists are, with a 95 % interval.
        alarms: reasons for not deploying the run: of these metrics, and those of its training that
            they do not show again.
    """

    model: str
    dataset: str
    split: str
    history: int
    at_least: int
    requests: int
    impressions: int
    tasks: TaskMetrics
    slices: tuple[Slice, ...]
    effective_links: float | None = None
    impression_features: Use | None = None
    lists: Mapping[str, float] | None = None
    lists_seen: Seen | None = None
    peers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gains: Mapping[str, Gain] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Evaluation:
        """From :meth:`to_dict`."""
        parts = tuple(
            Slice(part["kind"], part["slice"], part["impressions"], _metrics(part["tasks"]))
            for part in values["slices"]
        )
        gains = {name: Gain.of(one) for name, one in values.get("gains", {}).items()}
        own = {"tasks": _metrics(values["tasks"]), "slices": parts, "gains": gains}
        return cls(**{**values, **own, "alarms": alarms_of(values.get("alarms", ()))})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Evaluation:
        """From a file that :func:`evaluate` wrote.

        Raises:
            FormatError: the file is not such a file.
        """
        values = read_json(Path(path), "an evaluated run")
        try:
            return cls.of(values)
        except (KeyError, TypeError):
            raise FormatError(f"{path} does not hold the metrics of a run; evaluate it") from None

    def to_dict(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["tasks"] = _plain(self.tasks)
        values["slices"] = [part.to_dict() for part in self.slices]
        values["alarms"] = [one.to_dict() for one in self.alarms]
        values["gains"] = {name: one.to_dict() for name, one in self.gains.items()}
        optional = {"effective_links", "impression_features", "lists", "lists_seen"}
        optional |= {"peers", "gains"}
        return {
            name: value
            for name, value in values.items()
            if name not in optional or (value is not None and value != {})
        }

    def columns(self) -> dict[str, list[Any]]:
        parts = [Slice("all", "", self.impressions, self.tasks), *self.slices]
        found: dict[str, list[Any]] = {
            "kind": [part.kind for part in parts],
            "slice": [part.name for part in parts],
            "impressions": [part.impressions for part in parts],
        }
        for task, metrics in self.tasks.items():
            for name in metrics:
                values = [part.tasks.get(task, {}).get(name, math.nan) for part in parts]
                found[f"{task}/{name}"] = [none_for_nan(value) for value in values]
        return found

    def caption(self) -> str:
        return (
            f"{self.model} on {self.dataset}, {self.split} split: "
            f"{self.impressions:,} impressions in {self.requests:,} requests"
        )

    def text(self) -> str:
        """A line of metrics for each task, and a table of slices with each task's first metric;
        without tasks of which nothing is defined, such as the AUC of positives alone."""
        defined = self._defined
        blocks = [(task, _line(found)) for task, found in defined.items()]
        if self.impression_features is not None:
            blocks.append(("features", f"impression features: {USES[self.impression_features]}"))
        if self.effective_links is not None:
            blocks.append(("links", f"effective_links {self.effective_links:.1f}"))
        heads = [(task, next(iter(found))) for task, found in defined.items()]
        if not heads:
            blocks += self._repeats()
        lists: list[str] = []
        if self.lists is not None:
            lists = list_table(self.model, self.lists, self.peers, self.gains, self.lists_seen)
            lists = ["", *lists]
        rows = [("slice", "impressions", *(f"{task} {metric}" for task, metric in heads))]
        for part in self.slices:
            values = [part.tasks.get(task, {}).get(metric, math.nan) for task, metric in heads]
            name = f"{part.kind} {part.name}"
            rows.append((name, f"{part.impressions:,}", *map(rounded, values)))
        slices = aligned(rows, "<" + ">" * (1 + len(heads)), (26, 12, *[16] * len(heads)))
        return "\n".join(
            [
                self.caption(),
                *(["", *aligned(blocks, "<<", (10,))] if blocks else []),
                *lists,
                *(["", *slices] if heads else []),
                *(["", *alarm_lines(self.alarms)] if self.alarms else []),
            ]
        )

    def _repeats(self) -> list[tuple[str, str]]:
        """How many of the impressions repeat an item of the history: where there is no table of
        slices, it says whether lists without seen items could hold them."""
        counts = {one.name: one.impressions for one in self.slices if one.kind == "candidate"}
        total = sum(counts.values())
        if not total:
            return []
        text = f"{counts['repeat']:,} of {total:,} impressions are of items in the history"
        return [("repeats", text)]

    @property
    def _defined(self) -> TaskMetrics:
        """The tasks of which any metric is defined."""
        return {
            task: found
            for task, found in self.tasks.items()
            if found and not all(map(math.isnan, found.values()))
        }

    def legend(self) -> str:
        """What the metrics of :meth:`text` mean, to be printed below it."""
        names = [name for found in self._defined.values() for name in found]
        names += [] if self.lists is None else list(self.lists)
        names += [] if self.effective_links is None else ["effective_links"]
        return "\n".join(legend(names))


def _plain(tasks: TaskMetrics) -> dict[str, dict[str, float | None]]:
    return {
        task: {name: none_for_nan(value) for name, value in found.items()}
        for task, found in tasks.items()
    }


def _metrics(tasks: Mapping[str, Mapping[str, float | None]]) -> TaskMetrics:
    return {
        task: {name: math.nan if value is None else value for name, value in found.items()}
        for task, found in tasks.items()
    }


def _line(found: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {rounded(value)}" for name, value in found.items())


@with_uris(run=ADDED, data=READ, out=NEW_FILE, predictions=NEW_FILE)
def evaluate(
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str = "test",
    history: int | None = None,
    at_least: int = 0,
    lists: int | None = None,
    k: Sequence[int] = LIST_DEPTHS,
    seen: Seen | None = None,
    peers: bool = True,
    impression_features: Use = "all",
    out: str | os.PathLike[str] | None = None,
    predictions: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Evaluation:
    """Measure a run on one split and write all metrics to a JSON file.

    Args:
        run: a run folder.
        data: the dataset; the one that the run was trained on when not given.
        split: "train", "validation", "test", or "held-out": users that training never saw.
        history: read only so many of a user's latest events; 0 measures features alone. As many
            as in training when not given.
        at_least: measure only requests with at least so many events before them, so that different
            values of ``history`` are compared on the same impressions.
        lists: rank the full catalogue for so many requests with a positive. Where the split has
            more, they are drawn at random, and are the same for every run. 0: no lists. By default
            all, but about 67 million pairs of a request and an item at most, and 2,000 requests at
            least.
        k: how many first items of a list count: 10 for NDCG@10, HR@10 and so on.
        seen: "in": lists may hold items that the user has seen before; "out": they may not, and
            such items are not relevant. By default "in" for a log of positives, else "out".
        peers: whether to measure lists of most-popular and of item-kNN, which are counted in the
            training window of the dataset, and of chance as well.
        impression_features: which impression features the model sees: "all" that the dataset has;
            those that are "known" to a ranking, without those with ``bias``; or "none". Measure
            "known" for what rankings of given candidates achieve, and "none" for rankings of the
            full catalogue.
        out: the JSON file. ``metrics.json`` in the run folder when not given; its name gets a
            suffix such as ``metrics-validation.json`` where ``split``, ``history``, ``at_least`` or
            ``impression_features`` is given.
        predictions: a file for the prediction of each impression: CSV where its name ends in
            ``.csv``, else Parquet. Its columns are user, item, time, request, the values of
            :func:`~limerank.evaluation.slices.slice_values` (repeat, history, item_impressions,
            user_days, item_days) and, for each task, ``TASK`` and ``TASK_predicted``. This file
            contains user ids; no other output does.
        quiet: show no progress.

    Raises:
        FormatError: ``run`` is not a run, or ``out`` or ``predictions`` cannot be written. It is
            raised before anything is computed.
        UnknownError: there is no such split.
        SpecError: ``history``, ``at_least`` or ``lists`` is below 0, a depth in ``k`` is below 1,
            or ``impression_features`` or ``seen`` is none of its values.
    """
    check_choice("impression_features", impression_features, USES)
    if seen is not None:
        check_choice("seen", seen, get_args(Seen))
    k = checked_depths(k)
    for name, value in (("history", history), ("at_least", at_least), ("lists", lists)):
        if value is not None and value < 0:
            raise SpecError(f"{name} is {value}, expected 0 or more")
    target = (
        Path(run) / _file_name(split, history, at_least, impression_features)
        if out is None
        else Path(out)
    )
    if out is not None:
        check_output(target, (".json",))
    if predictions is not None:
        check_output(predictions, TABLE_ENDINGS)
    loaded = load_run(run)
    dataset = loaded.dataset(data)
    requests = dataset.requests_of(split)
    requests = requests[dataset.history_lengths(requests, 1 << 62) >= at_least]
    if out is None:  # the folder is a run
        check_output(target)
    if history is None:
        history = loaded.train.history
    predicted = predict(
        loaded.ranker,
        dataset,
        requests,
        history=history,
        impression_features=impression_features,
        quiet=quiet,
    )
    if predictions is not None:
        _write_predictions(predicted, dataset, Path(predictions))
    tasks = loaded.ranker.shape.tasks
    metrics = task_metrics(predicted, dataset, tasks) if len(predicted.rows) else {}
    use = None if predicted.link_use is None else effective_links(predicted.link_use)
    as_trained = len(requests) > 0 and not at_least and history == loaded.train.history
    as_trained = as_trained and impression_features == "all"
    ranked = None
    if lists != 0:
        ranked = evaluate_lists(
            loaded.ranker,
            dataset,
            requests,
            most=lists,
            depths=k,
            seen=seen,
            peers=peers,
            history=history,
            quiet=quiet,
        )
    alarms = _alarms(loaded, dataset, split, requests if as_trained else None, metrics, use)
    if as_trained and ranked is not None:
        alarms = (*listed(split, loaded.ranker.config.model, ranked), *alarms)
    result = Evaluation(
        model=loaded.ranker.config.model,
        dataset=dataset.name,
        split=split,
        history=dataset.history_length if history is None else history,
        at_least=at_least,
        requests=len(requests),
        impressions=len(predicted.rows),
        tasks=metrics,
        slices=tuple(
            Slice(
                kind,
                name,
                int(chosen.sum()),
                task_metrics(predicted, dataset, tasks, chosen) if chosen.any() else {},
            )
            for kind, name, chosen in slices(slice_values(predicted, dataset))
        ),
        effective_links=use,
        impression_features=impression_features if dataset.impressions.features else None,
        lists=None if ranked is None else ranked.numbers,
        lists_seen=None if ranked is None else ranked.seen,
        peers={} if ranked is None else ranked.peers,
        gains={} if ranked is None else ranked.gains,
        alarms=alarms,
    )
    write_json(target, result.to_dict())
    return result


def _alarms(
    run: Run,
    dataset: Dataset,
    split: str,
    requests: NDArray[np.int64] | None,
    metrics: TaskMetrics,
    use: float | None,
) -> tuple[Alarm, ...]:
    """Alarms about the metrics of the requests, if they were measured with histories as in
    training; and those of the training that these metrics do not show again."""
    shape = run.ranker.link_shape
    found: list[Alarm] = []
    if requests is not None:
        means = popularity(dataset, requests, run.ranker.shape.tasks)
        found = measured(split, metrics, means, use, None if shape is None else shape[1])
        found += _counted(run.ranker, dataset, split, requests)
    names = {one.name for one in found}
    earlier = read_alarms(run.path) or ()
    return (*found, *(one for one in earlier if one.name not in names))


def _counted(
    ranker: Ranker, dataset: Dataset, split: str, requests: NDArray[np.int64]
) -> list[Alarm]:
    if ranker.counters is None or dataset.counters is None:
        return []
    times = dataset.events["time"][dataset.requests["first"][requests]]
    items = np.arange(len(dataset.items))
    middle = np.full(len(items), np.sort(times)[len(times) // 2])
    held = impressions_of(dataset.counters.at(items, middle))
    return counted(split, impressions_of(ranker.counters.values.cpu().numpy()), held)


def _file_name(split: str, history: int | None, at_least: int, impression_features: Use) -> str:
    parts = ["metrics"]
    if split != "test":
        parts.append(split)
    if history is not None:
        parts.append(f"history-{history}")
    if at_least:
        parts.append(f"at-least-{at_least}")
    if impression_features != "all":
        parts.append(f"impression-features-{impression_features}")
    return "-".join(parts) + ".json"


def _write_predictions(predicted: Predictions, dataset: Dataset, path: Path) -> None:
    columns = {
        "user": dataset.user_ids[dataset.requests["user"][predicted.requests]],
        "item": dataset.item_ids[dataset.events["item"][predicted.rows]],
        "time": np.asarray(dataset.events["time"][predicted.rows]),
        "request": predicted.requests,
        **{column(kind): values for kind, values in slice_values(predicted, dataset).items()},
    }
    for position, task in enumerate(dataset.tasks):
        columns[task] = predicted.labels[:, position]
        columns[f"{task}_predicted"] = predicted.values[:, position]
    write_table(pl.DataFrame(columns), path)
