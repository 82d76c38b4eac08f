"""What an objective is, and the objective of shown items: the batches of a step, their losses, and
how a ranker is validated.

The trainer knows nothing of labels, candidates or negatives. limerank.training.objectives lists the
objectives by their names.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Sequences
from limerank.data.dataset import Dataset
from limerank.errors import DataError, SpecError
from limerank.evaluation.measures import calibration, task_metrics
from limerank.evaluation.predict import predict
from limerank.metrics import Affine
from limerank.models import Ranker
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.models.neighbours import NeighbourLists, with_neighbours
from limerank.models.registry import MODELS, Model
from limerank.models.tasks import Task, columns, stopping_metric, task_losses
from limerank.training.collaborative import FOLDS, Statistics, folds_of
from limerank.training.optim import Rates
from limerank.world import Alone, World, decided

BATCHES, LEAST, MOST = 400, 64, 1024
"""Batches of an epoch, and impressions of a batch, where the configuration leaves it open."""

Rows = NDArray[np.int64]


class Examples(Protocol):
    """What one step is computed of."""

    @property
    def impressions(self) -> int:
        """Number of impressions, or of the other terms that the losses are means over."""

    @property
    def unpadded(self) -> int:
        """Positions of histories and candidates, without padding."""

    @property
    def computed(self) -> int:
        """The same with padding."""

    def to(self, device: Any) -> Self:
        """The same with every tensor on ``device``."""


class Measured(NamedTuple):
    """A validation: task -> metric -> value; the use of links, where the model folds; and the map
    of each logit that fits the validation split best, where the weights shall be stored with it."""

    metrics: dict[str, dict[str, float]]
    link_use: NDArray[np.float32] | None
    calibration: Sequence[Affine] = ()


def measured_alike(world: World, found: Measured) -> Measured:
    """The validation of process 0, on all processes: they decide alike, also where their machines
    round otherwise."""

    def of_first() -> Any:
        return found.metrics, [(one.scale, one.shift) for one in found.calibration]

    if world.size == 1:
        return found
    metrics, maps = decided(world, of_first)
    return Measured(metrics, found.link_use, [Affine(*one) for one in maps])


class Objective(abc.ABC):
    """An objective on a dataset.

    Args:
        dataset: whose training split is learned from.
        shape: of the model: the dataset's, with the tasks that :meth:`tasks` gives.
        config: how to train.

    Attributes:
        requests: rows of the requests of the training split that are learned from.
        counts: impressions of each of them, or other terms that its losses are sums of, i64.
        batch_size: impressions of a batch, about; learning rates follow it.
        item_counts: impressions of each item of the training window, or whatever else says how well
            its id is known, i64.
        statistics: of items, by folds of users; None where the model has none.
        neighbours: of items, by folds of users; None where the model has none.
        world: the processes that compute parts of a batch; this one alone, if not set.
        in_order: whether neighbours go by the order of events, as far as the log tells by it. What
            comes next is found so; of items that are shown in any case, who chose both says more.
    """

    in_order: ClassVar[bool] = False

    def __init__(self, dataset: Dataset, shape: DataShape, config: TrainConfig) -> None:
        self.dataset, self.shape, self.config = dataset, shape, config
        self.requests = dataset.requests_of("train")
        self.counts = dataset.requests["count"][self.requests].astype(np.int64)
        self.item_counts = np.asarray(dataset.train_count[: dataset.trained_items])
        self.statistics: Statistics | None = None
        self.neighbours: list[NeighbourLists] | None = None
        self.world: World = Alone()
        self.quiet = True
        self.batch_size = batch_size(config, int(self.counts.sum()))

    @property
    def rates(self) -> Rates:
        """Learning rates: those of the configuration, or the usual ones."""
        config, usual = self.config, self.usual_rates()
        start = config.table_accumulator
        return Rates(
            config.learning_rate or usual.dense,
            config.table_learning_rate or usual.tables,
            usual.accumulator if start is None else start,
        )

    def usual_rates(self) -> Rates:
        """Learning rates where the configuration has none."""
        return Rates()

    @classmethod
    def tasks(cls, shape: DataShape, config: TrainConfig) -> tuple[Task, ...]:
        """Tasks of the model, each with its outputs: by default one for each label of the dataset
        that impressions teach. An objective may add tasks of its own, of which the dataset has no
        label.

        Raises:
            SpecError: the dataset has no label that can be learned so.
        """
        found = tuple(task for task in shape.tasks if not task.of_kind.catalogue)
        if not found:
            raise SpecError(
                f"the label {shape.tasks[0].name!r} is of the kind positive: impressions without "
                'negatives teach nothing; leave objective out, or set objective = "catalogue"'
            )
        return found

    @classmethod
    def model_shape(cls, shape: DataShape, model: ModelConfig, config: TrainConfig) -> DataShape:
        """The shape of a model that is trained for this on a dataset of some shape.

        Raises:
            SpecError: see :meth:`tasks`.
        """
        counted = model.counter_hours if shape.counted else 0
        return shape.model_copy(update={"tasks": cls.tasks(shape, config), "counted": counted})

    def learn_from(self, requests: Rows) -> None:
        """Leave all other requests out of :attr:`requests`, after :meth:`check`. What is counted in
        the training split, such as :attr:`item_counts` and :attr:`batch_size`, stays as it is.

        Args:
            requests: rows, in user order.
        """
        chosen = np.isin(self.requests, requests)
        self.requests, self.counts = self.requests[chosen], self.counts[chosen]

    def check(self, model: Model, held_out: Rows) -> None:
        """Refuse what cannot be trained for this.

        Args:
            model: that is trained.
            held_out: rows of the requests of the validation split.

        Raises:
            SpecError: the model or a setting does not fit.
            DataError: the dataset does not.
        """
        if self.config.exact and not model.ranker.streams:
            able = [one.name for one in MODELS.values() if one.ranker.streams]
            raise SpecError(f"exact needs {' or '.join(able)}; got {model.name}")

    def check_labels(self, held_out: Rows) -> None:
        """Refuse a validation split by whose labels no weights can be chosen: DataError."""
        name, metric, _ = self.stopping()
        task = next((one for one in self.shape.tasks if one.name == name), None)
        if task is None or name not in self.dataset.tasks or task.of_kind.catalogue:
            return
        rows = self.dataset.impression_rows(held_out)
        labels = np.asarray(self.dataset.events[f"label_{name}"][rows], np.float32)
        if not len(labels) or labels.min() != labels.max():
            return
        some = labels[:1]
        found = task.of_kind.measure(some, np.full(1, 0.5, np.float32), rows[:1], some > 0)
        if math.isnan(found.get(metric, 0.0)):
            advice = "choose other split points (limerank prepare), or another metric"
            if task.of_kind.binary and some[0]:
                advice = (
                    "if the log has no negatives, describe the label as one of positives "
                    '(kind = "positive")'
                )
            raise DataError(
                f"the label {name!r} is {some[0]:g} for all {len(labels):,} impressions of the "
                f"validation split, so {name}/{metric} is not defined: {advice}"
            )

    @property
    def loss_names(self) -> Sequence[str]:
        """Names of the losses, which ``task_weights`` may weigh."""
        return [task.name for task in self.shape.tasks]

    @abc.abstractmethod
    def plan(self, epoch: int) -> Sequence[Rows]:
        """What the steps of an epoch are made of; the same whenever it is asked for."""

    def part(self, rows: Rows) -> Rows:
        """What this process computes of one step of the plan. Where there are fewer requests than
        processes, it may be a spare one, whose gradients do not count (:meth:`counts_part`)."""
        own = self._own(rows)
        return own if len(own) else rows[:1]

    def counts_part(self, rows: Rows) -> bool:
        """Whether :meth:`part` is a part of the step, and not a spare one."""
        return len(self._own(rows)) > 0

    def _own(self, rows: Rows) -> Rows:
        """Every ``size``-th request. With exact histories, every ``size``-th run of consecutive
        requests, which read one history (Dataset.sequences); later ones first, so that runs which
        lie apart in the step stay apart: ages count from the end of a history."""
        world = self.world
        if not self.config.exact or world.size == 1:
            return rows[world.rank :: world.size]
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)[world.rank :: world.size]
        runs.sort(key=lambda run: -int(run[0]))
        return np.concatenate(runs) if runs else rows[:0]

    @abc.abstractmethod
    def batches(self, plan: Sequence[Rows]) -> Iterator[Examples]:
        """The batch of each step of a plan, in its order: this process's part of it. One that has
        the full step is correct as well, but several processes then compute the same."""

    @abc.abstractmethod
    def losses(self, ranker: Ranker, batch: Any) -> dict[str, Tensor]:
        """Named losses, each a mean over the batch's ``impressions``; called with gradients.

        Args:
            ranker: in training mode.
            batch: of :meth:`batches`, on the ranker's device.
        """

    @property
    def text(self) -> str:
        """What is learned, in a few words, once a training has checked it; empty: nothing that the
        model and the log do not say."""
        return ""

    def baselines(self) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """What is to be beaten on the validation split: task -> name -> metric -> value."""
        return {}

    def stopping(self) -> tuple[str, str, bool]:
        """What validation stops by: task, metric, and whether higher is better; SpecError where
        ``config.metric`` is none of the possible ones."""
        labelled = [task for task in self.shape.tasks if task.name in self.dataset.tasks]
        return stopping_metric(labelled, self.config.metric)

    def measure(self, ranker: Ranker, requests: Rows) -> Measured:
        """Metrics of the ranker on requests of the validation split. All processes call it; what
        process 0 returns counts."""
        found = predict(
            ranker, self.dataset, requests, history=self.config.history, world=self.world
        )
        metrics = task_metrics(found, self.dataset, self.shape.tasks)
        maps = calibration(found, self.shape.tasks) if self.config.calibrate else ()
        return Measured(metrics, found.link_use, maps)


def batch_size(config: TrainConfig, total: int) -> int:
    """Impressions of a batch, for a training split of ``total`` impressions."""
    return config.batch_size or min(max(total // BATCHES, LEAST), MOST)


class Impressions(Objective):
    """Items that were shown, with their outcomes: each label of each impression is predicted."""

    def plan(self, epoch: int) -> Sequence[Rows]:
        config = self.config
        generator = np.random.default_rng([config.seed, epoch])
        length, together = config.history, 1
        if config.exact:
            length, together = len(self.dataset.events["time"]), config.exact_requests
        size = self.batch_size
        if self.statistics is None and self.neighbours is None:
            return self.dataset.plan(self.requests, size, length, generator, together, self.counts)
        folds = folds_of(self.dataset.requests["user"][self.requests])
        plans = [
            part
            for chosen in (folds == fold for fold in range(FOLDS))
            for part in self.dataset.plan(
                self.requests[chosen], size, length, generator, together, self.counts[chosen]
            )
        ]
        return [plans[at] for at in generator.permutation(len(plans))]

    def batches(self, plan: Sequence[Rows]) -> Iterator[Examples]:
        own = [self.part(rows) for rows in plan]
        if self.config.exact:
            yield from map(
                self.with_statistics, self.dataset.sequence_batches(own, self.shape.counted), own
            )
        else:
            made = self.dataset.batches(own, self.config.history, self.shape.counted)
            yield from map(self.with_statistics, made, own)

    def with_statistics(self, batch: Any, rows: Rows) -> Any:
        """The batch of these requests with the statistics and neighbours of items that their users'
        fold is given: the users of a batch are all of one fold."""
        if self.statistics is None and self.neighbours is None:
            return batch
        fold = int(folds_of(self.dataset.requests["user"][rows[:1]])[0])
        if self.statistics is not None:
            given = self.statistics.of_fold(fold, batch.items.ids)
            batch = replace(batch, items=replace(batch.items, statistics=given))
        if self.neighbours is not None:
            keys = with_neighbours(batch.users.keys, self.neighbours[fold], batch.distinct)
            batch = replace(batch, users=replace(batch.users, keys=keys))
        return batch

    def losses(self, ranker: Ranker, batch: Any) -> dict[str, Tensor]:
        if isinstance(batch, Sequences):
            logits_nk, labels_nk = ranker.sequence_logits(batch), batch.labels
        else:
            real = batch.real
            logits_nk, labels_nk = ranker(batch)[real], batch.labels[real]
        return impression_losses(logits_nk, labels_nk, self.shape.tasks, self.dataset.tasks)


def impression_losses(
    logits_nk: Tensor, labels_nl: Tensor, tasks: Sequence[Task], labels: Sequence[str]
) -> dict[str, Tensor]:
    """Mean loss over n impressions of each task that they teach.

    Args:
        logits_nk: of the model, [n, K].
        labels_nl: f32 [n, number of labels].
        tasks: of the model.
        labels: names of the dataset's labels.
    """
    taught = [task for task in tasks if task.name in labels and not task.of_kind.catalogue]
    outputs = [
        output
        for task, own in zip(tasks, columns(tasks), strict=True)
        if task in taught
        for output in range(own.start, own.stop)
    ]
    at = [labels.index(task.name) for task in taught]
    return task_losses(logits_nk[:, outputs], labels_nl[:, at], taught)
