"""Models that are fitted by counting: no gradients, no towers, one pass over the training window.

They keep the contract of :class:`~limerank.models.ranker.Ranker`, so that they are indexed, served
and evaluated as all others are. Another one is a subclass of :class:`FittedRanker` with
:meth:`~FittedRanker.fit`, ``user_state`` and ``score``.

The vector of an item is its row of the id table, in two numbers that float32 holds exactly; so the
index of such a model says which item each row is. Items that training has not seen share row 0.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from limerank.data.batch import Items, TrainingEvents
from limerank.kernels import dispatch
from limerank.models.config import DataShape, ModelConfig
from limerank.models.ranker import Ranker

BASE = 1 << 12
"""The vector of row r is (r // BASE, r % BASE)."""


class FittedConfig(ModelConfig):
    """Settings of the models that are fitted by counting."""

    width: int = Field(2, ge=2, le=2)
    """Length of the vectors of items: always 2."""

    unused: ClassVar[frozenset[str]] = frozenset(
        {
            "width",
            "id_dropout",
            "id_evidence",
            "vectors",
            "base_rates",
            "dropout",
            "anchors",
            "anchor_width",
            "anchor_dropout",
            "neighbours",
            "counter_hours",
            "since_positive",
            "curves",
            "counter_dropout",
            "impression_dropout",
        }
    )


class RowTerms(NamedTuple):
    """Of each item: ``vectors`` f32 [..., 2], its row of the id table."""

    vectors: Tensor


class FittedRanker(Ranker):
    """Base of the models that are fitted by counting. ``logits_k = scale_k score + shift_k``, where
    the calibration of a run chooses scale and shift: 1 and 0 before it."""

    fitted = True

    def __init__(self, shape: DataShape, config: FittedConfig) -> None:
        nn.Module.__init__(self)  # a fitted model has no towers
        self.shape, self.config = shape, config
        self.user_stage = dispatch.Choice("user stage", "torch", "the definition")
        self.anchors = self.neighbour_table = None
        self.impressions = self.counters = None
        self.out = nn.Linear(1, shape.outputs)
        nn.init.ones_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @abc.abstractmethod
    def fit(self, events: TrainingEvents, quiet: bool = True) -> None:
        """Count; called once, on the processor. ``quiet``: show no progress."""

    def begin_step(self, seed: int, step: int) -> None:
        """Nothing: no ids are hidden."""

    def last_layers(self) -> tuple[nn.Linear, ...]:
        """The layer that :meth:`calibrate` changes."""
        return (self.out,)

    def item_vectors(self, items: Items) -> Tensor:
        """The row of each item, f32 [U, 2]."""
        return torch.stack([items.ids // BASE, items.ids % BASE], -1).float()

    def encode_items(self, vectors_ud: Tensor) -> RowTerms:
        return RowTerms(vectors_ud)

    def logits(self, scores_bm: Tensor, extra: Tensor | None) -> Tensor:
        """Logits [B, M, K] of scores [B, M]."""
        logits: Tensor = self.out(scores_bm[..., None])
        return logits if extra is None else logits + extra


def rows_of(vectors_d: Tensor) -> Tensor:
    """Rows of the id table, i64 [...], of vectors [..., 2]."""
    parts = vectors_d.round().long()
    return parts[..., 0] * BASE + parts[..., 1]


class Sized(nn.Module):
    """Arrays whose sizes the log decides: a saved state of any size is loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, now in list(self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if now is not None and saved is not None and saved.dim() == now.dim():
                self._buffers[name] = now.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
