"""Scoring in torch, a chunk of items at a time; the best k so far are merged with each chunk.

Shape letters: B requests, n items, m items of a chunk, K tasks.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from limerank.errors import SpecError
from limerank.kernels.order import ABSENT, of_keys, order_keys
from limerank.ranking.scorer.contract import Rows, Scorer, TopK

CHUNK_NUMBERS = 1 << 21
"""First-layer sums (or item terms) in memory at once, about."""


class ChunkedScorer(Scorer):
    """A scorer that is defined by the logits of some requests for some items, :meth:`_logits`."""

    @torch.inference_mode()
    def scores(
        self,
        state: Any,
        rows: ArrayLike | slice | None = None,
        *,
        extra: Tensor | None = None,
    ) -> NDArray[np.float32]:
        logits = self._logits_of(state)
        batch = len(state[0])
        chosen = None if rows is None else self._checked(rows)
        if chosen is not None and chosen.ndim == 2 and len(chosen) != batch:
            raise SpecError(f"rows are for {len(chosen)} requests, the state is of {batch}")
        count = len(self) if chosen is None else chosen.shape[-1]
        extra = self._checked_extra(extra, batch, count)
        out = np.empty((batch, count, self.tasks), dtype=np.float32)
        for low, high in self._chunks(state, count):
            part = slice(low, high) if chosen is None else chosen[..., low:high]
            added = None if extra is None else extra[:, low:high]
            out[:, low:high] = logits(part, added).cpu().numpy()
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
        extra: Tensor | None = None,
    ) -> TopK:
        batch = len(state[0])
        weights_bk = torch.from_numpy(self._weights(weights, batch))
        k = self._checked_k(k)
        chosen = None if rows is None else self._distinct(rows)
        given, extra = self._ordered(rows, extra, batch)
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
        if extra is not None and chosen is not None:
            extra = extra[:, torch.from_numpy(np.searchsorted(given, chosen))]
        logits_of = self._logits_of(state)
        k = min(k, count - len(hidden))
        best = torch.full((batch, k), ABSENT)
        logits = torch.full((batch, k, self.tasks), float("nan"))
        for low, high in self._chunks(state, count):
            part = slice(low, high) if chosen is None else chosen[low:high]
            found_bmk = logits_of(part, None if extra is None else extra[:, low:high]).cpu()
            keys_bm = order_keys((found_bmk * weights_bk[:, None]).sum(-1), low)
            first, last = np.searchsorted(excluded_at, [low, high])
            keys_bm[excluded_b[first:last], torch.from_numpy(excluded_at[first:last] - low)] = (
                ABSENT
            )
            first, last = np.searchsorted(hidden, [low, high])
            keys_bm[:, torch.from_numpy(hidden[first:last].astype(np.int64) - low)] = ABSENT
            if allowed_bn is not None:
                keys_bm[torch.from_numpy(~allowed_bn[:, low:high])] = ABSENT
            # The best of the chunk are merged with the best so far.
            size = min(k, high - low)
            new, at = keys_bm.topk(size, sorted=False)
            new_logits = found_bmk.gather(1, at[..., None].expand(-1, -1, self.tasks))
            best, order = torch.cat([best, new], 1).topk(k)
            logits = torch.cat([logits, new_logits], 1).gather(
                1, order[..., None].expand(-1, -1, self.tasks)
            )
        positions, values = of_keys(best)
        missing = best == ABSENT
        values[missing] = float("-inf")
        logits[missing] = float("nan")
        found = positions.numpy()
        if chosen is not None and len(chosen):
            found = chosen[np.where(missing, 0, found)]
        return TopK(np.where(missing, -1, found), values.numpy(), logits.numpy())

    @abc.abstractmethod
    def _requests(self, state: Any) -> Any:
        """The part that is computed once per request."""

    @abc.abstractmethod
    def _logits(self, requests: Any, rows: slice | Rows, extra: Tensor | None = None) -> Tensor:
        """Logits [B, m, K] of a range of items, of rows [m], or of each request's own [B, m].
        ``extra`` [B, m, s] is added to the first layer."""

    def _logits_of(self, state: Any) -> Callable[[slice | Rows, Tensor | None], Tensor]:
        """:meth:`_logits` for the requests of a state."""
        return partial(self._logits, self._requests(state))

    def _chunks(self, state: Any, count: int) -> Iterator[tuple[int, int]]:
        size = max(256, CHUNK_NUMBERS // (max(len(state[0]), 1) * self.ranker.scratch(state)))
        return ((low, min(low + size, count)) for low in range(0, count, size))

    def _distinct(self, rows: ArrayLike | slice) -> Rows:
        """Candidates as ascending rows, each once."""
        found = self._checked(rows).ravel()
        return found if (found[1:] > found[:-1]).all() else np.unique(found)

    def _ordered(
        self, rows: ArrayLike | slice | None, extra: Tensor | None, batch: int
    ) -> tuple[Rows, Tensor | None]:
        """Rows and their additions by ascending row, where there are additions."""
        if extra is None:
            return np.zeros(0, np.int64), None
        if rows is None:
            raise SpecError("extra is given without rows; give the rows that it is added for")
        found = self._checked(rows).ravel()
        extra = self._checked_extra(extra, batch, len(found))
        order = np.argsort(found, kind="stable")
        found = found[order]
        if extra is None or (found[1:] == found[:-1]).any():
            raise SpecError("rows with extra are not distinct; give each row once")
        return found, extra[:, torch.from_numpy(order)]

    def _excluded(
        self, exclude: Sequence[ArrayLike] | None, chosen: Rows | None, batch: int
    ) -> tuple[Tensor, Rows]:
        """(request, position among the candidates) of each exclusion, ordered by position."""
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
