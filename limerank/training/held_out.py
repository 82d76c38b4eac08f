"""Validation of the catalogue objective: positives of held-out requests among all items.

The same requests are measured each time. Every item that can be ranked is a candidate, items of the
history included: whether a positive may be one of them is a property of the log, which the model
learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from limerank import metrics
from limerank.data.batch import Batch
from limerank.data.dataset import Dataset
from limerank.models import Ranker
from limerank.models.ranker import part_of
from limerank.training.impressions import Measured
from limerank.training.positives import positives
from limerank.training.softmax import NOTHING
from limerank.world import Alone, World, collected, dealt

REQUESTS, LEAST_REQUESTS = 2000, 200
"""Requests that are measured where ``validation_requests`` is not set: the first number, or fewer
where the catalogue is large, but not fewer than the second."""
PAIRS, PAIRWISE_PAIRS = 1 << 26, 1 << 22
"""Pairs of a request and an item that are scored where ``validation_requests`` is not set, about;
the second of models that read the history for each candidate."""
NUMBERS = 1 << 22
"""Numbers that scores take at once (Ranker.scratch), about."""
DEPTH = 10
"""Of ranked lists."""
ITEMS_AT_ONCE = 1 << 16
SEED = 0
"""Of the draw of requests: the same for every training of a dataset."""


class HeldOut:
    """Requests of the validation split with positives.

    Args:
        dataset: that they are of.
        requests: rows of all requests of the split.
        labels: names of the labels of positives, one or more.
        outputs: the logit of each of them in the model's outputs.
        most: measure at most so many requests, drawn at random; by default see above.
        pairwise: whether the model reads the history for each candidate.
        history: events of a history, at most; as many as the dataset holds when not given.
    """

    def __init__(
        self,
        dataset: Dataset,
        requests: NDArray[np.int64],
        labels: Sequence[str],
        outputs: Sequence[int],
        most: int | None,
        pairwise: bool,
        history: int | None,
    ) -> None:
        self.dataset, self.labels, self.outputs = dataset, list(labels), list(outputs)
        self.history = history
        self.items = np.flatnonzero(dataset.candidate)
        self._position = np.full(len(dataset.items), -1)
        self._position[self.items] = np.arange(len(self.items))
        if most is None:
            pairs = PAIRWISE_PAIRS if pairwise else PAIRS
            most = min(max(pairs // max(len(self.items), 1), LEAST_REQUESTS), REQUESTS)
        chosen = requests[positives(dataset, requests, labels).of_requests > 0]
        drawn = np.random.default_rng(SEED).permutation(chosen)[:most]
        self.requests = np.sort(drawn)

    def measure(self, ranker: Ranker, world: World | None = None) -> Measured:
        """Loss, HR@10 and NDCG@10 of each label; the ranker is left in the mode that it was in.

        Args:
            ranker: the model.
            world: processes that score some of the requests each and return the same numbers, bit
                for bit those of one process; this one alone when not given.
        """
        was_training = ranker.training
        ranker.eval()
        with torch.inference_mode():
            found, use = self._measured(ranker, world or Alone())
        ranker.train(was_training)
        return Measured(found, use)

    def _measured(
        self, ranker: Ranker, world: World
    ) -> tuple[dict[str, dict[str, float]], NDArray[np.float32] | None]:
        device = next(ranker.parameters()).device
        blocks = np.split(self.items, np.arange(ITEMS_AT_ONCE, len(self.items), ITEMS_AT_ONCE))
        vectors = torch.cat(
            [ranker.item_vectors(self.dataset.item_batch(rows).to(device)) for rows in blocks]
        )
        terms = ranker.encode_items(vectors)
        keys = ranker.complete(self.dataset.item_keys(self.items).to(device))
        every = torch.arange(len(self.items), device=device)
        plan = self.dataset.plan(self.requests, 1024, self.history)

        def scored(batch: Batch) -> Iterator[Tensor]:
            batch = batch.to(device)
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            size = max(1, NUMBERS // max(len(every) * ranker.scratch(state), 1))
            for at in range(0, len(batch.counts), size):
                some = part_of(state, slice(at, at + size))
                logits = ranker.score(some, terms, ranker.extra(some, keys, every))
                yield logits[..., self.outputs].float()

        own = dealt(plan, world)
        scores = []
        for rows, batch in zip(own, self.dataset.batches(own, self.history), strict=True):
            at, pieces = 0, []
            for logits in scored(batch):
                pieces.append(self._scores(rows[at : at + len(logits)], logits))
                at += len(logits)
            scores.append(torch.cat(pieces))
        found = self._summary(torch.cat(collected(world, scores, len(plan))).numpy())
        use = None
        if ranker.folds and ranker.link_shape is not None:
            rows = np.concatenate(
                [self._positives(self.requests, label)[1] for label in self.labels]
            )
            counts = np.bincount(rows, minlength=len(self.items))
            share = torch.from_numpy(counts / counts.sum()).to(device, terms.weights.dtype)
            use = (share @ terms.weights).view(ranker.link_shape).cpu().numpy()
        return found, use

    def _positives(
        self, requests: NDArray[np.int64], label: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Positives of requests that can be ranked: position of the request, position among the
        items, weight; an item is one positive of a request, however often it is chosen."""
        rows = self.dataset.impression_rows(requests)
        owner = np.repeat(np.arange(len(requests)), self.dataset.requests["count"][requests])
        weight = np.asarray(self.dataset.events[f"label_{label}"][rows], np.float64)
        item = self._position[self.dataset.events["item"][rows]]
        held = (weight > 0) & (item >= 0)
        pair, inverse = np.unique(owner[held] * len(self.items) + item[held], return_inverse=True)
        weights = np.bincount(inverse, weight[held], len(pair)).astype(np.float64)
        return pair // len(self.items), pair % len(self.items), weights

    def _scores(self, requests: NDArray[np.int64], logits_bit: Tensor) -> Tensor:
        """What is measured of the positives of requests, f64 [n, 5]: the label, the request's row,
        weight, loss and rank of each.

        Args:
            requests: rows, i64 [b].
            logits_bit: of all items for each label, [b, items, labels].
        """
        found = []
        for at, label in enumerate(self.labels):
            request, item, weight = self._positives(requests, label)
            loss_n, rank_n = _of_positives(
                logits_bit[..., at], torch.from_numpy(request), torch.from_numpy(item)
            )
            of_label = np.full(len(request), at, np.float64)
            found.append(np.stack([of_label, requests[request], weight, loss_n, rank_n], 1))
        return torch.from_numpy(np.concatenate(found))

    def _summary(self, scores_n5: NDArray[np.float64]) -> dict[str, dict[str, float]]:
        """Metrics of each label, of what :meth:`_scores` gives of all requests."""
        found = {}
        for at, label in enumerate(self.labels):
            request, weight, loss, rank = scores_n5[scores_n5[:, 0] == at, 1:].T
            first = np.flatnonzero(np.diff(request, prepend=-1))
            offsets = np.append(first, len(request))
            found[label] = {
                "loss": float((loss * weight).sum() / weight.sum()),
                f"hr@{DEPTH}": metrics.hit_rate(rank, DEPTH, offsets),
                f"ndcg@{DEPTH}": metrics.ndcg(rank, DEPTH, offsets),
            }
        return found


def _of_positives(
    logits_bi: Tensor, request: Tensor, item: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss and rank of each positive, [n]; of equal logits the lower position ranks first."""
    request, item = request.to(logits_bi.device), item.to(logits_bi.device)
    own_n = logits_bi[request, item]
    others_bi = logits_bi.clone()
    others_bi[request, item] = NOTHING
    loss_n = F.softplus(others_bi.logsumexp(1)[request] - own_n)
    ranks = []
    for at in range(0, len(request), max(len(logits_bi), 1)):
        some = slice(at, at + len(logits_bi))
        line, own = logits_bi[request[some]], own_n[some, None]
        earlier = torch.arange(logits_bi.shape[1], device=item.device) < item[some, None]
        ranks.append(1 + ((line > own) | ((line == own) & earlier)).sum(1))
    rank_n = torch.cat(ranks) if ranks else request
    return loss_n.double().cpu().numpy(), rank_n.double().cpu().numpy()
