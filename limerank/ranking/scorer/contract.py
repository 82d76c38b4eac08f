"""What every scorer does: user states meet the items of an index, for scores or for the best k.

Tasks combine into one ranking value as a weighted sum of their logits, ``sum_k w_k logit_k``: of
probabilities and expected durations it ranks by their odds and seconds multiplied, each raised to
its weight. Without weights the first task alone ranks.

Shape letters: B requests, n items, m items of a chunk, K tasks.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from limerank.errors import FingerprintError, SpecError, UnknownError, check_names
from limerank.index import Index
from limerank.models import Ranker
from limerank.models.tasks import Task, columns, outputs

Rows = NDArray[np.int64]

CHUNK_NUMBERS = 1 << 21
"""First-layer sums (or item terms) held at once, about."""
LARGEST_WEIGHT = float(np.finfo(np.float32).max)
"""Of a task."""
ABSENT = torch.iinfo(torch.int64).min
"""The key of a place that no item takes."""


class TopK(NamedTuple):
    """The best items of B requests, best first; of equal values the lower row comes first.

    There are min(k, number of candidates that are not hidden) places. Where exclusions leave a
    request fewer items than that, the places behind them hold row -1, value -inf and logits NaN.

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

    Implementations give :meth:`_requests` and :meth:`_logits`; or, where they are faster as a
    whole, :meth:`scores` and :meth:`top` themselves, which the contract suite holds to the same
    results.
    """

    name: str
    """What a report calls it."""

    def __init__(self, ranker: Ranker, index: Index) -> None:
        if index.model != ranker.config.model or index.vectors.shape[1] != ranker.config.width:
            raise FingerprintError(
                f"{index.path} was built by a {index.model} of width {index.vectors.shape[1]}, "
                f"not by a {ranker.config.model} of width {ranker.config.width}"
            )
        self.ranker, self.index = ranker, index
        self.tasks = ranker.shape.outputs

    def __len__(self) -> int:
        return len(self.index)

    @torch.inference_mode()
    def scores(self, state: Any, rows: ArrayLike | slice | None = None) -> NDArray[np.float32]:
        """Logits f32 [B, n, K].

        Args:
            state: of the ranker's ``encode_users``, B requests.
            rows: index rows to score: [n], the same for every request, or [B, n], each request's
                own; or a slice of them; all of the index when not given.

        Raises:
            UnknownError: a row is out of range.
        """
        requests = self._requests(state)
        batch = len(state[0])
        chosen = None if rows is None else self._checked(rows)
        if chosen is not None and chosen.ndim == 2 and len(chosen) != batch:
            raise SpecError(f"rows are for {len(chosen)} requests, the state is of {batch}")
        count = len(self) if chosen is None else chosen.shape[-1]
        out = np.empty((batch, count, self.tasks), dtype=np.float32)
        for low, high in self._chunks(state, count):
            part = slice(low, high) if chosen is None else chosen[..., low:high]
            out[:, low:high] = self._logits(requests, part).cpu().numpy()
        return out

    @torch.inference_mode()
    def top(
        self,
        state: Any,
        k: int,
        *,
        weights: ArrayLike | None = None,
        rows: ArrayLike | slice | None = None,
        exclude: Sequence[ArrayLike] | None = None,
        allow: NDArray[np.bool_] | None = None,
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

        Raises:
            UnknownError: a row is out of range.
            SpecError: k is below 1, or an argument does not fit the number of requests, tasks or
                items.
        """
        batch = len(state[0])
        weights_bk = torch.from_numpy(self._weights(weights, batch))
        k = self._checked_k(k)
        chosen = None if rows is None else self._distinct(rows)
        allowed = self._allowed(allow, batch)
        if allowed is not None and allowed.ndim == 1:
            chosen = np.flatnonzero(allowed) if chosen is None else chosen[allowed[chosen]]
            allowed = None
        hidden = self.index.hidden
        if chosen is not None:
            chosen, hidden = np.setdiff1d(chosen, hidden, assume_unique=True), hidden[:0]
        allowed_bn = allowed if allowed is None or chosen is None else allowed[:, chosen]
        count = len(self) if chosen is None else len(chosen)
        excluded_b, excluded_at = self._excluded(exclude, chosen, batch)
        requests = self._requests(state)
        k = min(k, count - len(hidden))
        best = torch.full((batch, k), ABSENT)
        logits = torch.full((batch, k, self.tasks), float("nan"))
        for low, high in self._chunks(state, count):
            part = slice(low, high) if chosen is None else chosen[low:high]
            found_bmk = self._logits(requests, part).cpu()
            keys_bm = _keys((found_bmk * weights_bk[:, None]).sum(-1), low)
            first, last = np.searchsorted(excluded_at, [low, high])
            keys_bm[excluded_b[first:last], torch.from_numpy(excluded_at[first:last] - low)] = (
                ABSENT
            )
            first, last = np.searchsorted(hidden, [low, high])
            keys_bm[:, torch.from_numpy(hidden[first:last].astype(np.int64) - low)] = ABSENT
            if allowed_bn is not None:
                keys_bm[torch.from_numpy(~allowed_bn[:, low:high])] = ABSENT
            # What beats the k-th best so far is picked from the chunk, then merged with the best.
            size = min(k, high - low)
            new, at = keys_bm.topk(size, sorted=False)
            new_logits = found_bmk.gather(1, at[..., None].expand(-1, -1, self.tasks))
            best, order = torch.cat([best, new], 1).topk(k)
            logits = torch.cat([logits, new_logits], 1).gather(
                1, order[..., None].expand(-1, -1, self.tasks)
            )
        positions, values = _unpack(best)
        missing = best == ABSENT
        values[missing] = float("-inf")
        logits[missing] = float("nan")
        found = positions.numpy()
        if chosen is not None and len(chosen):
            found = chosen[np.where(missing, 0, found)]
        return TopK(np.where(missing, -1, found), values.numpy(), logits.numpy())

    def bound(self, state: Any) -> NDArray[np.float32]:
        """Largest error of a first-layer sum of each request against the model, f32 [B, g]."""
        raise NotImplementedError(f"the {self.name} scorer has no stated bound")

    @abc.abstractmethod
    def _requests(self, state: Any) -> Any:
        """Whatever is computed once per request."""

    @abc.abstractmethod
    def _logits(self, requests: Any, rows: slice | Rows) -> Tensor:
        """Logits [B, m, K] of a range of items, of rows [m], or of each request's own [B, m]."""

    def _chunks(self, state: Any, count: int) -> Iterator[tuple[int, int]]:
        size = max(256, CHUNK_NUMBERS // (max(len(state[0]), 1) * self.ranker.scratch(state)))
        return ((low, min(low + size, count)) for low in range(0, count, size))

    def _checked_k(self, k: int) -> int:
        if k < 1:
            raise SpecError(f"k is {k}, expected at least 1")
        return k

    def _distinct(self, rows: ArrayLike | slice) -> Rows:
        """Candidates as ascending rows, each once."""
        found = self._checked(rows).ravel()
        return found if (found[1:] > found[:-1]).all() else np.unique(found)

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

    def _excluded(
        self, exclude: Sequence[ArrayLike] | None, chosen: Rows | None, batch: int
    ) -> tuple[Tensor, Rows]:
        """(request, place among the candidates) of what is left out, in order of the places."""
        if exclude is None:
            return torch.zeros(0, dtype=torch.int64), np.zeros(0, np.int64)
        if len(exclude) != batch:
            raise SpecError(f"exclude is for {len(exclude)} requests, the state is of {batch}")
        parts = [self._checked(rows).ravel() for rows in exclude]
        request = np.repeat(np.arange(batch), [len(part) for part in parts])
        at = np.concatenate([np.zeros(0, np.int64), *parts])
        if chosen is not None:
            position = np.searchsorted(chosen, at)
            held = position < len(chosen)
            held[held] = chosen[position[held]] == at[held]
            request, at = request[held], position[held]
        order = np.argsort(at, kind="stable")
        return torch.from_numpy(request[order]), at[order]


def weights_of_tasks(
    tasks: Sequence[Task], given: Mapping[str, float] | None
) -> NDArray[np.float32]:
    """The weight of each task's logit in the ranking value, f32 [K].

    Args:
        tasks: of the model, K of them.
        given: task -> weight; 0 where not given. The first task alone ranks when None or empty.

    Raises:
        UnknownError: a name is that of no task.
        SpecError: a weight is no finite number, or too large for float32.
    """
    names = [task.name for task in tasks]
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


def _keys(values_bm: Tensor, first: int) -> Tensor:
    """i64 keys whose order is: greater value, then lower place. NaN comes last."""
    values_bm = values_bm.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    bits = (values_bm + 0.0).view(torch.int32)  # + 0.0: -0 equals 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    positions = torch.arange(first, first + values_bm.shape[1])
    return (bits.long() << 32) | (0xFFFFFFFF - positions)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values that keys were made of."""
    positions = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    bits = (keys >> 32).int()
    return positions, (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32).clone()
