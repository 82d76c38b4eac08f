"""The scales of an index, from a sample of its items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.index.format import Scales
from limerank.index.items import SourceItems
from limerank.index.writing import CHUNK, columns_of, counted_by, encoded, refuse_nan
from limerank.models import Ranker

SAMPLE = 1 << 16
"""Scales are computed from so many items, evenly spaced; from all where there are fewer."""


def sampled(count: int, total: int) -> slice:
    """The rows of a source of ``count`` items that belong to the sample of a catalogue of
    ``total``."""
    return slice(0, count, max(1, -(-total // SAMPLE)))


def sample_of(parts: Sequence[SourceItems]) -> list[SourceItems]:
    """The sample of a catalogue."""
    total = sum(map(len, parts))
    return [replace(part, rows=part.rows[sampled(len(part), total)]) for part in parts]


@torch.inference_mode()
def scales_of(ranker: Ranker, sample: Sequence[SourceItems]) -> Scales:
    """Scales from the ranges of columns over the items of a sample. Counters change later, and new
    items come: so the ranges of terms include those of the same items as if they were never shown,
    and of each with the counters of some others."""
    device = next(ranker.parameters()).device
    low: list[Tensor] = []
    high: list[Tensor] = []
    sums: NDArray[np.float64] = np.zeros(0)
    rows = 0
    for part in sample:
        for items in part.chunks(CHUNK):
            vectors_ud = ranker.item_vectors(items.to(device)).float()
            refuse_nan(vectors_ud)
            counted = counted_by(ranker, items)
            found = encoded(ranker, vectors_ud, counted)
            new_low, new_high = [x.amin(0) for x in found], [x.amax(0) for x in found]
            if ranker.counters is not None and counted is not None:
                others = [counted.roll(shift, 0) for shift in (1, len(counted) // 2)]
                for other in (ranker.counters.values[:1], *others):
                    new = encoded(ranker, vectors_ud, other)[1]
                    new_low[1] = torch.minimum(new_low[1], new.amin(0))
                    new_high[1] = torch.maximum(new_high[1], new.amax(0))
            low = [torch.minimum(*pair) for pair in zip(low or new_low, new_low, strict=True)]
            high = [torch.maximum(*pair) for pair in zip(high or new_high, new_high, strict=True)]
            new_sums = found[0].sum(0, dtype=torch.float64).cpu().numpy()
            sums = sums + new_sums if rows else new_sums
            rows += len(vectors_ud)
    if not rows:
        zero_ud = torch.zeros(1, ranker.config.width, device=device)
        empty = columns_of(ranker.encode_items(zero_ud))
        low, high = [torch.zeros_like(x[0]) for x in empty], [torch.ones_like(x[0]) for x in empty]
    (w_low, t_low), (w_high, t_high) = (
        [column.double().cpu().numpy() for column in columns] for columns in (low, high)
    )
    w_step, t_step = (w_high - w_low) / 255, (t_high - t_low) / 254
    w_step[w_step == 0] = t_step[t_step == 0] = 1.0
    mean = (sums / rows - w_low) / w_step if rows else np.zeros_like(w_low)
    columns = {
        "weight_low": w_low,
        "weight_step": w_step,
        "weight_mean": mean,
        "weight_excess": np.zeros_like(w_low),
        "term_middle": (t_low + t_high) / 2,
        "term_step": t_step,
        "term_excess": np.zeros_like(t_low),
    }
    return Scales(
        **{name: column.astype(np.float32) for name, column in columns.items()}, weight_spread=0.0
    )
