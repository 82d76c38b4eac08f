"""Collaborative statistics of items: what the training window says of each item as a whole.

Of every item that training has seen:

- ``rate``: the logarithm of the odds of the first binary label, smoothed towards the mean of the
  log; 0 in a log of positives, which has no rates;
- ``count``: the logarithm of its number of impressions; in a log of positives, of its events;
- ``vectors``: which items the same users are positive about. ``A`` [users, items] is 1 where a user
  was positive about an item (in a log of positives: had any event with it), with rows scaled to
  unit length and columns by 1 / sqrt(n + 5); a vector is a row of ``A^T A Q``, scaled to the
  length sqrt(width), as a vector of standardised numbers has it, times the evidence n / (n + 2).
  (With unit length, ids outweigh vectors at the start, and a small log ends before a model has
  learned to tell by them what goes together.) The orthonormal ``Q`` spans the largest singular
  directions of ``A`` (Halko, Martinsson and Tropp 2011: subspace iteration). Sparse logs do not
  teach a model which items go together; this does.

A model that is trained on statistics which contain the labels of its own training rows trusts them
too much. So users are dealt to :data:`FOLDS` folds, and the training rows of a fold get statistics
of the users of all other folds. All share one ``Q``, so that their vectors have the same axes. The
statistics of all users go with the run.

A warm start goes on in the space of an earlier run: its vectors are where the iteration begins, so
that one pass is enough, and the result is turned onto them by the orthogonal map that is nearest
(Procrustes; Schoenemann 1966). Weights that read the earlier vectors thus read the new ones. Items
that no event of the window is about any more have the earlier statistics, times :data:`FADING`.

Events are read in blocks; memory holds a few arrays [items, k].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.dataset import Dataset
from limerank.data.interactions import TrainingInteractions
from limerank.models.noise import hashed
from limerank.progress import Bar

FOLDS = 5
BLOCK = 1 << 19
"""Events that are read at once."""
PASSES, PASSES_ON = 4, 1
"""Of the subspace iteration; from earlier vectors."""
FADING = 0.9
"""Of the statistics of items without an event in the window, relative to those of an earlier run.
"""
MORE = 8
"""Directions beyond the wanted ones, which make those exact."""
COMMON = 5.0
"""Added to an item's number of positives, so that rare items do not dominate."""
FEW = 2.0
"""Positives of an item whose vector has half its length."""
SMOOTHING = 20.0
"""Impressions of the mean item that are added to those of each item."""


@dataclass(frozen=True)
class Statistics:
    """Statistics f32 [folds + 1, items + 1, S] by row of the id table, row 0 (an unseen item) zero;
    the last are those of all users."""

    values: Tensor

    @property
    def of_all(self) -> Tensor:
        """Of all users, f32 [items + 1, S]."""
        return self.values[-1]

    def of_fold(self, fold: int, ids: Tensor) -> Tensor:
        """What training rows of a fold are given, f32 [n, S]; ``ids``: rows of the id table."""
        return self.values[fold][ids]


def folds_of(users: NDArray[np.integer]) -> NDArray[np.int64]:
    """The fold of each user, by its row."""
    rows = torch.from_numpy(np.asarray(users, dtype=np.int64))
    return (hashed(rows, 0) % FOLDS).numpy()


def statistics(
    dataset: Dataset,
    width: int,
    rates: bool,
    quiet: bool = True,
    earlier: Tensor | None = None,
) -> Statistics:
    """The statistics of a dataset's training window.

    Args:
        width: numbers of a vector; 0: none.
        rates: whether rates and counts are wanted.
        quiet: show no progress.
        earlier: statistics of an earlier run by today's rows of the id table, f32 [items + 1, S];
            zero where it had none. None: begin without.
    """
    items = dataset.trained_items
    parts = []
    start = None if earlier is None or not width else earlier[1:, -width:]
    iterations = PASSES if start is None else PASSES_ON
    passes = bool(rates) + (iterations + 3 if width else 0)
    with Bar("statistics of items", total=passes, unit="passes over the log", quiet=quiet) as bar:
        if rates:
            parts.append(_rates(dataset))
            bar.advance(1)
        if width:
            vectors = _vectors(dataset, min(width, items), width, bar, start)
            parts.append(vectors if start is None else turned_onto(start, vectors))
    values = torch.cat([*parts, torch.zeros(FOLDS + 1, items, 0)], -1)
    values = torch.cat([torch.zeros(FOLDS + 1, 1, values.shape[-1]), values], 1)
    if earlier is not None:
        absent = torch.from_numpy(np.asarray(dataset.train_count[:items]) == 0)
        fading = torch.cat([absent.new_zeros(1), absent]) & earlier.any(1)
        values[:, fading] = FADING * earlier[fading]
    return Statistics(values)


def turned_onto(earlier_id: Tensor, vectors_fid: Tensor) -> Tensor:
    """Vectors [folds + 1, items, d], all by the one orthogonal map that brings the last ones
    nearest to earlier ones [items, d], in the sum of squared distances."""
    left, _, right = torch.linalg.svd(vectors_fid[-1].T @ earlier_id)
    return vectors_fid @ (left @ right)


def _label(dataset: Dataset, kind: str) -> str | None:
    """The column of the first label of this kind."""
    names = [label["name"] for label in dataset.encoding["labels"] if label["kind"] == kind]
    return f"label_{names[0]}" if names else None


def _rates(dataset: Dataset) -> Tensor:
    """[folds + 1, items, 2]; in a log of positives alone all rates are 0."""
    items, requests = dataset.trained_items, dataset.requests_of("train")
    column = _label(dataset, "binary")
    sums = torch.zeros(FOLDS, items, 2, dtype=torch.float64)
    ends = np.cumsum(dataset.requests["count"][requests], dtype=np.int64)
    for some in np.split(requests, np.searchsorted(ends, np.arange(BLOCK, ends[-1], BLOCK))):
        rows = dataset.impression_rows(some)
        owner = np.repeat(dataset.requests["user"][some], dataset.requests["count"][some])
        counted = np.ones(len(rows))
        label = counted if column is None else dataset.events[column][rows] > 0
        item = torch.from_numpy(dataset.events["item"][rows].astype(np.int64))
        at = torch.from_numpy(folds_of(owner)) * items + item
        both = torch.from_numpy(np.stack([counted, label], 1).astype(np.float64))
        sums.view(-1, 2).index_add_(0, at, both)
    total = sums.sum(0)
    sums = torch.cat([total - sums, total[None]])
    shown, positive = sums.unbind(-1)
    mean = (positive.sum(1) / shown.sum(1).clamp(min=1)).clamp(1e-4, 1 - 1e-4)[:, None]
    rate = (positive + SMOOTHING * mean) / (shown + SMOOTHING)
    count = shown.log1p()
    count = (count - count[-1].mean()) / count[-1].std(correction=0).clamp(min=1e-3)
    rate = rate.logit() - mean.logit()
    return torch.stack([torch.zeros_like(rate) if column is None else rate, count], -1).float()


@dataclass(frozen=True)
class _Block:
    """Pairs of a user and an item: ``user`` counts the users of the block."""

    user: Tensor
    item: Tensor
    fold: Tensor  # of each user


def _pairs(dataset: Dataset) -> Iterator[_Block]:
    """Each pair of a user and an item that the user was positive about in the training window; in a
    log of positives, that it had any event with."""
    items = dataset.trained_items
    for block in TrainingInteractions(dataset).blocks():
        held = block.counted & (block.items > 0)
        users, owner = np.unique(block.users[held], return_inverse=True)
        pairs = np.unique(owner * items + block.items[held] - 1)
        yield _Block(
            torch.from_numpy(pairs // items),
            torch.from_numpy(pairs % items),
            torch.from_numpy(folds_of(users)),
        )


def _vectors(
    dataset: Dataset, width: int, padded: int, bar: Bar, start: Tensor | None = None
) -> Tensor:
    """[folds + 1, items, padded]; ``bar`` counts passes over the log. ``start``: earlier vectors
    [items, padded], where the iteration begins."""
    items = dataset.trained_items
    counts = torch.zeros(FOLDS, items)
    for block in _pairs(dataset):
        at = block.fold[block.user] * items + block.item
        counts.view(-1).index_add_(0, at, torch.ones(len(at)))
    bar.advance(1)
    scale = (counts.sum(0) + COMMON).rsqrt()
    directions = min(width + MORE, items)
    q = torch.randn(items, directions, generator=torch.Generator().manual_seed(0))
    if start is not None:
        q[:, : start.shape[1]] = start[:, :directions]

    def product(q: Tensor, folds: int) -> Tensor:
        """A^T A q of the users of each fold, [folds, items, k]; folds is 1: of all together."""
        out = torch.zeros(folds * items, q.shape[1])
        for block in _pairs(dataset):
            of_pair = scale[block.item]
            users = len(block.fold)
            norm = torch.zeros(users).index_add_(0, block.user, of_pair.square()).clamp(min=1e-12)
            weight = of_pair * norm.rsqrt()[block.user]
            of_user = torch.zeros(users, q.shape[1])
            of_user.index_add_(0, block.user, q[block.item] * weight[:, None])
            at = block.item if folds == 1 else block.fold[block.user] * items + block.item
            out.index_add_(0, at, of_user[block.user] * weight[:, None])
        bar.advance(1)
        return out.view(folds, items, -1)

    for _ in range(PASSES if start is None else PASSES_ON):
        q = torch.linalg.qr(product(torch.linalg.qr(q)[0], 1)[0])[0]
    # The axes of the largest directions, in order.
    small = q.T @ product(q, 1)[0]
    axes = torch.linalg.eigh((small + small.T) / 2).eigenvectors.flip(1)[:, :width]
    y = product(q @ axes, FOLDS)
    total = y.sum(0)
    y = torch.cat([total - y, total[None]])
    of_others = torch.cat([counts.sum(0) - counts, counts.sum(0)[None]])
    y = y / y.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    y = y * (width**0.5 * of_others / (of_others + FEW))[..., None]
    return torch.nn.functional.pad(y, (0, padded - width))
