"""The settings that a search tries, and their ranges.

:data:`SPACE` names them once for all models: a model is searched over those that it has. Ranges of
rates and sizes lie around the defaults, which may depend on the log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from limerank.data.dataset import Dataset
from limerank.errors import SpecError
from limerank.models.config import ModelConfig, TrainConfig, configs_of
from limerank.training.objectives import objective_on

if TYPE_CHECKING:
    from optuna import Trial

DIGITS = 3
"""Significant digits of the numbers that are tried."""


class Range(Protocol):
    """The values of one setting that a search tries."""

    def suggest(self, trial: Trial, name: str) -> Any:
        """The value of the setting in a trial."""

    def __contains__(self, value: object) -> bool: ...

    def parameter(self, value: Any) -> Any:
        """How the study writes a value."""

    @property
    def text(self) -> str:
        """The range in words, such as "16 to 128 in steps of 16"."""


@dataclass(frozen=True)
class Numbers:
    """Real numbers from ``low`` to ``high``; ``log``: uniform in their logarithms."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> float:
        value = trial.suggest_float(name, self.low, self.high, log=self.log)
        return min(max(_rounded(value), self.low), self.high)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def parameter(self, value: Any) -> Any:
        return value

    @property
    def text(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (" (logarithmic)" if self.log else "")


@dataclass(frozen=True)
class Integers:
    """Integers from ``low`` to ``high`` in steps; ``log``: uniform in their logarithms."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int) or not self.low <= value <= self.high:
            return False
        return (value - self.low) % self.step == 0

    def parameter(self, value: Any) -> Any:
        return value

    @property
    def text(self) -> str:
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{self.low:,} to {self.high:,}{steps}" + (" (logarithmic)" if self.log else "")


@dataclass(frozen=True)
class Choice:
    """A few values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def parameter(self, value: Any) -> Any:
        return value

    @property
    def text(self) -> str:
        return ", ".join(json.dumps(value) for value in self.values)


@dataclass(frozen=True)
class Named:
    """A few values, each with a name in the study."""

    values: tuple[tuple[str, Any], ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        values = dict(self.values)
        return values[trial.suggest_categorical(name, tuple(values))]

    def __contains__(self, value: object) -> bool:
        return any(value == known for _, known in self.values)

    def parameter(self, value: Any) -> Any:
        return next(name for name, known in self.values if known == value)

    @property
    def text(self) -> str:
        return ", ".join(f"{name} (`{json.dumps(value)}`)" for name, value in self.values)


@dataclass(frozen=True)
class Around:
    """From ``1 / factor`` of the default to ``factor`` times the default, logarithmic."""

    factor: int

    def of(self, default: float) -> Range:
        if isinstance(default, int):
            low, high = max(math.ceil(default / self.factor), 1), default * self.factor
            return Integers(low, high, log=True)
        return Numbers(_rounded(default / self.factor), _rounded(default * self.factor), log=True)

    @property
    def text(self) -> str:
        return f"1/{self.factor} to {self.factor} times the default (logarithmic)"


@dataclass(frozen=True)
class Quarters:
    """One, two, three or four quarters of the default."""

    def of(self, default: int) -> Range:
        step = max(default // 4, 1)
        return Integers(default - min(3, (default - 1) // step) * step, default, step)

    @property
    def text(self) -> str:
        return "1/4, 1/2, 3/4 or all of the dataset's length"


SPACE: dict[str, Range | Around | Quarters] = {
    "learning_rate": Around(4),
    "table_learning_rate": Around(4),
    "batch_size": Around(4),
    "epochs": Around(2),
    "weight_decay": Around(10),
    "table_accumulator": Choice((0, 1, 3, 9, 30, 100)),
    "table_weight_decay": Choice((0, 0.001, 0.01, 0.1)),
    "history": Quarters(),
    "dropout": Numbers(0, 0.4),
    "id_dropout": Numbers(0, 0.5),
    "id_evidence": Choice((0, 3, 10, 30)),
    "vectors": Choice((0, 16, 32, 64)),
    "base_rates": Choice((False, True)),
    "counter_hours": Choice((0, 1)),
    "anchors": Named((("none", []), ("items", ["item"]), ("all", None))),
    "width": Integers(32, 128, 32),
    "hidden": Integers(16, 64, 16),
    "heads": Choice((1, 2, 4, 8)),
    "links": Integers(16, 128, 16),
    "blocks": Integers(1, 4),
    "slots": Integers(16, 64, 16),
    "events": Integers(16, 128, 16),
}
"""Setting -> its range, or how the range follows from the default."""


def defaults_of(model: ModelConfig, config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Values of all settings as a training on this dataset uses them, where those that are not set
    follow from the dataset."""
    found = {**config.model_dump(mode="json"), **model.model_dump(mode="json")}
    objective = objective_on(dataset, config)
    found["batch_size"] = objective.batch_size
    rates = objective.rates
    found["learning_rate"], found["table_learning_rate"] = rates.dense, rates.tables
    found["table_accumulator"] = rates.accumulator
    found["history"] = config.history or dataset.manifest["spec"]["history"]["length"]
    return found


def space_of(
    model: ModelConfig, config: TrainConfig, fixed: Mapping[str, Any], dataset: Dataset
) -> dict[str, Range]:
    """The ranges of the settings that a search varies.

    Args:
        model, config: the defaults, with the fixed settings.
        fixed: settings that keep their values.
        dataset: where defaults of some settings follow from.

    Returns:
        Setting -> range; each contains the default, and each of its values is valid beside the
        defaults of the others.
    """
    defaults = defaults_of(model, config, dataset)
    found: dict[str, Range] = {}
    for name, given in SPACE.items():
        if name in fixed or name not in defaults:
            continue
        default = defaults[name]
        one = given.of(default) if isinstance(given, Around | Quarters) else given
        valid = _valid(_with(one, default), name, model.model, fixed)
        if valid is not None:
            found[name] = valid
    return found


def _with(one: Range, default: Any) -> Range:
    """The range, extended where it lacks the default."""
    if default in one:
        return one
    if isinstance(one, Numbers):
        return Numbers(min(one.low, default), max(one.high, default), one.log)
    if isinstance(one, Named):
        return Named((*one.values, ("default", default)))
    values = one.values if isinstance(one, Choice) else _values(one)
    return Choice(tuple(sorted({*values, default})))


def _valid(one: Range, name: str, model: str, fixed: Mapping[str, Any]) -> Range | None:
    """The range without values that do not fit the fixed settings; None where one value remains."""
    if isinstance(one, Numbers):
        return one if one.low < one.high else None
    if isinstance(one, Named):
        return one
    if isinstance(one, Integers) and one.log:
        return one if one.low < one.high else None
    values = one.values if isinstance(one, Choice) else _values(one)
    fit = tuple(value for value in values if _fits(model, {**fixed, name: value}))
    if len(fit) < 2:
        return None
    return one if fit == values else Choice(fit)


def _values(one: Range) -> tuple[int, ...]:
    assert isinstance(one, Integers)
    return tuple(range(one.low, one.high + 1, one.step))


def _fits(model: str, settings: Mapping[str, Any]) -> bool:
    try:
        configs_of(model, settings)
    except SpecError:
        return False
    return True


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
