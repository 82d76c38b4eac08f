"""The model itself as a scorer, for any ranker: the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from limerank.index import Index
from limerank.models import Ranker
from limerank.models.ranker import gather
from limerank.ranking.scorer.anchored import item_keys
from limerank.ranking.scorer.chunked import ChunkedScorer
from limerank.ranking.scorer.contract import Rows


class ModelScorer(ChunkedScorer):
    """The model's own float32 arithmetic over the item vectors of an index.

    Args:
        keep: encode all items now and hold their terms in memory. Otherwise each call encodes the
            items that it scores.
    """

    name = "model"

    def __init__(self, ranker: Ranker, index: Index, *, keep: bool = False) -> None:
        super().__init__(ranker, index)
        self._cached: Any = None
        if keep:
            size = 65536
            with torch.inference_mode():
                parts = [self._terms(slice(at, at + size)) for at in range(0, len(index), size)]
                parts = parts or [self._terms(slice(0, 0))]
                self._cached = type(parts[0])(
                    *(torch.cat(part) for part in zip(*parts, strict=True))
                )

    def _requests(self, state: Any) -> Any:
        return state

    def _terms(self, rows: slice | Rows) -> Any:
        device = next(self.ranker.parameters()).device
        vectors_ud = torch.from_numpy(np.array(self.index.vectors[rows], dtype=np.float32))
        return self.ranker.encode_items(vectors_ud.to(device))

    def _logits(self, requests: Any, rows: slice | Rows, extra: Tensor | None = None) -> Tensor:
        device = next(self.ranker.parameters()).device
        linked = self._linked(requests, rows, device)
        if extra is not None:
            extra = extra.to(device)
            linked = extra if linked is None else linked + extra
        if isinstance(rows, slice):
            terms = self._terms(rows) if self._cached is None else _take(self._cached, rows)
        elif self._cached is not None:
            terms = gather(self._cached, torch.from_numpy(rows).to(self._cached[0].device))
        else:
            distinct, positions = np.unique(rows, return_inverse=True)
            terms = self._terms(distinct)
            at = torch.from_numpy(positions.reshape(rows.shape)).to(terms[0].device)
            terms = gather(terms, at)
        logits: Tensor = self.ranker.score(requests, terms, linked)
        return logits

    def _linked(self, state: Any, rows: slice | Rows, device: torch.device) -> Tensor | None:
        """What the anchored links of requests, and the counters of rows, add, [B or 1, m, s]."""
        counted = self._counted(rows, device)
        if state.anchored is None and counted is None:
            return None
        if isinstance(rows, slice) or rows.ndim == 1:
            keys = item_keys(self.index, rows)
            count = (
                len(range(*rows.indices(len(self.index)))) if isinstance(rows, slice) else len(rows)
            )
            at = torch.arange(count)
        else:
            distinct, positions = np.unique(rows, return_inverse=True)
            keys = item_keys(self.index, distinct)
            at = torch.from_numpy(positions.reshape(rows.shape))
        keys = None if keys is None else keys.to(device)
        return self.ranker.extra(state, keys, at.to(device), counted=counted)

    def _counted(self, rows: slice | Rows, device: torch.device) -> Tensor | None:
        """Counters of rows, f32 [..., F]; None for a model without counters."""
        if self.ranker.counters is None or self.index.counters is None:
            return None
        return torch.from_numpy(np.array(self.index.counters[rows])).to(device)


def _take(terms: Any, rows: slice) -> Any:
    return type(terms)(*(part[rows] for part in terms))
