"""LIME over the bytes of an index, in C++: the scorer for serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from limerank.errors import SpecError, UnknownError
from limerank.index import Index
from limerank.kernels import _native
from limerank.models import Ranker
from limerank.models.config import HeadConfig
from limerank.ranking.scorer.chunked import ChunkedScorer
from limerank.ranking.scorer.contract import Rows, TopK
from limerank.ranking.scorer.quantised import QuantisedScorer

HELD_BYTES = 128 << 20
"""By default a laid-out catalogue stays in memory where it takes at most so many bytes."""


def paths() -> list[str]:
    """The implementations that this machine can run, the fastest first: of "avx512-vnni", "avx2"
    and "portable". Their results are equal bit for bit."""
    return _native.paths()


class NativeScorer(QuantisedScorer):
    """The arithmetic of :class:`QuantisedScorer`, many times as fast.

    Integer products are equal. Floating-point sums are taken in another order, so scores differ by
    rounding, and for SiLU by an approximation with an error of at most ``SILU_ERROR`` (1.5e-4) per
    hidden unit. Calls release Python's global lock, so several may run in parallel.

    Lists of items are read from the index itself. To rank the full catalogue, all items are first
    laid out for vector registers in the memory of this process, at the first such call; they take
    as much memory as the index's weights and terms.

    Args:
        ranker: a LIME model.
        index: that it built.
        threads: number of threads that share the items of a call.
        path: the implementation, one of :func:`paths`; the fastest when not given.
        held: whether the laid-out catalogue stays in memory; if not, it is laid out again for
            every request, which then takes longer. By default it stays where it takes at most
            128 MiB.

    Raises:
        SpecError: the model has no links, or this machine cannot run that path.
    """

    name = "native"

    def __init__(
        self,
        ranker: Ranker,
        index: Index,
        *,
        threads: int = 1,
        path: str | None = None,
        held: bool | None = None,
    ) -> None:
        super().__init__(ranker, index)
        if not 1 <= threads <= 1024:
            raise SpecError(f"threads is {threads}, expected 1 to 1024")
        if path is not None and path not in paths():
            raise SpecError(f"no path {path!r} on this machine; it has {', '.join(paths())}")
        self.threads = threads
        self._first = np.eye(1, self.tasks, dtype=np.float32)
        scales, head, config = index.scales, self._head, ranker.config
        assert isinstance(config, HeadConfig)
        assert scales is not None and index.weights is not None and index.terms is not None
        if config.activation == "silu":
            self.activation_error = _native.SILU_ERROR
        if held is None:
            held = index.weights.nbytes + index.terms.nbytes <= HELD_BYTES
        anchored: dict[str, _native.Anchors] = {}
        if self._postings is not None:
            assert index.anchors is not None
            anchored["anchors"] = _native.Anchors(
                codes=np.asarray(index.anchors.codes),
                **self._postings._asdict(),
                item_tokens=index.anchors.item_tokens,
                layer=_floats(ranker.from_anchors.weight),
            )
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
            heads=self._heads,
            keys=index.keys,
            activation=config.activation,
            gated=config.gated,
            path=path,
            held=held,
            **anchored,
        )

    def _logits_of(self, state: Any) -> Callable[[slice | Rows, torch.Tensor | None], torch.Tensor]:
        requests = self._native_requests(state)

        def logits(rows: slice | Rows, extra: torch.Tensor | None) -> torch.Tensor:
            chosen = np.ascontiguousarray(np.atleast_2d(self._integers(rows)))
            added = () if extra is None else (_floats(extra),)
            return torch.from_numpy(self._native.scores(requests, chosen, self.threads, *added))

        return logits

    @property
    def path(self) -> str:
        """The implementation in use."""
        return self._native.path

    def _native_requests(self, state: Any) -> _native.Requests:
        more: dict[str, NDArray[Any]] = {}
        if state.anchored is not None:
            links = state.anchored
            more |= {"offsets": links.offsets.cpu().numpy(), "keys": links.keys.cpu().numpy()}
            more["anchored"] = _floats(links.links)
        if state.query is not None:
            more["query"] = _floats(state.query)
        return self._native.requests(_floats(state.links), _floats(state.head), **more)

    def scores(
        self,
        state: Any,
        rows: ArrayLike | slice | None = None,
        *,
        extra: torch.Tensor | None = None,
    ) -> NDArray[np.float32]:
        requests = self._native_requests(state)
        chosen = None
        if rows is not None:
            chosen = self._integers(rows)
            if chosen.ndim == 2 and len(chosen) != len(requests):
                raise SpecError(
                    f"rows are for {len(chosen)} requests, the state is of {len(requests)}"
                )
            chosen = np.ascontiguousarray(np.atleast_2d(chosen))
        count = len(self) if chosen is None else chosen.shape[1]
        extra = self._checked_extra(extra, len(requests), count)
        added = () if extra is None else (_floats(extra),)
        try:
            return self._native.scores(requests, chosen, self.threads, *added)
        except IndexError as error:
            raise UnknownError(str(error)) from None

    def top(
        self,
        state: Any,
        k: int,
        *,
        weights: ArrayLike | None = None,
        rows: ArrayLike | slice | None = None,
        exclude: Sequence[ArrayLike] | None = None,
        allow: NDArray[np.bool_] | None = None,
        extra: torch.Tensor | None = None,
    ) -> TopK:
        if extra is not None:  # a list: its logits, and the best of them
            found = ChunkedScorer.top(
                self, state, k, weights=weights, rows=rows, exclude=exclude, allow=allow,
                extra=extra,
            )  # fmt: skip
            return found
        requests = self._native_requests(state)
        batch = len(requests)
        of_tasks = self._first if weights is None else self._weights(weights, batch)
        if len(of_tasks) != batch:
            of_tasks = np.repeat(of_tasks, batch, axis=0)
        chosen = None if rows is None else np.ascontiguousarray(self._integers(rows).ravel())
        allowed = self._allowed(allow, batch)
        if allowed is not None and allowed.ndim == 1:
            allowed = allowed[None]
        excluded, ends = np.zeros(0, np.int64), np.zeros(batch, np.int64)
        if exclude is not None:
            if len(exclude) != batch:
                raise SpecError(f"exclude is for {len(exclude)} requests, the state is of {batch}")
            parts = [self._integers(part).ravel() for part in exclude]
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
            excluded = parts[0] if batch == 1 else np.concatenate([excluded, *parts])
        try:
            return TopK(
                *self._native.top(
                    requests,
                    self._checked_k(k),
                    of_tasks,
                    chosen,
                    excluded,
                    ends,
                    allowed,
                    self.threads,
                )
            )
        except IndexError as error:
            raise UnknownError(str(error)) from None


def _floats(values: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.detach().float().cpu().contiguous().numpy()
    return found
