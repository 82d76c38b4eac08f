"""The objective of logs of positives: every positive is to be found in the full catalogue.

A request has a set P of positives, each with a weight w. Its logits s rank the items::

    loss = sum over p in P of w_p log(1 + exp(L - s_p)),   L = log of the sum over i in S without P
                                                               of exp(s_i - log q_i)

That is the cross-entropy of a softmax in which the other positives of the request do not count as
negatives. S is the catalogue, or a sample of it that all requests of the batch share, and q_i the
probability that item i is in it (limerank.training.negatives); with the full catalogue, log q is 0.

The sum of the losses is divided by the number of positives in the batch and by their mean weight in
the training split. A log may have other labels besides: their losses are means over impressions,
and so is this one then, scaled by the impressions per positive of the training split.

With exact histories each positive is a request of its own, and sees exactly the events before it.

Shape letters: B requests, P own candidates of each, S shared items, K logits, T tasks of positives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from limerank.data.batch import Batch, Sequences
from limerank.data.dataset import Dataset
from limerank.data.interactions import TrainingInteractions, event_counts
from limerank.data.pipeline import ahead
from limerank.errors import DataError, SpecError
from limerank.models import Ranker, build
from limerank.models.config import DataShape, ModelConfig, TrainConfig, config_class
from limerank.models.ranker import gather
from limerank.models.registry import Model
from limerank.models.tasks import Task, columns
from limerank.training.held_out import HeldOut
from limerank.training.impressions import (
    Impressions,
    Measured,
    Rows,
    batch_size,
    impression_losses,
)
from limerank.training.negatives import Negatives
from limerank.training.optim import Rates, rate_scale
from limerank.training.positives import Positives, positives
from limerank.training.softmax import shared_softmax

PAIRS = 1 << 24
"""Pairs of a request and an item in an epoch, about, where ``negatives`` is not set: as many items
are drawn for each batch, or the softmax is over the full catalogue where that is fewer."""
LEAST, PAIRWISE_LEAST = 1000, 128
"""Items that are drawn for a batch even if an epoch then has more pairs: for models that read a
history once for all candidates, and for those that read it for each one (Ranker.pairwise)."""
BASELINES = "most-popular", "item-knn"
"""Models that validations are compared with."""
FEW_REQUESTS = 100
"""Fewer validation requests are too few to choose weights by, and a training says so."""
RATES = Rates(0.0075, 0.0125, 0.0)
"""Learning rates of a batch."""


@dataclass(frozen=True)
class Requests:
    """The requests of a step, or its impressions with exact histories, and the items they share.

    Attributes:
        batch: with ``shared`` items.
        log_inclusion: logarithm of the probability that each shared item is among them, f32 [S].
        impressions: how many terms the losses are means over.
    """

    batch: Batch | Sequences
    log_inclusion: Tensor
    impressions: int

    @property
    def unpadded(self) -> int:
        return self.batch.unpadded

    @property
    def computed(self) -> int:
        return self.batch.computed

    def to(self, device: Any) -> Self:
        moved = self.log_inclusion.to(device)
        return replace(self, batch=self.batch.to(device), log_inclusion=moved)


class Catalogue(Impressions):
    """Positives among all items; other labels of the log as in :class:`Impressions`."""

    in_order = True

    def __init__(self, dataset: Dataset, shape: DataShape, config: TrainConfig) -> None:
        super().__init__(dataset, shape, config)
        self.ranked = [task for task in shape.tasks if task.of_kind.catalogue]
        """Tasks of positives; ``outputs``: their logits."""
        self.outputs = [
            own.start
            for task, own in zip(shape.tasks, columns(shape.tasks), strict=True)
            if task.of_kind.catalogue
        ]
        self.alone = len(self.ranked) == len(shape.tasks)
        self.positives = found = self._positives(self.requests)
        if self.alone:
            some = found.of_requests > 0
            self.requests, self.counts = self.requests[some], found.of_requests[some]
            self.item_counts = event_counts(dataset)
            self.batch_size = batch_size(config, found.total)
        self.negatives: Negatives
        self._split_requests = int(self.counts.sum()) if config.exact else len(self.counts)
        self.scales = self._scales()

    def _scales(self) -> dict[str, float]:
        """Terms of an epoch per weight of the positives of each task."""
        total = int(self.counts.sum())
        of_tasks = self.positives.weights.items()
        return {name: total / weight for name, weight in of_tasks if weight > 0}

    def learn_from(self, requests: Rows) -> None:
        super().learn_from(requests)
        self.positives = self._positives(self.requests)
        self.scales |= self._scales()
        self.negatives = self.negatives.drawn_for(self.positives.of_items)

    def _positives(self, requests: Rows) -> Positives:
        return positives(self.dataset, requests, [task.name for task in self.ranked])

    def usual_rates(self) -> Rates:
        """Where positives are learned alone, batches of any size have the same rates."""
        if not self.alone:
            return super().usual_rates()
        scale = rate_scale(self.batch_size)
        return RATES._replace(dense=RATES.dense / scale, tables=RATES.tables / scale)

    @classmethod
    def tasks(cls, shape: DataShape, config: TrainConfig) -> tuple[Task, ...]:
        if not any(task.of_kind.catalogue for task in shape.tasks):
            found = ", ".join(f"{task.name} ({task.kind})" for task in shape.tasks)
            raise SpecError(
                f"the objective catalogue learns labels of the kind positive; got {found}: leave "
                'objective out, or describe what users chose as a label with kind = "positive"'
            )
        return shape.tasks

    @classmethod
    def model_shape(cls, shape: DataShape, model: ModelConfig, config: TrainConfig) -> DataShape:
        found = super().model_shape(shape, model, config)
        return found.model_copy(update={"counted": 0})  # of items that were shown

    def check(self, model: Model, held_out: Rows) -> None:
        super().check(model, held_out)
        path = self.dataset.path
        of_split = self._positives(held_out).weights
        for task in self.ranked:
            for split, weights in (
                ("training", self.positives.weights),
                ("validation", of_split),
            ):
                if not weights[task.name]:
                    raise DataError(
                        f"{path} has no positive of {task.name!r} in its {split} split; check the "
                        "label's column and values (limerank prepare prints them), or prepare it "
                        "with other split points"
                    )
        items = self.dataset.trained_items
        if items < 2:
            raise DataError(
                f"{path} has one item in its training split, expected two or more: there is "
                "nothing to rank; check the item column, or prepare it with other split points"
            )
        pairwise = model.ranker.pairwise
        self.negatives = Negatives(
            self.positives.of_items, self._uniform(pairwise), self.config.seed
        )
        self.held_out = HeldOut(
            self.dataset,
            held_out,
            [task.name for task in self.ranked],
            self.outputs,
            self.config.validation_requests,
            pairwise,
            self.config.history,
        )

    def _uniform(self, pairwise: bool) -> int:
        """How many items are drawn for a batch; all of them where the softmax is full. Requests of
        the full training split decide, also where few of them are learned from."""
        if self.config.negatives is not None:
            return self.config.negatives or self.dataset.trained_items
        least = PAIRWISE_LEAST if pairwise else LEAST
        return max(PAIRS // max(self._split_requests, 1), least)

    def batches(self, plan: Sequence[Rows]) -> Iterator[Requests]:
        made = ahead(map(self._requests, plan))
        for rows, one in zip(plan, made, strict=True):
            yield replace(one, batch=self.with_statistics(one.batch, rows))

    def _requests(self, of_step: Rows) -> Requests:
        """This process's part of the requests of a step. All parts share the items that the full
        step draws."""
        rows = self.part(of_step)
        chosen, items = self._chosen(of_step)
        shared, log_inclusion = self.negatives.draw(of_step, items)
        if len(rows) < len(of_step):
            chosen, items = self._chosen(rows)
        batch: Batch | Sequences
        if self.config.exact:
            batch = self.dataset.sequences(rows, shared)
            if self.alone:
                batch = batch.take(torch.from_numpy(np.flatnonzero(chosen)))
        else:
            batch = self.dataset.batch(rows, self.config.history, shared)
        terms = len(items) if self.alone else batch.impressions
        return Requests(batch, torch.from_numpy(log_inclusion), terms)

    def _chosen(self, rows: Rows) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        """Which impressions of requests are positives, bool [n], and the items of these."""
        events = self.dataset.impression_rows(rows)
        labels = [self.dataset.events[f"label_{task.name}"][events] for task in self.ranked]
        chosen = np.any([label > 0 for label in labels], axis=0)
        return chosen, np.asarray(self.dataset.events["item"][events])[chosen]

    def losses(self, ranker: Ranker, batch: Requests) -> dict[str, Tensor]:
        of = batch.batch
        assert of.shared is not None
        vectors = ranker.item_vectors(of.items)
        terms = ranker.encode_items(vectors[: of.distinct])
        if isinstance(of, Sequences):
            state = ranker.sequence_states(of, vectors)
            candidates_bp, labels_bpl = of.candidates[:, None], of.labels[:, None]
        else:
            state = ranker.encode_users(of.users, vectors)
            candidates_bp, labels_bpl = of.candidates, of.labels
        found = {} if self.alone else self._of_impressions(ranker, of, state, terms)
        at = [self.dataset.tasks.index(task.name) for task in self.ranked]
        weight_bpt = labels_bpl[..., at]  # 0 where padded
        positive_n, weight_n = _positives(of.shared, len(of.items.ids), candidates_bp, weight_bpt)
        # Without impression features: negatives have none, and positives must not be known by them.
        others_bt, own_n = shared_softmax(
            ranker,
            state,
            terms,
            of.shared,
            -batch.log_inclusion,
            of.users.keys,
            self.outputs,
            positive_n,
        )
        request_n, _, task_n = positive_n
        loss_n = weight_n * F.softplus(others_bt[request_n, task_n] - own_n)
        loss_t = loss_n.new_zeros(len(self.ranked)).index_add(0, task_n, loss_n)
        for task, loss in zip(self.ranked, loss_t, strict=True):
            found[task.name] = loss * (self.scales[task.name] / max(batch.impressions, 1))
        return found

    def _of_impressions(
        self, ranker: Ranker, of: Batch | Sequences, state: Any, terms: Any
    ) -> dict[str, Tensor]:
        """Losses of the labels that impressions teach."""
        if isinstance(of, Sequences):
            logits_nk, labels_nl = ranker.sequence_logits(of), of.labels
        else:
            extra = ranker.extra(state, of.users.keys, of.candidates, of.shown)
            logits_bpk = ranker.score(state, gather(terms, of.candidates), extra)
            logits_nk, labels_nl = logits_bpk[of.real], of.labels[of.real]
        return impression_losses(logits_nk, labels_nl, self.shape.tasks, self.dataset.tasks)

    def stopping(self) -> tuple[str, str, bool]:
        if self.config.metric is None:
            task = self.ranked[0]
            metric, higher = next(iter(task.of_kind.stopping.items()))
            return task.name, metric, higher
        return super().stopping()

    @property
    def text(self) -> str:
        items = self.dataset.trained_items
        among = f"all {items:,} items"
        if not self.negatives.full:
            among = f"{self.negatives.uniform:,} of {items:,} items and the batch's positives"
        measured = len(self.held_out.requests)
        few = ""
        if measured < FEW_REQUESTS:
            few = f"; so few that one more hit raises HR@10 by {1 / measured:.3f}"
        return (
            f"objective: catalogue, {self.positives.total:,} positives, each among {among}; "
            f"validation: {measured:,} requests among all items{few}"
        )

    def baselines(self) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """The lists of models that are fitted by counting, at the same requests."""
        if not self.quiet:
            print(f"for comparison, counting {' and '.join(BASELINES)}", file=sys.stderr)
        found: dict[str, dict[str, Mapping[str, float]]] = {task.name: {} for task in self.ranked}
        for name in BASELINES:
            ranker = build(self.shape, config_class(name)(model=name))
            with torch.no_grad():
                ranker.fit(TrainingInteractions(self.dataset), self.quiet)
            for task, measured in self.held_out.measure(ranker, self.world).metrics.items():
                found[task][name] = {at: of for at, of in measured.items() if at != "loss"}
        return found

    def measure(self, ranker: Ranker, requests: Rows) -> Measured:
        found = self.held_out.measure(ranker, self.world)
        if self.alone:
            return found
        of_impressions = super().measure(ranker, requests)
        metrics = {**of_impressions.metrics, **found.metrics}
        return of_impressions._replace(metrics=metrics)


def _positives(
    shared: Tensor, items: int, candidates_bp: Tensor, weight_bpt: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Request, position among the shared items, and task of each positive; and its weight."""
    among = shared.new_full((items,), -1)
    among[shared] = torch.arange(len(shared), device=shared.device)
    request, own, task = (weight_bpt > 0).nonzero(as_tuple=True)
    position = among[candidates_bp[request, own]]
    held = position >= 0  # an item that training must not see is no positive
    request, own, task = request[held], own[held], task[held]
    return (request, position[held], task), weight_bpt[request, own, task]
