"""Losses of the tasks, and what their logits mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from limerank.models.config import Task


def task_losses(logits: Tensor, labels: Tensor, tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Mean loss of each task over n impressions; logits and labels f32 [n, K].

    ``binary``: cross-entropy. ``duration``: weighted logistic regression, every impression once
    as a negative and once as a positive weighted by y / mean: ``y/mean softplus(-z) +
    softplus(z)``, least where ``exp(z) = E[y] / mean``.
    """
    losses = {}
    for place, task in enumerate(tasks):
        z, y = logits[:, place].float(), labels[:, place]
        if task.kind == "binary":
            losses[task.name] = F.binary_cross_entropy_with_logits(z, y)
        else:
            weight = y / task.mean if task.mean > 0 else y
            losses[task.name] = (weight * F.softplus(-z) + F.softplus(z)).mean()
    return losses


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of the tasks' losses; a weight is 1 where none is given."""
    return torch.stack([loss * weights.get(name, 1.0) for name, loss in losses.items()]).sum()


def predictions(logits: Tensor, tasks: Sequence[Task]) -> Tensor:
    """What logits [..., K] say: probabilities of binary tasks, expected seconds of durations."""
    columns = [
        logits[..., place].sigmoid()
        if task.kind == "binary"
        else logits[..., place].exp() * (task.mean if task.mean > 0 else 1.0)
        for place, task in enumerate(tasks)
    ]
    return torch.stack(columns, -1)
