"""How far a training has come, and the checkpoints that it resumes from."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limerank.errors import FormatError
from limerank.models import Ranker
from limerank.runs.folder import STATE, finite, load_state, save_state
from limerank.training.distributed import shards
from limerank.training.distributed.tables import sharded_tables
from limerank.training.optim import Optimiser
from limerank.world import World, agreed, decided

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
        world: the processes that train together.
    """

    def __init__(
        self, run: Path, ranker: Ranker, optimiser: Optimiser, seconds: float, world: World
    ) -> None:
        self.run, self.ranker, self.optimiser, self.world = run, ranker, optimiser, world
        self.sharded = sharded_tables(ranker)
        self.seconds = seconds
        self._saved = self._next = time.monotonic()

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return any((self.run / "trainer" / name).exists() for name in (STATE, shards.LATEST))

    def affordable(self) -> bool:
        """Whether a checkpoint now leaves their share of the time below
        :data:`CHECKPOINT_SHARE`."""
        return time.monotonic() >= self._next

    def due(self) -> bool:
        """Whether the configured time since the last one has passed, and another is affordable."""
        return self.affordable() and time.monotonic() >= self._saved + self.seconds

    def save(self, progress: Progress) -> None:
        """Replace the checkpoint in one step. All processes call it.

        Raises:
            NotFiniteError: see there; on all of them.
        """
        began = time.monotonic()
        optimiser = self.optimiser.state()
        sound = finite(self.ranker.parameters()) and finite(optimiser.values())
        if not agreed(self.world, sound):
            raise NotFiniteError("weights, or numbers of the optimiser, are not finite")
        tensors = {f"model.{name}": value for name, value in self.ranker.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser.items()}
        if self.sharded:
            for name in self.sharded:
                del tensors[f"model.{name}"]
            sums = {name: tensors.pop(f"optimiser.{name}/sums") for name in self.sharded}
            shards.save(self.run, self.world, self.sharded, sums, tensors, asdict(progress))
            if self.world.rank == 0:
                (self.run / "trainer" / STATE).unlink(missing_ok=True)
        else:
            decided(self.world, lambda: self._save(tensors, progress))
        self._saved = time.monotonic()
        self._next = self._saved + (self._saved - began) / CHECKPOINT_SHARE

    def _save(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        save_state(self.run, tensors, asdict(progress))
        shards.forget(self.run)

    def load(self) -> Progress:
        """Put the last checkpoint into the ranker and the optimiser; progress from zero without.
        Any number of processes may have written it.

        Raises:
            FormatError: the checkpoint is damaged, or of another version; or the processes have
                read different ones.
        """
        state, in_shards = load_state(self.run), shards.newest(self.run)
        of_state = -1 if state is None else state[1].get("step", 0)
        if in_shards is not None and in_shards.step > of_state:
            state = self._from_shards(in_shards)
        elif state is not None:
            self._keep_own(state[0])
        progress = Progress()
        if state is not None:
            tensors, stored = state
            try:
                self.ranker.load_state_dict(_below(tensors, "model."))
                self.optimiser.load(_below(tensors, "optimiser."))
                progress = Progress(**stored)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise FormatError(
                    f"the checkpoint in {self.run} is damaged or of another version ({error}); "
                    "pass --overwrite to train from the start"
                ) from None
        check_same_step(self.world, progress.step, self.run)
        return progress

    def _from_shards(self, stored: shards.Shards) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors of a checkpoint: of tables that are sharded now, the own rows."""
        tensors, progress = stored.rest()
        for name in stored.tables:
            table = self.sharded.get(name)
            if table is None:
                weight, sums = stored.full(name)
            else:
                weight, sums = stored.positions(name, table.low, table.high)
            tensors |= {f"model.{name}": weight, f"optimiser.{name}/sums": sums}
        return tensors, progress

    def _keep_own(self, tensors: dict[str, Tensor]) -> None:
        """Replace full tables that are sharded now by the own rows."""
        for name, table in self.sharded.items():
            for full in (f"model.{name}", f"optimiser.{name}/sums"):
                if full in tensors and len(tensors[full]) == table.layout.rows:
                    tensors[full] = table.own_part(tensors[full])


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
