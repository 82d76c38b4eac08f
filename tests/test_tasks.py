"""Kinds of labels: one object has the loss, the prediction, the metrics and the outputs of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from limerank.errors import SpecError
from limerank.metrics import Affine
from limerank.models.config import TrainConfig
from limerank.models.tasks import (
    KINDS,
    Kind,
    Task,
    columns,
    liking_task,
    outputs,
    predictions,
    register_kind,
    stopping_metric,
    task_losses,
)
from limerank.ranking.scorer import weights_of_tasks
from tests.worlds import SHAPE

CLICK, WATCH = SHAPE.tasks


class Interval(Kind):
    """A toy: a mean and the logarithm of a spread, with the loss of a normal distribution."""

    outputs = 2
    stopping = {"nll": False}  # noqa: RUF012

    def loss(self, logits_no, labels_n, task):
        spread_n = logits_no[:, 1].exp()
        return F.gaussian_nll_loss(logits_no[:, 0], labels_n, spread_n)

    def predict(self, logits_o, task):
        return logits_o[..., 0]

    def measure(self, labels, predictions, users, positive):
        return {"nll": float(np.square(labels - predictions).mean())}

    def separation(self, labels, values):
        return "nll", float(np.square(labels - values).mean())

    def reliability(self, labels, predictions):
        return predictions, labels

    def described(self, task):
        return task.name, task.name


@pytest.fixture
def rating():
    register_kind("interval", Interval())
    yield Task(name="rating", kind="interval", mean=3.0)
    del KINDS["interval"]


def test_each_task_has_its_own_outputs(rating):
    tasks = (CLICK, rating, WATCH)
    assert outputs(tasks) == 4
    assert columns(tasks) == [slice(0, 1), slice(1, 3), slice(3, 4)]
    logits, labels = torch.randn(5, 4), torch.rand(5, 3)
    losses = task_losses(logits, labels, tasks)
    expected = F.gaussian_nll_loss(logits[:, 1], labels[:, 1], logits[:, 2].exp())
    torch.testing.assert_close(losses["rating"], expected)
    alone = task_losses(logits[:, [0, 3]], labels[:, [0, 2]], (CLICK, WATCH))
    assert all(torch.equal(losses[name], alone[name]) for name in alone)
    found = predictions(logits, tasks)
    assert found.shape == (5, 3) and torch.equal(found[:, 1], logits[:, 1])
    assert weights_of_tasks(tasks, {"watch": 2.0}).tolist() == [0, 0, 0, 2]
    assert SHAPE.model_copy(update={"tasks": tasks}).outputs == 4


def test_the_first_binary_task_is_the_main_one(rating):
    assert liking_task((rating, WATCH, CLICK)) == 2
    assert liking_task((WATCH, rating)) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, ("click", "calibrated_ne", False)),
        ("click/auc", ("click", "auc", True)),
        ("click/ne", ("click", "ne", False)),
        ("watch/mae_s", ("watch", "mae_s", False)),
    ],
)
def test_a_metric_knows_its_direction(name, expected):
    assert stopping_metric(SHAPE.tasks, TrainConfig(metric=name).metric) == expected
    assert stopping_metric((WATCH,), None) == ("watch", "xauc", True)
    with pytest.raises(SpecError, match=r"click/auc.*did you mean 'click/auc'"):
        stopping_metric(SHAPE.tasks, "click/auk")


def test_calibration_of_each_kind(rating):
    rng = np.random.default_rng(0)
    z = rng.normal(size=4000)
    clicks = (rng.random(4000) < 1 / (1 + np.exp(-z))).astype(np.float32)
    overconfident = (1 / (1 + np.exp(-3 * z - 1))).astype(np.float32)
    ((scale, shift),) = CLICK.of_kind.calibrate(clicks, overconfident, CLICK)
    assert (scale, shift) == (pytest.approx(1 / 3, abs=0.03), pytest.approx(-1 / 3, abs=0.1))
    watched = rng.exponential(10, 4000).astype(np.float32)
    ((scale, shift),) = WATCH.of_kind.calibrate(watched, watched * 4 + 2, WATCH)
    ratio = (watched.sum(dtype=float) + 12) / ((4 * watched + 2).sum(dtype=float) + 12)
    assert scale == 1 and np.exp(shift) == pytest.approx(ratio, rel=1e-6)
    infinite = np.full(3, np.inf, np.float32)
    assert WATCH.of_kind.calibrate(watched[:3], infinite, WATCH) == (Affine(1.0, 0.0),)
    assert rating.of_kind.calibrate(watched, watched, rating) == (Affine(1.0, 0.0),) * 2


def test_an_unknown_kind_and_a_second_of_the_same_name_are_refused(rating):
    with pytest.raises(ValidationError, match=r"no kind of label is called 'binery'.*'binary'"):
        Task(name="click", kind="binery", mean=0.1)
    register_kind("interval", Interval())  # the same once more
    with pytest.raises(
        ValueError, match="'binary' is already registered, of class Binary; choose another"
    ):
        register_kind("binary", Interval())
