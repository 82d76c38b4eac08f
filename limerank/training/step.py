"""One step of a training: losses of a batch, gradients, update."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limerank.models import Ranker
from limerank.models.config import TrainConfig
from limerank.models.noise import key_of
from limerank.models.tasks import total_loss
from limerank.training.distributed.gradients import sum_gradients
from limerank.training.distributed.tables import sharded_tables
from limerank.training.impressions import Examples, Objective
from limerank.training.optim import Optimiser
from limerank.world import World


class Losses(NamedTuple):
    """Of one step.

    Attributes:
        total, named: means over the impressions of all processes, detached.
        impressions: of all processes, or other terms that the losses are means over.
        wishes: those of process 0.
    """

    total: Tensor
    named: dict[str, Tensor]
    impressions: int
    wishes: tuple[bool, ...]


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
        self.sharded = sharded_tables(ranker)
        own = {id(part.weight) for part in self.sharded.values()}
        self.replicated = [one for one in optimiser.tables.tables if id(one) not in own]

    def __call__(
        self, batch: Examples, number: int, counts: bool = True, wishes: tuple[bool, ...] = ()
    ) -> Losses:
        """Make step ``number``, 0 .., with this process's part of its batch.

        Args:
            batch: the part.
            number: of the step.
            counts: whether it is a part of the step, and not a spare one.
            wishes: what is to be done after the step; process 0 decides.

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
        terms = batch.impressions if counts else 0
        if self.world.size == 1:
            total.backward()
            losses = [total, *named.values()]
        else:
            (total * terms).backward()
            decided = [float(one) if self.world.rank == 0 else 0.0 for one in wishes]
            own = total.new_tensor([terms, *decided])
            of_losses = torch.stack([total, *named.values()]).detach() * terms
            sums = sum_gradients(
                self.world,
                self.optimiser.dense,
                self.replicated,
                torch.cat([own, of_losses]),
            )
            for part in self.sharded.values():
                part.push(1 / sums[0].clamp(min=1))
            terms, *found = sums[: len(own)].tolist()
            wishes = tuple(one > 0 for one in found)
            losses = list(sums[len(own) :] / max(terms, 1))
        self.optimiser.step(number)
        total, *rest = (loss.detach() for loss in losses)
        return Losses(total, dict(zip(named, rest, strict=True)), int(terms), wishes)
