"""Ranked lists of the full catalogue: which requests they are measured at, and what they hold.

A list is measured at a request with a relevant item: one that is a positive of the main label
there. The order is that of an index: greater scores first, of equal ones the item that stands first
in the dataset.

Shape letters: R requests, I items of the dataset, D items of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.batch import ItemKeys
from limerank.data.dataset import Dataset
from limerank.data.interactions import main_label
from limerank.kernels.order import ABSENT, of_keys, order_keys
from limerank.models import Ranker
from limerank.models.ranker import part_of
from limerank.models.tasks import Task, columns
from limerank.progress import Bar

Seen = Literal["in", "out"]
"""Whether lists may hold items that the user has seen before."""
LIST_DEPTHS = (10, 50)
LEAST_REQUESTS = 2000
MOST_PAIRS = 1 << 26
"""Pairs of a request and an item that are scored where the number of requests is not given, about;
at least :data:`LEAST_REQUESTS` requests."""
LIST_NUMBERS = 1 << 22
"""First-layer sums held at once while lists are scored, about."""
LIST_SEED = 0
"""Of the draw of requests: the same ones for every model."""
LABELS_AT_ONCE = 1 << 20
"""Impressions whose labels are read at once, about."""


@dataclass(frozen=True)
class ListRequests:
    """The requests that lists are measured at.

    Attributes:
        rows: request rows, ascending, i64 [R].
        relevant: relevant items of all of them, request by request, i32 [n].
        offsets: where the items of each request begin and, last, end, i64 [R + 1].
        positive: how many requests have a positive; more than R where R were drawn.
        seen: whether lists may hold items that the user has seen. If they may not, such an item is
            not relevant either.
    """

    rows: NDArray[np.int64]
    relevant: NDArray[np.int32]
    offsets: NDArray[np.int64]
    positive: int
    seen: Seen

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Lists:
    """What a model ranks for R requests.

    Attributes:
        ranks: of each relevant item, 1 the best, ascending within a request, f64 [n].
        top: the first D items of each list, i32 [R, D]; -1 where there are fewer.
        repeated: which of them the user has seen before, bool [R, D].
        ranked: items of each full list, i64 [R].
    """

    ranks: NDArray[np.float64]
    top: NDArray[np.int32]
    repeated: NDArray[np.bool_]
    ranked: NDArray[np.int64]


def is_of_positives(dataset: Dataset) -> bool:
    """Whether the main label of a dataset is of positives, chosen out of the full catalogue."""
    label = main_label(dataset.encoding["labels"])
    return label is not None and label["kind"] == "positive"


def seen_by_default(dataset: Dataset) -> Seen:
    """ "in" for a log of positives, where a user may well choose an item again; else "out"."""
    return "in" if is_of_positives(dataset) else "out"


def ranking_task(tasks: Sequence[Task], dataset: Dataset) -> int:
    """Position of the task whose output ranks lists: that of the dataset's main label, the first
    one where it has none."""
    label = main_label(dataset.encoding["labels"])
    names = [task.name for task in tasks]
    return names.index(label["name"]) if label is not None and label["name"] in names else 0


def draw_requests(
    dataset: Dataset,
    requests: NDArray[np.int64],
    label: str,
    seen: Seen,
    most: int | None = None,
) -> ListRequests:
    """The requests among these that have a relevant item, or some of them.

    Args:
        dataset: whose requests they are.
        requests: request rows, i64, ascending.
        label: items with a value above 0 of it are positives.
        seen: whether items that the user has seen before are relevant.
        most: draw at most so many, the same ones in every call; about :data:`MOST_PAIRS` /
            items when not given.
    """
    if most is None:
        most = max(LEAST_REQUESTS, MOST_PAIRS // max(len(dataset.items), 1))
    positive = _with_positives(dataset, requests, label)
    drawn = positive
    if len(positive) > most:
        drawn = np.random.default_rng(LIST_SEED).permutation(positive)
    found: dict[int, NDArray[np.int32]] = {}
    for request in drawn.tolist():
        if len(found) == most:
            break
        items = _relevant(dataset, request, label, seen)
        if len(items):
            found[request] = items
    rows = np.array(sorted(found), dtype=np.int64)
    relevant = [found[request] for request in rows.tolist()]
    ends = np.cumsum([0, *map(len, relevant)], dtype=np.int64)
    flat = np.concatenate([np.zeros(0, np.int32), *relevant])
    return ListRequests(rows, flat, ends, len(positive), seen)


def _with_positives(dataset: Dataset, requests: NDArray[np.int64], label: str) -> NDArray[np.int64]:
    """Those of the requests that have a positive that can be ranked."""
    counts = dataset.requests["count"][requests].astype(np.int64)
    ends = np.append(0, np.cumsum(counts))
    cuts = np.searchsorted(ends, np.arange(LABELS_AT_ONCE, ends[-1], LABELS_AT_ONCE))
    found = [np.zeros(0, np.int64)]
    for some in np.split(requests, cuts):
        rows = dataset.impression_rows(some)
        good = dataset.events[f"label_{label}"][rows] > 0
        good &= dataset.candidate[dataset.events["item"][rows]]
        owner = np.repeat(np.arange(len(some)), dataset.requests["count"][some])
        found.append(some[np.unique(owner[good])])
    return np.concatenate(found)


def seen_items(dataset: Dataset, request: int) -> NDArray[np.int32]:
    """Item rows of the full history before a request, oldest first."""
    held = dataset.requests
    rows = slice(held["history_start"][request], held["history_end"][request])
    items: NDArray[np.int32] = dataset.events["item"][
        rows if dataset.retained is None else dataset.retained[rows]
    ]
    return items


def _relevant(dataset: Dataset, request: int, label: str, seen: Seen) -> NDArray[np.int32]:
    """Distinct positives of a request that a list may hold."""
    first = dataset.requests["first"][request]
    shown = slice(first, first + dataset.requests["count"][request])
    liked = dataset.events["item"][shown][dataset.events[f"label_{label}"][shown] > 0]
    liked = np.unique(liked[dataset.candidate[liked]])
    return liked if seen == "in" else np.setdiff1d(liked, seen_items(dataset, request))


def rank_lists(
    ranker: Ranker,
    dataset: Dataset,
    requests: ListRequests,
    depth: int,
    *,
    history: int | None = None,
    name: str = "ranking",
    quiet: bool = True,
) -> Lists:
    """Rank the full catalogue for some requests.

    Args:
        ranker: the model; it is left in the mode (training or evaluation) that it was in.
        dataset: whose requests are ranked for.
        requests: of :func:`draw_requests`.
        depth: first items of each list that are returned, D.
        history: events of a history, at most; as many as the dataset holds when not given.
        name: of the progress bar.
        quiet: show no progress.
    """
    catalogue = _Catalogue(ranker, dataset)
    output = columns(ranker.shape.tasks)[ranking_task(ranker.shape.tasks, dataset)].start
    count, depth = len(requests), min(depth, len(dataset.items))
    ranks = np.empty(len(requests.relevant))
    top = np.full((count, depth), -1, dtype=np.int32)
    repeated = np.zeros((count, depth), dtype=bool)
    ranked = np.zeros(count, dtype=np.int64)
    hidden = torch.from_numpy(np.flatnonzero(~dataset.candidate))
    plan = dataset.plan(requests.rows, 1024, history) if count else []
    was_training = ranker.training
    ranker.eval()
    with torch.inference_mode(), Bar(name, total=count, unit="requests", quiet=quiet) as bar:
        catalogue.encode()
        for part, batch in zip(plan, dataset.batches(plan, history), strict=True):
            batch = batch.to(catalogue.device)
            state = ranker.encode_users(batch.users, ranker.item_vectors(batch.items))
            size = max(1, LIST_NUMBERS // (max(len(dataset.items), 1) * ranker.scratch(state)))
            for at in range(0, len(part), size):
                some = part[at : at + size]
                own = part_of(state, slice(at, at + size))
                values_bi = catalogue.scores(own, some, output)
                keys_bi = order_keys(values_bi)
                keys_bi[:, hidden] = ABSENT
                for keys_i, request in zip(keys_bi, some.tolist(), strict=True):
                    row = int(np.searchsorted(requests.rows, request))
                    seen = seen_items(dataset, request)
                    if requests.seen == "out":
                        keys_i[torch.from_numpy(seen.astype(np.int64))] = ABSENT
                    held = slice(requests.offsets[row], requests.offsets[row + 1])
                    ranks[held] = _ranks(keys_i, requests.relevant[held])
                    best = keys_i.topk(depth).values
                    rows = of_keys(best)[0].numpy()
                    top[row] = np.where(best.numpy() == ABSENT, -1, rows)
                    repeated[row] = np.isin(top[row], seen)
                    ranked[row] = int((keys_i != ABSENT).sum())
                bar.advance(len(some))
    ranker.train(was_training)
    return Lists(ranks, top, repeated, ranked)


def _ranks(keys_i: torch.Tensor, items: NDArray[np.int32]) -> NDArray[np.float64]:
    """Ranks of some items in the order of keys, ascending."""
    own = keys_i[torch.from_numpy(items.astype(np.int64))]
    found = [1 + int((keys_i > key).sum()) for key in own]
    return np.sort(np.array(found, dtype=np.float64))


class _Catalogue:
    """All items of a dataset, encoded."""

    def __init__(self, ranker: Ranker, dataset: Dataset) -> None:
        self.ranker, self.dataset = ranker, dataset
        self.device = next(ranker.parameters()).device
        self.keys: ItemKeys | None = None

    def encode(self) -> None:
        """Encode them; in evaluation mode, without gradients."""
        items, ranker = len(self.dataset.items), self.ranker
        vectors = torch.cat(
            [
                ranker.item_vectors(
                    self.dataset.item_batch(np.arange(at, min(at + 65536, items))).to(self.device)
                )
                for at in range(0, items, 65536)
            ]
        )
        self.terms = ranker.encode_items(vectors)
        self.rows = torch.arange(items, device=self.device)
        if ranker.anchors is not None:
            keys = self.dataset.item_keys(np.arange(items)).to(self.device)
            self.keys = ranker.complete(keys)

    def scores(self, state: object, requests: NDArray[np.int64], output: int) -> torch.Tensor:
        """One output of the logits of some requests for all items, f32 [B, I], on the processor.

        Args:
            state: of the requests.
            requests: their rows.
            output: position of the output.
        """
        extra = self.ranker.extra(state, self.keys, self.rows, counted=self._counted(requests))
        logits: torch.Tensor = self.ranker.score(state, self.terms, extra)
        return logits[..., output].float().cpu()

    def _counted(self, requests: NDArray[np.int64]) -> torch.Tensor | None:
        """Counters of all items at the times of requests, f32 [B, I, F]."""
        if self.ranker.counters is None:
            return None
        items = np.arange(len(self.dataset.items))[None]
        hours = self.ranker.config.counter_hours
        return self.dataset.counted_at(items, requests[:, None], hours).to(self.device)
