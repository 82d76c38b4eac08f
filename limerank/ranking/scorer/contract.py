"""The contract of a scorer: from user states and an index to scores, or to the best k items.

Tasks combine into one ranking value as a weighted sum of their logits, ``sum_k w_k logit_k``: of
probabilities and expected durations it ranks by their odds and seconds multiplied, each raised to
its weight. Without weights the first task alone ranks.

Shape letters: B requests, n items, K tasks, g first-layer sums of the model's head, s numbers that
``extra`` adds to (g in models with that head).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from limerank.errors import FingerprintError, SpecError, UnknownError, check_names
from limerank.index import Index
from limerank.models import Ranker
from limerank.models.tasks import Task, columns, outputs

Rows = NDArray[np.int64]

LARGEST_WEIGHT = float(np.finfo(np.float32).max)
"""Of a task."""


class TopK(NamedTuple):
    """The best items of B requests, best first; of equal values the lower row comes first.

    k is the number asked for, or the number of candidates that are not hidden where that is lower.
    Where exclusions leave a request fewer items, row -1, value -inf and logits NaN fill its end.

    Attributes:
        rows: index rows, i64 [B, k].
        values: ranking values, f32 [B, k].
        logits: f32 [B, k, K].
    """

    rows: Rows
    values: NDArray[np.float32]
    logits: NDArray[np.float32]


class Scorer(abc.ABC):
    """Scores requests against the items of an index.

    All scorers pass one suite of tests. Those that score a chunk of items at a time in torch share
    :class:`~limerank.ranking.scorer.chunked.ChunkedScorer`.
    """

    name: str
    """As given to :func:`~limerank.ranking.scorer.scorer_for`, and shown in reports."""

    def __init__(self, ranker: Ranker, index: Index) -> None:
        if index.model != ranker.config.model or index.vectors.shape[1] != ranker.config.width:
            raise FingerprintError(
                f"{index.path} was built by a {index.model} of width {index.vectors.shape[1]}, "
                f"not by a {ranker.config.model} of width {ranker.config.width}"
            )
        index.expect_anchors(None if ranker.anchors is None else ranker.anchors.features)
        self.ranker, self.index = ranker, index
        self.tasks = ranker.shape.outputs

    def __len__(self) -> int:
        return len(self.index)

    @abc.abstractmethod
    def scores(
        self,
        state: Any,
        rows: ArrayLike | slice | None = None,
        *,
        extra: Tensor | None = None,
    ) -> NDArray[np.float32]:
        """Logits f32 [B, n, K].

        Args:
            state: of the ranker's ``encode_users``, B requests.
            rows: index rows to score: [n], the same for every request, or [B, n], each request's
                own; or a slice of them; all of the index when not given.
            extra: additions to the first-layer sums, f32 [B, n, s] or [1, n, s], such as those of
                the rows' impression features, beside those of anchored links.

        Raises:
            UnknownError: a row is out of range.
            SpecError: ``extra`` does not fit the requests and rows.
        """

    @abc.abstractmethod
    def top(
        self,
        state: Any,
        k: int,
        *,
        weights: ArrayLike | None = None,
        rows: ArrayLike | slice | None = None,
        exclude: Sequence[ArrayLike] | None = None,
        allow: NDArray[np.bool_] | None = None,
        extra: Tensor | None = None,
    ) -> TopK:
        """The best k items of each request; rows that the index hides are never among them.

        Args:
            state: of the ranker's ``encode_users``, B requests.
            k: how many.
            weights: of the tasks' logits in the ranking value, [K] or [B, K]; the first task
                alone when not given.
            rows: the candidates, a set of index rows or a slice of them; all of the index when not
                given.
            exclude: per request, index rows to leave out.
            allow: which items of the index may be ranked, bool [n] or [B, n].
            extra: as for :meth:`scores`, of the n ``rows``, which are distinct.

        Raises:
            UnknownError: a row is out of range.
            SpecError: k is below 1, or an argument does not fit the number of requests, tasks or
                items.
        """

    def bound(self, state: Any) -> NDArray[np.float32]:
        """Largest error of a first-layer sum of each request against the model, f32 [B, g]."""
        raise NotImplementedError(f"the {self.name} scorer has no stated bound")

    def _checked_extra(self, extra: Tensor | None, batch: int, count: int) -> Tensor | None:
        """Additions as f32 [B, n, s] on the processor."""
        if extra is None:
            return None
        shape = (batch, count, self.ranker.added)
        if tuple(extra.shape) not in (shape, (1, *shape[1:])):
            raise SpecError(
                f"extra is {list(extra.shape)}, expected {list(shape)}: requests, rows and sums of "
                "the first layer"
            )
        return extra.detach().float().cpu().expand(shape)

    def _checked_k(self, k: int) -> int:
        if k < 1:
            raise SpecError(f"k is {k}, expected at least 1")
        return k

    def _allowed(self, allow: NDArray[np.bool_] | None, batch: int) -> NDArray[np.bool_] | None:
        if allow is None:
            return None
        allow = np.asarray(allow)
        if allow.dtype != np.bool_ or allow.shape not in ((len(self),), (batch, len(self))):
            raise SpecError(
                f"allow is {allow.dtype} {list(allow.shape)}, expected bool [{len(self)}] or "
                f"[{batch}, {len(self)}]"
            )
        return np.ascontiguousarray(allow)

    def _checked(self, rows: ArrayLike | slice) -> Rows:
        found = self._integers(rows)
        wrong = found[(found < 0) | (found >= len(self))]
        if len(wrong):
            raise UnknownError(f"the index has rows 0 .. {len(self) - 1}; got {int(wrong[0])}")
        return found

    def _integers(self, rows: ArrayLike | slice) -> Rows:
        """Rows as integers, in range or not."""
        if isinstance(rows, slice):
            return np.arange(*rows.indices(len(self)), dtype=np.int64)
        found = np.asarray(rows)
        if found.size == 0:
            return np.zeros(found.shape if found.ndim else (0,), np.int64)
        if found.dtype.kind not in "iu" or found.ndim not in (1, 2):
            raise SpecError(f"rows are {found.dtype} {list(found.shape)}, expected integers")
        return found.astype(np.int64, copy=False)

    def _weights(self, weights: ArrayLike | None, batch: int) -> NDArray[np.float32]:
        if weights is None:
            return np.eye(1, self.tasks, dtype=np.float32)
        found = np.asarray(weights, dtype=np.float32)
        if found.shape not in ((self.tasks,), (batch, self.tasks)) or not np.isfinite(found).all():
            raise SpecError(
                f"task weights are {found.tolist()}, expected one finite number for each of the "
                f"{self.tasks} tasks"
            )
        return found.reshape(-1, self.tasks)


def weights_of_tasks(
    tasks: Sequence[Task], given: Mapping[str, float] | None
) -> NDArray[np.float32]:
    """The weight of each task's logit in the ranking value, f32 [K].

    Args:
        tasks: of the model, K of them.
        given: task -> weight; 0 where not given. The first task alone ranks when None or empty.

    Raises:
        UnknownError: a name is that of no task.
        SpecError: ``given`` is not a mapping, or a weight is not a finite number or is too large
            for float32.
    """
    names = [task.name for task in tasks]
    if given is not None and not isinstance(given, Mapping):
        raise SpecError(
            f"task_weights is {given!r:.80}, expected a mapping of tasks to weights, such as "
            f"{{{names[0]!r}: 1.0}}"
        )
    if not given:
        given = {names[0]: 1.0}
    check_names("task", given, names)
    for name, weight in given.items():
        if not isinstance(weight, int | float | np.number) or not abs(weight) <= LARGEST_WEIGHT:
            raise SpecError(
                f"the weight of task {name!r} is {weight!r}, expected a finite number of "
                f"{LARGEST_WEIGHT:.1e} at most"
            )
    weights = np.zeros(outputs(tasks), dtype=np.float32)
    for task, own in zip(tasks, columns(tasks), strict=True):
        weights[own.start] = given.get(task.name, 0.0)
    return weights
