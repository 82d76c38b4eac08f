"""Fitting a model by counting into a run folder: one pass, then its calibration and self-test."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import torch

from limerank.data.dataset import Dataset
from limerank.data.interactions import TrainingInteractions
from limerank.devices import device_of
from limerank.errors import DataError
from limerank.models import build
from limerank.models.config import DataShape, ModelConfig, TrainConfig
from limerank.models.registry import model_of
from limerank.runs import selftest
from limerank.runs.folder import save_weights
from limerank.training.checkpoints import Progress
from limerank.training.objectives import objective_of
from limerank.training.reporting import Curves, Report, finish
from limerank.training.result import TrainingResult, WarmStart

TRIED = 4
"""Requests whose scores are stored beside the weights; see limerank.runs.selftest."""


def fit(
    dataset: Dataset,
    out: Path,
    shape: DataShape,
    model: ModelConfig,
    config: TrainConfig,
    device: str,
    listeners: list[Report],
    start: WarmStart | None = None,
    quiet: bool = True,
) -> TrainingResult:
    """Fit a model that is :attr:`~limerank.models.ranker.Ranker.fitted` and write its weights.

    Args:
        out: a run folder that :func:`~limerank.runs.folder.create_run` laid out.
        shape: of the model.
        listeners: called with the line of ``metrics.jsonl``.
        start: of an earlier run; counts begin again all the same.
        quiet: show no progress.

    Raises:
        DataError: the training or the validation split is empty.
    """
    objective = objective_of(config.objective, shape.tasks)(dataset, shape, config)
    held_out = dataset.requests_of("validation")
    for split, rows in (("training", objective.requests), ("validation", held_out)):
        if not len(rows):
            raise DataError(
                f"{dataset.path} has no requests in its {split} split; "
                "prepare it with other split points"
            )
    objective.check(model_of(model.model), held_out)
    task, metric, _ = objective.stopping()
    ranker = build(shape, model)
    started = time.monotonic()
    with torch.no_grad():
        ranker.fit(TrainingInteractions(dataset), quiet)
    seconds = time.monotonic() - started
    ranker.to(device_of(device))
    found = objective.measure(ranker, held_out)
    few = dataset.batch(held_out[:TRIED], config.history).to(device)
    with ranker.calibrated(found.calibration) if found.calibration else nullcontext():
        save_weights(out, ranker)
        selftest.write(out, ranker, few)
    impressions = int(dataset.requests["count"][objective.requests].sum())
    result = TrainingResult(
        run=out,
        model=model.model,
        steps=0,
        seconds=round(seconds, 3),
        impressions_per_s=round(impressions / max(seconds, 1e-9)),
        metric=f"{task}/{metric}",
        best=found.metrics[task][metric],
        best_step=0,
        metrics=found.metrics,
        calibration=[(one.scale, one.shift) for one in found.calibration],
        start=start,
    )
    curves = Curves(out, listeners)
    curves.write(result.to_dict(), Progress())
    finish(out, curves, result.alarms)
    return result
