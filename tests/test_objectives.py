"""Objectives: one from outside brings batches, negatives, outputs and a metric of its own.

One file is touched, its own; within the package it takes one line more, in the table of objectives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from limerank.data.batch import Batch, Items
from limerank.errors import SpecError, UnknownError
from limerank.evaluation.evaluate import evaluate
from limerank.index import Index
from limerank.index.building import build_index
from limerank.models.config import TrainConfig
from limerank.models.tasks import KINDS, Kind, Task, columns, register_kind
from limerank.ranking.recommender import Recommender
from limerank.runs.folder import load_run
from limerank.training.objectives import OBJECTIVES, Impressions, Measured, register_objective
from limerank.training.trainer import train
from tests.worlds import config_of, prepare_log

NEGATIVES = 16


class Preference(Kind):
    """A logit that orders items; the log has no label of it."""

    stopping = {"loss": False}  # noqa: RUF012

    def loss(self, logits_no, labels_n, task):
        raise AssertionError("the objective computes it")

    def predict(self, logits_o, task):
        return logits_o[..., 0]

    def measure(self, labels, predictions, users, positive):
        raise AssertionError("there are no labels")

    separation = reliability = measure

    def described(self, task):
        return task.name, task.name


@dataclass(frozen=True)
class WithNegatives:
    """A batch of impressions, and items that are drawn at random for all of its requests."""

    batch: Batch
    negatives: Items

    @property
    def impressions(self) -> int:
        return self.batch.impressions

    @property
    def unpadded(self) -> int:
        return self.batch.unpadded

    @property
    def computed(self) -> int:
        return self.batch.computed

    def to(self, device):
        return WithNegatives(self.batch.to(device), self.negatives.to(device))


class NextItem(Impressions):
    """The labels of impressions as ever; and a softmax of clicked items among random ones."""

    @classmethod
    def tasks(cls, shape, config):
        return (*shape.tasks, Task(name="next", kind="preference", mean=0.0))

    def batches(self, plan):
        for rows, batch in zip(plan, super().batches(plan), strict=True):
            drawn = np.random.default_rng([self.config.seed, int(rows[0])])
            negatives = drawn.integers(0, len(self.dataset.items), NEGATIVES)
            yield WithNegatives(batch, self.dataset.item_batch(negatives))

    def losses(self, ranker, batch):
        impressions, own = batch.batch, columns(self.shape.tasks)[-1]
        real = impressions.real
        labelled = self.shape.tasks[:-1]
        logits = ranker(impressions)[real]
        losses = {
            task.name: task.of_kind.loss(logits[:, [at]], impressions.labels[real][:, at], task)
            for at, task in enumerate(labelled)
        }
        vectors = ranker.item_vectors(impressions.items)
        state = ranker.encode_users(impressions.users, vectors)
        drawn = ranker.score(state, ranker.encode_items(ranker.item_vectors(batch.negatives)))
        request = real.nonzero()[:, 0]
        among = torch.cat([logits[:, own], drawn[request][..., own.start]], 1)
        clicked = impressions.labels[real][:, 0] > 0
        losses["next"] = F.cross_entropy(among[clicked], among.new_zeros(int(clicked.sum())).long())
        return losses

    def stopping(self):
        return "next", "loss", False

    def measure(self, ranker, requests):
        found = super().measure(ranker, requests)
        batch = next(iter(self.batches([requests])))
        ranker.eval()
        with torch.inference_mode():
            loss = float(self.losses(ranker, batch)["next"])
        ranker.train()
        return Measured({**found.metrics, "next": {"loss": loss}}, found.link_use)


@pytest.fixture
def next_item():
    register_kind("preference", Preference())
    register_objective("next", NextItem)
    yield
    del KINDS["preference"], OBJECTIVES["next"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_log(tmp_path_factory.mktemp("objectives"), users=60)


@pytest.mark.parametrize("model", ["lime-mha", "two-tower"])
def test_an_objective_from_outside_is_trained_indexed_and_ranked(next_item, data, tmp_path, model):
    lines = []
    result = train(
        data,
        tmp_path / "run",
        model=config_of(model, width=8, links=4, hidden=6),
        config=TrainConfig(objective="next", epochs=3, task_weights={"next": 2.0}),
        report=lines.append,
    )
    losses = [line["loss_next"] for line in lines if "loss_next" in line]
    assert losses[-1] < losses[0] and result.metric == "next/loss"
    run = load_run(tmp_path / "run")
    assert [task.name for task in run.ranker.shape.tasks] == ["click", "watch", "next"]
    found = evaluate(run.path)
    assert set(found.tasks) == {"click", "watch"} and found.lists["requests"] > 0
    build_index(run, tmp_path / "index", data=data)
    recommender = Recommender(run, Index.open(tmp_path / "index", run.fingerprint))
    ranking = recommender.rank(history=[3, 4], k=5, task_weights={"next": 1.0})
    assert [item.scores["next"] for item in ranking] == pytest.approx(
        [item.value for item in ranking], abs=1e-5
    )


def test_unknown_names_are_refused(data, tmp_path):
    with pytest.raises(SpecError, match=r"no objective 'impresions'.*did you mean 'impressions'"):
        train(data, tmp_path / "run", config=TrainConfig(objective="impresions"))
    with pytest.raises(UnknownError, match="no task is called 'next'"):
        train(data, tmp_path / "run", config=TrainConfig(task_weights={"next": 1.0}))
    register_objective("impressions", Impressions)  # the same once more
    with pytest.raises(
        ValueError,
        match="'impressions' is already registered, of class Impressions; choose another",
    ):
        register_objective("impressions", NextItem)
