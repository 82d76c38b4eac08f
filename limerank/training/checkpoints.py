"""How far a training has come, and the checkpoints that it resumes from."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from limerank.errors import FormatError
from limerank.models import Ranker
from limerank.runs.folder import finite, load_state, save_state
from limerank.training.optim import Optimiser
from limerank.world import World

CHECKPOINT_SHARE = 0.05
"""Checkpoints take at most this share of a training's time: after one that took long, the next one
is delayed, even beyond the configured time."""


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: completed passes over the training split.
        batch: completed batches of the current one.
        step: completed batches of all.
        impressions: in these batches.
        seconds: spent on them, without validations and checkpoints.
        start: validation metric before the first step, of a training that starts from a run.
        best: best value of the validation metric; None before the first validation.
        best_step: after which step that was.
        waited: validations since then.
        best_metrics: metrics of the best validation: task -> metric -> value.
        calibration: the map of each logit in the stored weights, (scale, shift); empty if none.
        lines: of ``metrics.jsonl``.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    impressions: int = 0
    seconds: float = 0.0
    start: float | None = None
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    best_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    calibration: list[tuple[float, float]] = field(default_factory=list)
    lines: int = 0


def check_same_step(world: World, step: int, run: Path) -> None:
    """Refuse processes that have read different checkpoints: FormatError."""
    steps = [int(one) for one in world.gather(torch.tensor([step]))]
    if len(set(steps)) > 1:
        raise FormatError(
            f"the processes read different checkpoints in {run}, of the steps "
            f"{', '.join(map(str, steps))}: put the run on a file system that all of them share"
        )


class NotFiniteError(ArithmeticError):
    """Weights, or numbers of the optimiser, are not finite: nothing was written."""


class Checkpoints:
    """Writes the checkpoints of a run folder, and reads the last one.

    Args:
        run: the run folder.
        ranker: the model.
        optimiser: of the ranker.
        seconds: between checkpoints, at least.
    """

    def __init__(self, run: Path, ranker: Ranker, optimiser: Optimiser, seconds: float) -> None:
        self.run, self.ranker, self.optimiser = run, ranker, optimiser
        self.seconds = seconds
        self._saved = self._next = time.monotonic()

    def affordable(self) -> bool:
        """Whether a checkpoint now leaves their share of the time below
        :data:`CHECKPOINT_SHARE`."""
        return time.monotonic() >= self._next

    def due(self) -> bool:
        """Whether the configured time since the last one has passed, and another is affordable."""
        return self.affordable() and time.monotonic() >= self._saved + self.seconds

    def save(self, progress: Progress) -> None:
        """Replace the checkpoint in one step.

        Raises:
            NotFiniteError: see there.
        """
        began = time.monotonic()
        optimiser = self.optimiser.state()
        if not finite(self.ranker.parameters()) or not finite(optimiser.values()):
            raise NotFiniteError("weights, or numbers of the optimiser, are not finite")
        tensors = {f"model.{name}": value for name, value in self.ranker.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser.items()}
        save_state(self.run, tensors, asdict(progress))
        self._saved = time.monotonic()
        self._next = self._saved + (self._saved - began) / CHECKPOINT_SHARE

    def load(self) -> Progress:
        """Put the last checkpoint into the ranker and the optimiser; progress from zero without.

        Raises:
            FormatError: the checkpoint is damaged, or of another version.
        """
        stored = load_state(self.run)
        if stored is None:
            return Progress()
        tensors, progress = stored
        try:
            self.ranker.load_state_dict(_below(tensors, "model."))
            self.optimiser.load(_below(tensors, "optimiser."))
            return Progress(**progress)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise FormatError(
                f"the checkpoint in {self.run} is damaged or of another version ({error}); pass "
                "--overwrite to train from the start"
            ) from None


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
