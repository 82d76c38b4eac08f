"""Numeric features of items and users as piecewise linear curves.

A linear map of a price knows "the more, the better". A curve knows a range: each number becomes the
weights of the two nearest of its feature's knots (after Gorishniy et al. 2022, "On Embeddings for
Numerical Features in Tabular Deep Learning", section 3.2). Knots are quantiles of the training
window. Curves are added to the linear map, and start at zero. Vectors of items are indexed, so that
a ranking costs nothing more.

Shape letters: n rows, N numbers of the table, F numeric features, K knots, d width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

KNOTS = 16
"""Of a feature."""
SAMPLED = 1 << 18
"""Rows, about, whose quantiles are taken."""
CLOSE = 1e-6
"""Between knots that are alike, where many rows have one value."""


class Curves(nn.Module):
    """Rows of a table's numbers, f32 [n, N] -> [n, d].

    Args:
        columns: those that are numeric features, F of N.
        width: d.

    Attributes:
        columns: the same.
    """

    knots: Tensor
    """Ascending, f32 [F, K]; all alike: not set yet, or a feature that is constant."""

    def __init__(self, columns: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.columns = list(columns)
        self.register_buffer("knots", torch.zeros(len(columns), KNOTS))
        with torch.random.fork_rng(devices=[]):
            self.out = nn.Linear(len(columns) * KNOTS, width, bias=False)
        nn.init.zeros_(self.out.weight)

    @torch.no_grad()
    def fit(self, numbers: NDArray[np.float32], rows: NDArray[np.integer[Any]]) -> None:
        """Set knots that are not set yet by some rows of a table's numbers.

        Args:
            numbers: of all rows, [rows, N], which may be larger than memory.
            rows: which of them are seen, i64 [n]; about :data:`SAMPLED` are read.
        """
        some = rows[:: max(len(rows) // SAMPLED, 1)]
        if not len(some):
            return
        some_nf = torch.from_numpy(numbers[some[:, None], self.columns]).double()
        shares = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
        found = torch.stack([torch.quantile(some_n, shares) for some_n in some_nf.T])
        new = self.knots[:, 0] == self.knots[:, -1]
        self.knots[new] = found[new].to(self.knots)

    def forward(self, numbers_nf: Tensor) -> Tensor:
        first_f, last_f = self.knots[:, 0], self.knots[:, -1]
        x_nf1 = numbers_nf[:, self.columns].clamp(first_f, last_f)[..., None]
        gaps = self.knots.diff().clamp(min=CLOSE)
        low = ((x_nf1 - self.knots[:, :-1]) / gaps).clamp(0, 1)
        ends = torch.ones_like(x_nf1)
        weights_nfk = torch.cat([ends, low], -1) - torch.cat([low, 0 * ends], -1)
        found: Tensor = self.out(weights_nfk.flatten(1))
        return found
