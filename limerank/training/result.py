"""What a training returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limerank.results import Result


@dataclass(frozen=True, repr=False)
class TrainingResult(Result):
    """A finished training.

    Attributes:
        run: the run folder.
        model: the model's name.
        steps: number of batches.
        seconds: of training, validation and checkpoints not included.
        impressions_per_s: of training.
        metric: the validation metric that chose the weights, ``TASK/METRIC``.
        best: its best value, that of the weights in the run folder.
        best_step: the step of these weights.
    """

    run: Path
    model: str
    steps: int
    seconds: float
    impressions_per_s: int
    metric: str
    best: float
    best_step: int

    def to_dict(self) -> dict[str, Any]:
        """As the last line of ``metrics.jsonl``."""
        return {
            "step": self.steps,
            "done": True,
            "seconds": self.seconds,
            "best_step": self.best_step,
            f"best_{self.metric}": self.best,
            "impressions_per_s": self.impressions_per_s,
        }

    def text(self) -> str:
        return (
            f"{self.run}: {self.model}, {self.steps:,} steps in {self.seconds:.1f} s "
            f"({self.impressions_per_s:,} impressions/s); "
            f"best validation {self.metric} {self.best:.4f} at step {self.best_step:,}"
        )
