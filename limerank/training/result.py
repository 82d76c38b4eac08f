"""What a training returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from limerank.evaluation.legend import metric_title
from limerank.results import Result, rounded
from limerank.runs.alarms import Alarm, alarm_lines


@dataclass(frozen=True)
class WarmStart:
    """What a training started from.

    Attributes:
        run: folder of the earlier run.
        fingerprint: of its weights and its encoding.
        until: time of the newest impression that it was trained on, ISO 8601; None: not known, or
            the log has no clock.
        value: validation metric of its weights, on the new dataset and before training; None where
            the model was fitted again.
        new: requests that were trained on for the first time; ``replayed``: older ones.
        known_items: items of the training window that it had; ``items``: all of them.
        added: labels and features that it had not.
        dropped: those that only it had.
        optimiser: whether it has the numbers of its optimiser.
    """

    run: Path
    fingerprint: str
    until: str | None
    value: float | None
    new: int
    replayed: int
    known_items: int
    items: int
    added: Sequence[str] = ()
    dropped: Sequence[str] = ()
    optimiser: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As a part of the last line of ``metrics.jsonl``."""
        return {**asdict(self), "run": str(self.run)}

    def lines(self, metric: str) -> list[str]:
        """What a command prints of it; ``metric``: that of ``value``."""
        if self.value is None:
            return [f"fitted again, with the settings of {self.run}: counts have no start"]
        after = "" if self.until is None else f" after {self.until}"
        others = f" and {self.replayed:,} older ones" if self.replayed else ""
        found = [
            f"started from {self.run} (validation {metric} {rounded(self.value)} before training): "
            f"{self.new:,} requests{after}{others}; it had {self.known_items:,} of {self.items:,} "
            "items"
        ]
        changes = [
            f"{what}: {', '.join(names)}"
            for what, names in (("new", self.added), ("dropped", self.dropped))
            if names
        ]
        if changes:
            found.append(f"  {'; '.join(changes)}")
        if not self.optimiser:
            found.append(
                "  the run has no numbers of its optimiser (an earlier version trained it): the "
                "optimiser began as a new one"
            )
        return found


@dataclass(frozen=True, repr=False)
class TrainingResult(Result):
    """A finished training.

    Attributes:
        run: the run folder.
        model: the model's name.
        steps: number of batches; 0 of a model that is fitted by counting.
        seconds: of training, validation and checkpoints not included.
        impressions_per_s: of training.
        metric: the validation metric that chose the weights, ``TASK/METRIC``.
        best: its best value, that of the weights in the run folder.
        best_step: the step of these weights.
        metrics: of these weights on the validation split, before calibration: task -> metric ->
            value.
        calibration: the map (scale, shift) of each logit in the stored weights; empty where they
            are not calibrated.
        baselines: what is to be beaten on the validation split: task -> name -> metric -> value.
        alarms: reasons for not deploying the run.
        start: what it started from; None: from random weights.
    """

    run: Path
    model: str
    steps: int
    seconds: float
    impressions_per_s: int
    metric: str
    best: float
    best_step: int
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration: Sequence[Sequence[float]] = ()
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    alarms: Sequence[Alarm] = ()
    start: WarmStart | None = None

    @property
    def ne(self) -> dict[str, float]:
        """Normalised entropy of each binary task on the validation split, of the weights as they
        are stored."""
        of = "calibrated_ne" if self.calibration else "ne"
        return {task: found[of] for task, found in self.metrics.items() if of in found}

    def to_dict(self) -> dict[str, Any]:
        """As the last line of ``metrics.jsonl``."""
        return {
            "step": self.steps,
            "done": True,
            "seconds": self.seconds,
            "best_step": self.best_step,
            f"best_{self.metric}": self.best,
            "impressions_per_s": self.impressions_per_s,
            "metrics": {task: dict(found) for task, found in self.metrics.items()},
            "calibration": [list(pair) for pair in self.calibration],
            **({"baselines": _plain(self.baselines)} if self.baselines else {}),
            **({} if self.start is None else {"start": self.start.to_dict()}),
            "alarms": [one.to_dict() for one in self.alarms],
        }

    def text(self) -> str:
        start = [] if self.start is None else self.start.lines(self.metric)
        return "\n".join([self._summary(), *start, *alarm_lines(self.alarms)])

    def _summary(self) -> str:
        how = (
            f"{self.steps:,} steps in {self.seconds:.1f} s "
            f"({self.impressions_per_s:,} impressions/s); "
            f"best validation {self.metric} {self.best:.4f} at step {self.best_step:,}"
        )
        if not self.steps:
            how = f"fitted by counting in {self.seconds:.1f} s; validation {self.metric} "
            how += rounded(self.best)
        return (
            f"{self.run}: {self.model}, {how}\n"
            f"validation of these weights: {'; '.join(map(self._of_task, self.metrics))}"
        )

    def _of_task(self, task: str) -> str:
        found = self.metrics[task]
        if lists := _lists(found):
            others = [f"{name} {_lists(of)}" for name, of in self.baselines.get(task, {}).items()]
            return f"{task} {lists}" + (f" ({'; '.join(others)})" if others else "")
        if task not in self.ne:
            name, value = next(iter(found.items()))
            return f"{task} {metric_title(name)} {rounded(value)}"
        text = f"{task} AUC {rounded(found['auc'])}, NE {rounded(self.ne[task])}"
        return text + (f" ({rounded(found['ne'])} before calibration)" if self.calibration else "")


def _lists(found: Mapping[str, float]) -> str:
    """The metrics of ranked lists among these, such as "HR@10 0.1330, NDCG@10 0.0710"."""
    return ", ".join(
        f"{name.upper()} {rounded(value)}" for name, value in found.items() if "@" in name
    )


def _plain(
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, float]]]:
    return {
        task: {name: dict(values) for name, values in of.items()} for task, of in baselines.items()
    }
