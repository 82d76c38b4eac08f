"""LIME over the bytes of an index, in C++: the scorer for serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from limerank.errors import SpecError
from limerank.index import Index
from limerank.kernels import _native
from limerank.models import Ranker
from limerank.scorer.contract import Rows, TopK
from limerank.scorer.quantised import QuantisedScorer


def paths() -> list[str]:
    """The implementations that this machine can run, the fastest first: "avx512-vnni", "avx2",
    "portable". All give the same bits."""
    return _native.paths()


class NativeScorer(QuantisedScorer):
    """The arithmetic of :class:`QuantisedScorer`, many times as fast.

    Integer products are the same numbers; floating-point sums are in another order, so scores
    differ from it by rounding, and for SiLU by an approximation that is off by at most
    ``SILU_ERROR`` (1.5e-4) per hidden unit. Items of the index are read as they lie in memory and
    nothing is kept of them. Python's lock is released, so calls may run side by side.

    Args:
        ranker: a LIME model.
        index: that it built.
        threads: that one call shares its items among.
        path: the implementation, one of :func:`paths`; the fastest when not given.

    Raises:
        SpecError: the model has no links, or this machine has no such path.
    """

    name = "native"

    def __init__(
        self, ranker: Ranker, index: Index, *, threads: int = 1, path: str | None = None
    ) -> None:
        super().__init__(ranker, index)
        if not 1 <= threads <= 1024:
            raise SpecError(f"threads is {threads}, expected 1 to 1024")
        if path is not None and path not in paths():
            raise SpecError(f"no path {path!r} on this machine; it has {', '.join(paths())}")
        self.threads = threads
        if ranker.config.activation == "silu":
            self.activation_error = _native.SILU_ERROR
        scales, head, config = index.scales, self.lime.head, self.lime.config
        assert scales is not None
        self._native = _native.Scorer(
            weights=np.asarray(index.weights),
            terms=np.asarray(index.terms),
            weight_low=scales.weight_low,
            weight_step=scales.weight_step,
            weight_mean=scales.weight_mean,
            term_middle=scales.term_middle,
            term_step=scales.term_step,
            from_links=_floats(head.from_links.weight),
            out=_floats(head.out.weight),
            bias=_floats(head.out.bias),
            hidden_rows=np.asarray(index.hidden),
            heads=config.heads,
            activation=config.activation,
            gated=config.gated,
            path=path,
        )

    @property
    def path(self) -> str:
        """The implementation in use."""
        return self._native.path

    def scores(self, state: Any, rows: ArrayLike | slice | None = None) -> NDArray[np.float32]:
        requests = self._native.requests(_floats(state.links), _floats(state.head))
        chosen = None if rows is None else self._rows_for(rows, len(requests))
        return self._native.scores(requests, chosen, self.threads)

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
        requests = self._native.requests(_floats(state.links), _floats(state.head))
        batch = len(requests)
        weights_bk = np.ascontiguousarray(
            np.broadcast_to(self._weights(weights, batch), (batch, self.tasks))
        )
        chosen = None if rows is None else self._distinct(rows)
        allowed = self._allowed(allow, batch)
        gone, ends = self._gone(exclude, batch)
        everyone = allowed if allowed is not None and allowed.ndim == 1 else None
        places = min(self._checked_k(k), self._places(chosen, everyone))
        if everyone is not None:
            allowed = everyone[None]
        found = self._native.top(
            requests, places, weights_bk, chosen, gone, ends, allowed, self.threads
        )
        return TopK(*found)

    def _places(self, chosen: Rows | None, allowed: NDArray[np.bool_] | None) -> int:
        """How many candidates are not hidden, of those that everyone may see."""
        hidden = self.index.hidden
        if chosen is None:
            if allowed is None:
                return len(self) - len(hidden)
            return int(np.count_nonzero(allowed)) - int(np.count_nonzero(allowed[hidden]))
        if allowed is not None:
            chosen = chosen[allowed[chosen]]
        if not len(hidden):
            return len(chosen)
        return len(chosen) - int(np.isin(chosen, hidden, assume_unique=True).sum())

    def _rows_for(self, rows: ArrayLike | slice, batch: int) -> Rows:
        chosen = self._checked(rows)
        if chosen.ndim == 2 and len(chosen) != batch:
            raise SpecError(f"rows are for {len(chosen)} requests, the state is of {batch}")
        return np.ascontiguousarray(np.atleast_2d(chosen))

    def _gone(self, exclude: Sequence[ArrayLike] | None, batch: int) -> tuple[Rows, Rows]:
        """Excluded rows, ascending for each request, and where each request's end."""
        if exclude is None:
            return np.zeros(0, np.int64), np.zeros(batch, np.int64)
        if len(exclude) != batch:
            raise SpecError(f"exclude is for {len(exclude)} requests, the state is of {batch}")
        parts = [np.sort(self._checked(rows), axis=None) for rows in exclude]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return np.concatenate([np.zeros(0, np.int64), *parts]), ends


def _floats(values: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.detach().float().cpu().contiguous().numpy()
    return found
