"""Optimisers: AdamW for dense weights, row-wise Adagrad for embedding tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limerank.models.config import TrainConfig
from limerank.models.tables import EmbeddingTable


class EmbeddingAdagrad:
    """Adagrad with one number of state per row, for tables with sparse gradients.

    ``s_r += mean(g_r ** 2)``; ``w_r -= rate * g_r / (sqrt(s_r + start) + eps)``. A step costs what
    the batch touches: rows without a gradient are neither read nor written. Without ``start``, the
    first gradient of a row moves it as far as any, however small it is: rows that few impressions
    use become the noise of those impressions.

    Args:
        tables: weights, [R, d] each.
        decay: decoupled weight decay.
        start: the initial accumulator of each row; ``sums`` are without it.
        eps: keeps the divisor above zero.
    """

    def __init__(
        self, tables: Iterable[Tensor], decay: float, start: float = 0.0, eps: float = 1e-8
    ) -> None:
        self.tables = list(tables)
        self.sums = [table.new_zeros(len(table), requires_grad=False) for table in self.tables]
        self.decay, self.start, self.eps = decay, start, eps

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for table, sums_r in zip(self.tables, self.sums, strict=True):
            if table.grad is None:
                continue
            grad = table.grad.coalesce()
            rows, values_rd = grad.indices()[0], grad.values()
            sums = sums_r.index_select(0, rows) + values_rd.square().mean(1)
            sums_r.index_copy_(0, rows, sums)
            step_rd = values_rd * (-rate / ((sums + self.start).sqrt() + self.eps))[:, None]
            if self.decay:
                step_rd -= rate * self.decay * table.index_select(0, rows)
            table.index_add_(0, rows, step_rd)


class Rates(NamedTuple):
    """Peak learning rates of the dense weights and of the embedding tables, for batches of 1,024
    impressions (see :func:`rate_scale`), and the initial accumulator of the rows of tables, in
    squared gradients of one impression's loss."""

    dense: float = 3e-3
    tables: float = 0.1
    accumulator: float = 9.0


def rate_scale(impressions: int) -> float:
    """The factor of learning rates for batches of so many impressions."""
    return math.sqrt(impressions / 1024)


class Optimiser:
    """Both optimisers, the schedule of the learning rate and gradient clipping, as one step.

    Args:
        model: the model that is trained.
        config: decay, warm-up and clipping.
        steps: of the full training.
        impressions: of a batch.
        rates: learning rates.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        steps: int,
        impressions: int = 1024,
        rates: Rates = Rates(),  # noqa: B008  # immutable
    ) -> None:
        self.scale, self.rates = rate_scale(impressions), rates
        tables = [part.weight for part in model.modules() if isinstance(part, EmbeddingTable)]
        of_tables = {id(table) for table in tables}
        dense = [weight for weight in model.parameters() if id(weight) not in of_tables]
        self.config, self.steps = config, steps
        self.dense = dense
        self._names = {id(weight): name for name, weight in model.named_parameters()}
        self.adam = torch.optim.AdamW(
            [
                {"params": [w for w in dense if w.dim() > 1], "weight_decay": config.weight_decay},
                {"params": [w for w in dense if w.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=rates.dense,
            betas=(0.9, 0.99),
            foreach=True,
        )
        # The loss is a mean over the batch: one impression's share of its gradient is 1 / n.
        start = rates.accumulator / impressions**2
        self.tables = EmbeddingAdagrad(tables, config.table_weight_decay, start)

    def share(self, step: int) -> float:
        """The learning rate of a step (0 ..) as a share of its peak: rise, then a cosine to 0."""
        warm = self.config.warmup * self.steps
        if step < warm:
            return (step + 1) / (warm + 1)
        done = (step - warm) / max(self.steps - warm, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def step(self, step: int) -> None:
        """Update the weights from their gradients, and drop the gradients; ``step``: 0 .."""
        share = self.share(step)
        nn.utils.clip_grad_norm_(self.dense, self.config.clip)
        for group in self.adam.param_groups:
            group["lr"] = self.rates.dense * self.scale * share
        self.adam.step()
        self.tables.step(self.rates.tables * self.scale * share)
        for weight in (*self.dense, *self.tables.tables):
            weight.grad = None

    def state(self) -> dict[str, Tensor]:
        """All state for a checkpoint, by the names of weights in the model: ``WEIGHT/sums`` of
        tables, ``WEIGHT/NAME`` of the numbers that AdamW has of dense weights."""
        tensors = self.sums()
        for weight in self.dense:
            for name, value in self.adam.state.get(weight, {}).items():
                tensors[f"{self._names[id(weight)]}/{name}"] = value
        return tensors

    def sums(self) -> dict[str, Tensor]:
        """The part of :meth:`state` that tables have."""
        return {
            f"{self._names[id(table)]}/sums": sums
            for table, sums in zip(self.tables.tables, self.tables.sums, strict=True)
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` gave, each number on the device of its weight: a training that
        began on a GPU is resumed from a checkpoint that was read into the memory of the host.

        Raises:
            KeyError: the state is of other weights.
        """
        of_weights: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            weight_name, _, own = name.rpartition("/")
            of_weights.setdefault(weight_name, {})[own] = value
        for table, sums in zip(self.tables.tables, self.tables.sums, strict=True):
            sums.copy_(of_weights.pop(self._names[id(table)])["sums"])
        for weight in self.dense:
            if (state := of_weights.pop(self._names[id(weight)], None)) is not None:
                self.adam.state[weight] = {
                    # AdamW counts steps in host memory, wherever the weight is.
                    own: value.clone() if own == "step" else value.to(weight.device, copy=True)
                    for own, value in state.items()
                }
        if of_weights:
            raise KeyError(f"no weights {', '.join(of_weights)}")
