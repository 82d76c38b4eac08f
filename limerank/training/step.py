"""One step of a training: losses of a batch, gradients, update."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limerank.models import Ranker
from limerank.models.config import TrainConfig
from limerank.models.noise import key_of
from limerank.models.tasks import total_loss
from limerank.training.impressions import Examples, Objective
from limerank.training.optim import Optimiser
from limerank.training.world import World, share_of


class Losses(NamedTuple):
    """Of one step, on this process, detached: ``total`` and each one by name."""

    total: Tensor
    named: dict[str, Tensor]


class Step:
    """Makes steps.

    Args:
        ranker: in training mode; its weights are updated in place.
        objective: which losses.
        optimiser: of the ranker.
        config: how to train.
        world: the processes that compute parts of a batch.
    """

    def __init__(
        self,
        ranker: Ranker,
        objective: Objective,
        optimiser: Optimiser,
        config: TrainConfig,
        world: World,
    ) -> None:
        self.ranker, self.objective, self.optimiser = ranker, objective, optimiser
        self.config, self.world = config, world

    def __call__(self, batch: Examples, number: int) -> Losses:
        """Make step ``number``, 0 .., with this process's part of its batch.

        Which ids are hidden follows from the training's seed and the number, on any number of
        processes; which hidden units are dropped, from the process's rank as well. Seeds torch's
        generators.
        """
        device = next(self.ranker.parameters()).device
        batch = batch.to(device)
        self.ranker.begin_step(self.config.seed, number)
        torch.manual_seed(key_of(self.config.seed, number, self.world.rank) >> 1)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.config.bf16):
            named = self.objective.losses(self.ranker, batch)
        total = total_loss(named, self.config.task_weights)
        share = share_of(self.world, batch.impressions)
        (total if share == 1.0 else total * share).backward()
        self.optimiser.step(number, self.world)
        return Losses(total.detach(), {name: loss.detach() for name, loss in named.items()})
