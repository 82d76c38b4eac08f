"""The training of one trial: it ends by itself, or is stopped from its validations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limerank.data.dataset import Dataset
from limerank.errors import DataError, SpecError
from limerank.models.config import ModelConfig, TrainConfig
from limerank.runs.alarms import is_unfinished
from limerank.training.trainer import train

if TYPE_CHECKING:
    import optuna

QUARTERS = 4
"""A trial is compared with the others when a quarter of its epochs has passed, and again after each
further quarter: learning rates fall over all epochs, so trials are not compared by epoch."""


@dataclass(frozen=True)
class Metric:
    """The validation metric that trials are compared by."""

    task: str
    name: str
    higher_is_better: bool

    def __str__(self) -> str:
        return f"{self.task}/{self.name}"

    def best(self, values: list[float]) -> float:
        """The best of some values, at least one."""
        return max(values) if self.higher_is_better else min(values)

    def of(self, lines: list[dict[str, Any]]) -> list[float]:
        """Its value in each validation among the lines of a run's ``metrics.jsonl``."""
        return [
            float(line["validation"][self.task][self.name])
            for line in lines
            if "validation" in line
        ]


class PrunedError(Exception):
    """A trial is worse than half of the others, and is not worth its remaining epochs."""


class TimeUpError(Exception):
    """No time is left. The training resumes from its last checkpoint when it is called again."""


@dataclass(frozen=True)
class Ended:
    """How the training of a trial ended.

    Attributes:
        state: "finished", "pruned" or "failed".
        value: best value of the metric; None for a failed one.
        validation: all metrics of the task at this value, of a finished one.
        seconds: of the training; of a pruned or failed one, those since it was last started.
        problem: why it failed.
    """

    state: str
    value: float | None
    validation: dict[str, float]
    seconds: float
    problem: str = ""


def train_trial(
    trial: optuna.Trial,
    dataset: Dataset,
    run: Path,
    model: ModelConfig,
    config: TrainConfig,
    metric: Metric,
    *,
    deadline: float,
    device: str,
    note: Callable[[str], None],
) -> Ended:
    """Train a trial, or resume it, until it has finished, is pruned or fails.

    Trial 0, the defaults, is neither pruned nor stopped by the deadline, and its failure is raised.

    Args:
        trial: of Optuna.
        dataset: to train on.
        run: the run folder.
        model, config: the trial's settings.
        metric: that trials are compared by.
        deadline: instant (of ``time.monotonic``) after which no step is made.
        device: where to compute.
        note: shows a text as the progress.

    Raises:
        TimeUpError: the deadline has passed.
        DataError: the training with the defaults failed.
    """
    first = trial.number == 0
    validations = config.epochs * config.validations
    reported = set(trial.study.trials[trial.number].intermediate_values)

    def watch(line: dict[str, Any]) -> None:
        if time.monotonic() > deadline and not first:
            raise TimeUpError
        if "validation" not in line:
            return
        values = metric.of(curves(run))
        best = metric.best(values)
        note(f"trial {trial.number}, validation {len(values)}: {metric} {best:.4f}")
        quarter = QUARTERS * len(values) // validations
        if 0 < quarter < QUARTERS or len(values) == validations:
            if quarter not in reported:
                reported.add(quarter)
                trial.report(best, quarter)
            if quarter < QUARTERS and not first and trial.should_prune():
                raise PrunedError

    started = time.monotonic()

    def ended(state: str, value: float | None, problem: str = "") -> Ended:
        return Ended(state, value, {}, round(time.monotonic() - started, 3), problem)

    try:
        if not run.exists() or is_unfinished(run):  # else it was trained before a kill
            train(dataset, run, model=model, config=config, device=device, report=watch)
    except PrunedError:
        return ended("pruned", metric.best(metric.of(curves(run))))
    except (DataError, SpecError, MemoryError, torch.OutOfMemoryError) as error:
        if first:
            raise
        return ended("failed", None, " ".join(str(error).split()) or type(error).__name__)
    last = curves(run)[-1]
    validation = last["metrics"][metric.task]
    return Ended("finished", float(last[f"best_{metric}"]), validation, last["seconds"])


def curves(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; none if there is no such file yet."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
