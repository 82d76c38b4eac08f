"""What follows from the kind of a label: the model's outputs, loss, prediction and metrics.

A task is one label that a model predicts. Its kind is an object in :data:`KINDS`; all code that
depends on kinds asks that object. A module outside of the package adds kinds by
:func:`register_kind`.

Shape letters: n impressions, o outputs of a task, K outputs of a model.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional as F

from limerank import metrics
from limerank.errors import SpecError, did_you_mean
from limerank.metrics import Affine
from limerank.validation import Frozen

Floats = NDArray[np.floating]


class Task(Frozen):
    """One label that a model predicts."""

    name: str
    kind: str
    """Name of its kind, such as "binary"; see :data:`KINDS`."""
    mean: float
    """Mean label over the impressions of the training window; durations in seconds."""

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, name: str) -> str:
        if name not in KINDS:
            raise ValueError(
                f"no kind of label is called {name!r}; expected one of {', '.join(KINDS)}"
                f"{did_you_mean(name, KINDS)}"
            )
        return name

    @property
    def of_kind(self) -> Kind:
        """The object of its kind."""
        return KINDS[self.kind]


class Kind(abc.ABC):
    """A kind of label.

    Attributes:
        outputs: logits of a model for one label, o. The first one is what ranks candidates.
        stopping: metrics that validation can stop a training by, the default one first -> whether
            higher is better.
        binary: whether labels are 0 or 1, so that 1 marks a positive. The first such task is the
            main one of a log.
        catalogue: whether labels mark positives among all items, not among those that were shown:
            the objective "catalogue" learns it.
    """

    outputs: ClassVar[int] = 1
    stopping: ClassVar[Mapping[str, bool]]
    binary: ClassVar[bool] = False
    catalogue: ClassVar[bool] = False

    @abc.abstractmethod
    def loss(self, logits_no: Tensor, labels_n: Tensor, task: Task) -> Tensor:
        """Mean loss over n impressions, [], in float32."""

    @abc.abstractmethod
    def predict(self, logits_o: Tensor, task: Task) -> Tensor:
        """Expected labels [...] of logits [..., o]."""

    @abc.abstractmethod
    def measure(
        self,
        labels: Floats,
        predictions: Floats,
        users: NDArray[np.integer],
        positive: NDArray[Any],
    ) -> dict[str, float]:
        """Metrics of n predictions, the most important one first.

        Args:
            labels: outcomes, [n].
            predictions: of :meth:`predict`, [n].
            users: row of each impression's user, [n].
            positive: whether an impression is a positive of the first binary task, or without one
                has an outcome above 0, [n].
        """

    def calibrate(self, labels: Floats, predictions: Floats, task: Task) -> tuple[Affine, ...]:
        """The map of each of the task's logits that makes n predictions fit the outcomes best, and
        leaves their order as it is: (o) maps. By default the identity."""
        return (Affine(1.0, 0.0),) * self.outputs

    @abc.abstractmethod
    def separation(self, labels: Floats, values: Floats) -> tuple[str, float]:
        """The metric that tells how well values of any scale order labels: its name and value."""

    @abc.abstractmethod
    def reliability(self, labels: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        """Mean prediction and mean label of groups of alike predictions, for a plot."""

    @abc.abstractmethod
    def described(self, task: Task) -> tuple[str, str]:
        """What a prediction and what the mean label of a group is, for the axes of a plot."""


class Binary(Kind):
    """Labels 0 and 1; the prediction is a probability, the loss is cross-entropy."""

    stopping: ClassVar[Mapping[str, bool]] = {
        "calibrated_ne": False,
        "auc": True,
        "gauc": True,
        "log_loss": False,
        "ne": False,
    }
    binary = True

    def loss(self, logits_no: Tensor, labels_n: Tensor, task: Task) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits_no[:, 0].float(), labels_n)

    def predict(self, logits_o: Tensor, task: Task) -> Tensor:
        return logits_o[..., 0].sigmoid()

    def measure(
        self,
        labels: Floats,
        predictions: Floats,
        users: NDArray[np.integer],
        positive: NDArray[Any],
    ) -> dict[str, float]:
        return {
            "auc": metrics.auc(labels, predictions),
            "gauc": metrics.gauc(labels, predictions, users),
            "log_loss": metrics.log_loss(labels, predictions),
            "ne": metrics.normalized_entropy(labels, predictions),
            "calibrated_ne": metrics.calibrated_entropy(labels, predictions),
            "calibration": metrics.calibration(labels, predictions),
            "ece": metrics.ece(labels, predictions),
        }

    def calibrate(self, labels: Floats, predictions: Floats, task: Task) -> tuple[Affine, ...]:
        """Platt scaling."""
        return (metrics.platt_scaling(labels, predictions),)

    def separation(self, labels: Floats, values: Floats) -> tuple[str, float]:
        return "auc", metrics.auc(labels, values)

    def reliability(self, labels: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        bins = metrics.reliability(labels, predictions)
        return bins.prediction, bins.label

    def described(self, task: Task) -> tuple[str, str]:
        return f"probability of {task.name}", f"share with {task.name}"


class Duration(Kind):
    """Labels in seconds, 0 or more; the prediction is the expected duration.

    The loss is weighted logistic regression: every impression counts once as a negative, and once
    as a positive with the weight y / mean, ``y/mean softplus(-z) + softplus(z)``. It is least where
    ``exp(z) = E[y] / mean``.
    """

    stopping: ClassVar[Mapping[str, bool]] = {"xauc": True, "wtauc": True, "mae_s": False}

    def loss(self, logits_no: Tensor, labels_n: Tensor, task: Task) -> Tensor:
        z_n = logits_no[:, 0].float()
        weight_n = labels_n / task.mean if task.mean > 0 else labels_n
        return (weight_n * F.softplus(-z_n) + F.softplus(z_n)).mean()

    def predict(self, logits_o: Tensor, task: Task) -> Tensor:
        return logits_o[..., 0].exp() * (task.mean if task.mean > 0 else 1.0)

    def measure(
        self,
        labels: Floats,
        predictions: Floats,
        users: NDArray[np.integer],
        positive: NDArray[Any],
    ) -> dict[str, float]:
        return {
            "xauc": metrics.xauc(labels, predictions),
            "wtauc": metrics.wtauc(positive, predictions, labels),
            "mae_s": metrics.mae(labels, predictions),
            "calibration": metrics.calibration(labels, predictions),
        }

    def calibrate(self, labels: Floats, predictions: Floats, task: Task) -> tuple[Affine, ...]:
        """The factor sum y / sum of predictions, which is exp(shift); an impression of mean
        duration is added to both sums. 1 where the sum of predictions is not finite."""
        mean = task.mean if task.mean > 0 else 1.0
        predicted = float(predictions.sum(dtype=np.float64))
        if not np.isfinite(predicted):
            return (Affine(1.0, 0.0),)
        factor = (float(labels.sum(dtype=np.float64)) + mean) / (predicted + mean)
        return (Affine(1.0, float(np.log(factor))),)

    def separation(self, labels: Floats, values: Floats) -> tuple[str, float]:
        return "xauc", metrics.xauc(labels, values)

    def reliability(self, labels: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        groups = np.array_split(np.argsort(predictions, kind="stable"), 20)
        groups = [group for group in groups if len(group)]
        means = [(predictions[group].mean(), labels[group].mean()) for group in groups]
        return np.array([x for x, _ in means]), np.array([y for _, y in means])

    def described(self, task: Task) -> tuple[str, str]:
        return f"seconds of {task.name}", f"mean seconds of {task.name}"


class Positive(Kind):
    """Labels above 0 are the weights of positives, and 0 is no label: such a log does not record
    what was not chosen. The prediction is the logit, which ranks the catalogue: an item whose logit
    is larger by x is exp(x) times as likely to be the next positive.

    The loss is the softmax over the catalogue of limerank.training.catalogue.
    """

    stopping: ClassVar[Mapping[str, bool]] = {"loss": False, "ndcg@10": True, "hr@10": True}
    catalogue = True

    def loss(self, logits_no: Tensor, labels_n: Tensor, task: Task) -> Tensor:
        raise SpecError(
            f"the label {task.name!r} is of the kind positive, which impressions alone do not "
            'teach: train with objective = "catalogue"'
        )

    def predict(self, logits_o: Tensor, task: Task) -> Tensor:
        return logits_o[..., 0]

    def measure(
        self,
        labels: Floats,
        predictions: Floats,
        users: NDArray[np.integer],
        positive: NDArray[Any],
    ) -> dict[str, float]:
        """How well positives are separated from the other impressions, where there are any; ranked
        lists measure more."""
        chosen = (labels > 0).astype(np.float32)
        return {
            "auc": metrics.auc(chosen, predictions),
            "gauc": metrics.gauc(chosen, predictions, users),
        }

    def separation(self, labels: Floats, values: Floats) -> tuple[str, float]:
        return "auc", metrics.auc((labels > 0).astype(np.float32), values)

    def reliability(self, labels: Floats, predictions: Floats) -> tuple[Floats, Floats]:
        groups = np.array_split(np.argsort(predictions, kind="stable"), 20)
        groups = [group for group in groups if len(group)]
        chosen = labels > 0
        means = [(predictions[group].mean(), chosen[group].mean()) for group in groups]
        return np.array([x for x, _ in means]), np.array([y for _, y in means])

    def described(self, task: Task) -> tuple[str, str]:
        return f"score of {task.name}", f"share with {task.name}"


KINDS: dict[str, Kind] = {"binary": Binary(), "duration": Duration(), "positive": Positive()}
"""Name of a kind of label -> its object."""


def register_kind(name: str, kind: Kind) -> None:
    """Add a kind of label.

    Raises:
        ValueError: another kind has this name.
    """
    if type(KINDS.setdefault(name, kind)) is not type(kind):
        raise ValueError(
            f"a kind of label named {name!r} is already registered, of class "
            f"{type(KINDS[name]).__name__}; choose another name"
        )


def outputs(tasks: Sequence[Task]) -> int:
    """Outputs of a model with these tasks, K."""
    return sum(task.of_kind.outputs for task in tasks)


def columns(tasks: Sequence[Task]) -> list[slice]:
    """Which of a model's outputs belong to each task."""
    ends = list(accumulate(task.of_kind.outputs for task in tasks))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def liking_task(tasks: Sequence[Task]) -> int:
    """Position of the task that decides which items are liked, in ranked lists and in WTAUC: the
    first one with positives of the catalogue; without one, the first binary task; the first one
    where none is binary. Of any but a binary task, values above 0 count."""
    of_catalogue = (at for at, task in enumerate(tasks) if task.of_kind.catalogue)
    binary = (at for at, task in enumerate(tasks) if task.of_kind.binary)
    return next(of_catalogue, next(binary, 0))


def task_losses(logits: Tensor, labels: Tensor, tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Mean loss of each task over n impressions.

    Args:
        logits: f32 or bf16 [n, K].
        labels: f32 [n, number of tasks].
        tasks: of the model.
    """
    return {
        task.name: task.of_kind.loss(logits[:, own], labels[:, at], task)
        for at, (task, own) in enumerate(zip(tasks, columns(tasks), strict=True))
    }


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of named losses; a weight is 1 where none is given."""
    return torch.stack([loss * weights.get(name, 1.0) for name, loss in losses.items()]).sum()


def predictions(logits: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Predictions [..., number of tasks] of logits [..., K]: probabilities of binary tasks,
    expected seconds of durations."""
    found = [
        task.of_kind.predict(logits[..., own], task)
        for task, own in zip(tasks, columns(tasks), strict=True)
    ]
    return torch.stack(found, -1)


def stopping_metric(tasks: Sequence[Task], name: str | None) -> tuple[str, str, bool]:
    """The metric that validation stops by: task, metric, and whether higher is better.

    Args:
        tasks: of the model; by default the first one decides.
        name: such as "click/auc"; the default metric of the first task when not given.

    Raises:
        SpecError: no task has such a metric.
    """
    choices = {
        f"{task.name}/{metric}": (task.name, metric, higher)
        for task in tasks
        for metric, higher in task.of_kind.stopping.items()
    }
    if name is None:
        return next(iter(choices.values()))
    if name not in choices:
        raise SpecError(
            f"metric is {name!r}, expected one of {', '.join(choices)}{did_you_mean(name, choices)}"
        )
    return choices[name]
