"""What a ranker is trained for: the batches of a step, their losses, and how it is validated.

``TrainConfig.objective`` names one of :data:`OBJECTIVES`. The trainer knows nothing of labels,
candidates or negatives; another objective is a class here, or elsewhere and registered by
:func:`register_objective`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Batch, Sequences
from limerank.data.dataset import Dataset
from limerank.errors import SpecError, check_choice
from limerank.evaluation.measures import calibration, task_metrics
from limerank.evaluation.predict import predict
from limerank.metrics import Affine
from limerank.models import Ranker
from limerank.models.config import DataShape, TrainConfig
from limerank.models.registry import MODELS, Model
from limerank.models.tasks import Task, stopping_metric, task_losses
from limerank.training.collaborative import FOLDS, Statistics, folds_of

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


class Objective(abc.ABC):
    """An objective on a dataset.

    Args:
        dataset: whose training split is learned from.
        shape: of the model: the dataset's, with the tasks that :meth:`tasks` gives.
        config: how to train.

    Attributes:
        requests: rows of the requests of the training split.
        batch_size: impressions of a batch, about; learning rates follow it.
        statistics: of items, by folds of users; None where the model has none.
    """

    def __init__(self, dataset: Dataset, shape: DataShape, config: TrainConfig) -> None:
        self.dataset, self.shape, self.config = dataset, shape, config
        self.requests = dataset.requests_of("train")
        self.statistics: Statistics | None = None
        self.batch_size = batch_size(config, int(dataset.requests["count"][self.requests].sum()))

    @classmethod
    def tasks(cls, shape: DataShape, config: TrainConfig) -> tuple[Task, ...]:
        """Tasks of the model, each with its outputs: by default one for each label of the dataset.
        An objective may add tasks of its own, of which the dataset has no label."""
        return shape.tasks

    def check(self, model: Model) -> None:
        """Refuse a model that cannot be trained for this: SpecError."""
        if self.config.exact and not model.ranker.streams:
            able = [one.name for one in MODELS.values() if one.ranker.streams]
            raise SpecError(f"exact needs {' or '.join(able)}; got {model.name}")

    @property
    def loss_names(self) -> Sequence[str]:
        """Names of the losses, which ``task_weights`` may weigh."""
        return [task.name for task in self.shape.tasks]

    @abc.abstractmethod
    def plan(self, epoch: int) -> Sequence[Rows]:
        """What the steps of an epoch are made of; the same whenever it is asked for."""

    def part(self, rows: Rows, rank: int, size: int) -> Rows:
        """What process ``rank`` of ``size`` computes of one step of the plan."""
        return rows[rank::size]

    @abc.abstractmethod
    def batches(self, plan: Sequence[Rows]) -> Iterator[Examples]:
        """The batch of each step of a plan, in its order."""

    @abc.abstractmethod
    def losses(self, ranker: Ranker, batch: Any) -> dict[str, Tensor]:
        """Named losses, each a mean over the batch's ``impressions``; called with gradients.

        Args:
            ranker: in training mode.
            batch: of :meth:`batches`, on the ranker's device.
        """

    def stopping(self) -> tuple[str, str, bool]:
        """What validation stops by: task, metric, and whether higher is better; SpecError where
        ``config.metric`` is none of the possible ones."""
        labelled = [task for task in self.shape.tasks if task.name in self.dataset.tasks]
        return stopping_metric(labelled, self.config.metric)

    def measure(self, ranker: Ranker, requests: Rows) -> Measured:
        """Metrics of the ranker on requests of the validation split."""
        found = predict(ranker, self.dataset, requests, history=self.config.history)
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
        if self.statistics is None:
            return self.dataset.plan(self.requests, self.batch_size, length, generator, together)
        folds = folds_of(self.dataset.requests["user"][self.requests])
        plans = [
            part
            for fold in range(FOLDS)
            for part in self.dataset.plan(
                self.requests[folds == fold], self.batch_size, length, generator, together
            )
        ]
        return [plans[at] for at in generator.permutation(len(plans))]

    def batches(self, plan: Sequence[Rows]) -> Iterator[Batch | Sequences]:
        if self.config.exact:
            return self._of_folds(self.dataset.sequence_batches(list(plan)), plan)
        return self._of_folds(self.dataset.batches(list(plan), self.config.history), plan)

    def _of_folds(self, batches: Iterator[Any], plan: Sequence[Rows]) -> Iterator[Any]:
        """The batches with the item statistics that their users' folds are given: the users of a
        batch are all of one fold."""
        if self.statistics is None:
            yield from batches
            return
        for batch, rows in zip(batches, plan, strict=True):
            fold = int(folds_of(self.dataset.requests["user"][rows[:1]])[0])
            given = self.statistics.of_fold(fold, batch.items.ids)
            yield replace(batch, items=replace(batch.items, statistics=given))

    def losses(self, ranker: Ranker, batch: Batch | Sequences) -> dict[str, Tensor]:
        if isinstance(batch, Sequences):
            logits_nk, labels_nk = ranker.sequence_logits(batch), batch.labels
        else:
            real = batch.real
            logits_nk, labels_nk = ranker(batch)[real], batch.labels[real]
        return task_losses(logits_nk, labels_nk, self.shape.tasks)


OBJECTIVES: dict[str, type[Objective]] = {"impressions": Impressions}
"""Name -> objective."""


def register_objective(name: str, objective: type[Objective]) -> None:
    """Add an objective.

    Raises:
        ValueError: another objective has this name.
    """
    if OBJECTIVES.setdefault(name, objective) is not objective:
        raise ValueError(
            f"an objective named {name!r} is already registered, of class "
            f"{OBJECTIVES[name].__name__}; choose another name"
        )


def objective_of(name: str) -> type[Objective]:
    """The objective of this name.

    Raises:
        SpecError: no objective is registered under this name.
    """
    check_choice("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
