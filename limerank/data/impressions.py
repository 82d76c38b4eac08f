"""Impression features: values that belong to one candidate of one request, such as its price at
that moment, as tokens and numbers.

Training, evaluation and ranking share :class:`ImpressionEncoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from limerank.data.batch import Impressions
from limerank.data.encoding import transformed

LARGEST = 3.0
"""Normalised numbers are cut to this many standard deviations: a typing error in a price is then no
more than a high price."""
Use = Literal["all", "known", "none"]
"""Which impression features a model sees: all, those that a ranking can know, or none."""


class ImpressionEncoder:
    """Columns of impressions as tokens and numbers.

    A numeric feature gives both: the token of its quantile, and its normalised number. Token 0 is
    the unknown value of every feature.

    Args:
        encoding: the ``encoding`` part of a dataset's manifest.

    Attributes:
        features: entries of the encoding by name, F of them; empty where a dataset has none.
        tokens: rows of the impression table; 0 without features.
        bias: which of them rankings leave out, bool [F].
        starts: the code c above 0 of feature f has the row ``starts[f] + c``, i64 [F + 1].
    """

    def __init__(self, encoding: Mapping[str, Any]) -> None:
        found = encoding.get("impression_features", [])
        self.features: dict[str, dict[str, Any]] = {one["name"]: one for one in found}
        sizes = [one["size"] - 1 for one in found]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.tokens = int(self.starts[-1]) + 1 if found else 0
        self.bias = np.array([one["bias"] for one in found], dtype=bool)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that :meth:`encode` reads: codes i32 of categories (0: unknown), numbers f32
        (NaN: missing)."""
        return tuple(f"impression_{name}" for name in self.features)

    def used(self, use: Use) -> NDArray[np.bool_]:
        """Which features a model sees, bool [F]."""
        return ~self.bias if use == "known" else np.full(len(self.bias), use == "all")

    def encode(self, columns: Mapping[str, NDArray[Any]]) -> Impressions:
        """Impressions [..., F] of columns of the shape [...]."""
        values = [columns[name] for name in self.columns]
        shape = (*values[0].shape, len(values))
        tokens, numbers = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for at, (column, one) in enumerate(zip(values, self.features.values(), strict=True)):
            codes = np.asarray(column)
            if one["kind"] == "numeric":
                known = np.isfinite(codes)
                given = np.where(known, codes, 0)
                edges = np.asarray(one["edges"], np.float32)
                codes = np.where(known, 1 + np.searchsorted(edges, given, side="right"), 0)
                normal = transformed(given.astype(np.float64), one["transform"])
                normal = np.clip((normal - one["mean"]) / one["std"], -LARGEST, LARGEST)
                numbers[..., at] = np.where(known, normal, 0)
            tokens[..., at] = np.where(codes > 0, codes + self.starts[at], 0)
        return Impressions(tokens=torch.from_numpy(tokens), numbers=torch.from_numpy(numbers))
