"""What a search for settings returns."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limerank.evaluation.legend import metric_title
from limerank.models.config import ModelConfig, TrainConfig
from limerank.results import TableResult, aligned, none_for_nan, rounded
from limerank.runs.alarms import Alarm, alarm_lines

SHOWN_TRIALS = 8
"""Trials that the text shows, best first."""
STEPS = (1, 2, 5)
"""The text gives the best value after 1, 2, 5, 10, 20, 50, ... trials."""


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Attributes:
        number: 0 is the training with the defaults.
        state: "finished"; "pruned", stopped early because it was worse than half of the trials at
            the same share of their epochs; "failed", see ``problem``; or "unfinished".
        value: best value of the validation metric, NaN where there is none.
        settings: the settings that differ from the defaults, without the fixed ones.
        validation: all validation metrics of the main task at this value, by name.
        seconds: of the training.
        problem: why it failed, else empty.
    """

    number: int
    state: str
    value: float
    settings: Mapping[str, Any]
    validation: Mapping[str, float]
    seconds: float
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "value": none_for_nan(self.value)}

    def assignments(self) -> str:
        """The settings as options of ``limerank train``; empty for the defaults."""
        return " ".join(f"--set {name}={json.dumps(v)}" for name, v in self.settings.items())


@dataclass(frozen=True, repr=False)
class TuningResult(TableResult):
    """A search for settings: a row for each trial.

    Attributes:
        out: folder of the search.
        metric: validation metric that trials are compared by, ``TASK/METRIC``.
        higher_is_better: whether higher values of it are better.
        model, config: the best settings: ``train(data, out, model=result.model,
            config=result.config)`` repeats the best trial.
        trials: by number.
        alarms: reasons for not deploying the run of the best trial.
    """

    out: Path
    metric: str
    higher_is_better: bool
    model: ModelConfig
    config: TrainConfig
    trials: tuple[Trial, ...]
    alarms: Sequence[Alarm] = ()

    @property
    def run(self) -> Path:
        """Run folder of the best trial, with its weights."""
        return self.out / "best"

    @property
    def defaults(self) -> Trial:
        """The trial with the defaults."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The best finished trial, the earliest of equal ones."""
        return self._ranked()[0]

    @property
    def gain(self) -> float:
        """Value of the best trial minus that of the defaults, positive where it is better; never
        negative, and NaN while the defaults are unfinished."""
        return self._better(self.best)

    def curve(self) -> dict[int, float]:
        """Number of trials -> the best value among the first ones that are so many."""
        found: dict[int, float] = {}
        best = math.nan
        for count, trial in enumerate(self.trials, 1):
            if trial.state == "finished":
                better = max if self.higher_is_better else min
                best = trial.value if math.isnan(best) else better(best, trial.value)
            found[count] = best
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "best": self.best.number,
            "gain": none_for_nan(self.gain),
            "model": self.model.model_dump(mode="json"),
            "train": self.config.model_dump(mode="json"),
            "trials": [trial.to_dict() for trial in self.trials],
            "alarms": [one.to_dict() for one in self.alarms],
        }

    def columns(self) -> dict[str, list[Any]]:
        """The trials by number; a setting is null where a trial has the default."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.settings)
        return {
            "trial": [trial.number for trial in self.trials],
            "state": [trial.state for trial in self.trials],
            self.metric: [none_for_nan(trial.value) for trial in self.trials],
            "seconds": [trial.seconds for trial in self.trials],
            **{name: [trial.settings.get(name) for trial in self.trials] for name in names},
        }

    def caption(self) -> str:
        count = Counter(trial.state for trial in self.trials)
        states = ", ".join(f"{number} {state}" for state, number in count.most_common())
        return (
            f"{self.out}: {self.model.model}, {len(self.trials)} "
            f"{'trial' if len(self.trials) == 1 else 'trials'} ({states}), "
            f"compared by validation {self.metric}"
        )

    def text(self) -> str:
        """The best trials and the defaults, then what the search gained."""
        ranked = self._ranked()
        shown = ranked[:SHOWN_TRIALS]
        if self.defaults in ranked and self.defaults not in shown:
            shown.append(self.defaults)
        other = self._other()
        rows = [("trial", self.metric, "gain", metric_title(other), "settings")]
        for trial in shown:
            gain = "" if trial is self.defaults else f"{self._better(trial):+.4f}"
            settings = " ".join(f"{name}={json.dumps(v)}" for name, v in trial.settings.items())
            rows.append(
                (
                    str(trial.number),
                    rounded(trial.value),
                    gain,
                    rounded(trial.validation.get(other, math.nan)),
                    settings or "the defaults",
                )
            )
        after = {count: value for count, value in self.curve().items() if self._shown(count)}
        lines = [
            self.caption(),
            "",
            *aligned(rows, ">>>><"),
            "",
            "  best after "
            + ", ".join(f"{count}: {rounded(value)}" for count, value in after.items())
            + " trials",
        ]
        if self.best is self.defaults:
            lines.append("  no trial is better than the defaults")
        else:
            lines += [
                f"  best settings: {self.best.assignments()}",
                f"  gain over the defaults: {self.gain:+.4f} on the validation split, which chose "
                "among the trials;",
                "  measure it on the test split",
            ]
        return "\n".join([*lines, *alarm_lines(self.alarms)])

    def _ranked(self) -> list[Trial]:
        finished = [trial for trial in self.trials if trial.state == "finished"]
        sign = -1 if self.higher_is_better else 1
        return sorted(finished, key=lambda trial: sign * trial.value)

    def _other(self) -> str:
        """A second metric that the text shows: AUC, or how well probabilities fit."""
        known = ("auc", "xauc", "calibrated_ne", "mae_s")
        own = self.metric.rpartition("/")[2]
        found = (name for name in known if name in self.best.validation and name != own)
        return next(found, "")

    def _better(self, trial: Trial) -> float:
        if self.defaults.state != "finished":
            return math.nan
        return (trial.value - self.defaults.value) * (1 if self.higher_is_better else -1)

    def _shown(self, count: int) -> bool:
        if count == len(self.trials):
            return True
        while count % 10 == 0:
            count //= 10
        return count in STEPS
