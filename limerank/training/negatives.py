"""Negatives of a batch: which items its requests compare their positives with.

All requests of a batch share one set S of items, which every one of them scores. It is the full
catalogue, or the union of two samples:

- ``n`` of the ``I`` items of the training window, drawn uniformly without replacement: an item is
  among them with the probability ``n / I``;
- the positives of the batch: with ``p_i``, the share of item i in the positives of the training
  split, and P positives in the batch, item i is among them with the probability
  ``1 - (1 - p_i) ** P``.

An item is in S with the probability ``q_i = 1 - (1 - n / I) (1 - p_i) ** P``. Its logit minus ``log
q_i`` then stands for ``1 / q_i`` items like it, so that the sum of the exponentials over S has the
expectation of the sum over the catalogue (Horvitz and Thompson 1952; the logQ correction of sampled
softmax). With ``n = I`` it is that sum.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


class Negatives:
    """Draws the shared items of batches.

    Args:
        positives: of each item of the training window, i64 [I].
        uniform: how many items are drawn uniformly; I or more: all of them.
        seed: of the training.
    """

    def __init__(self, positives: NDArray[np.int64], uniform: int, seed: int) -> None:
        self.items = len(positives)
        self.uniform = min(uniform, self.items)
        self._share = positives / max(int(positives.sum()), 1)
        self._seed = seed

    def drawn_for(self, positives: NDArray[np.int64]) -> Negatives:
        """The same for batches of other requests; ``positives``: of these, i64 [I]."""
        return Negatives(positives, self.uniform, self._seed)

    @property
    def full(self) -> bool:
        """Whether every batch has the full catalogue."""
        return self.uniform == self.items

    def draw(
        self, requests: NDArray[np.int64], positives: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The shared items of a batch, ascending, i64 [M], and the logarithm of the probability
        with which each one is among them, f32 [M]. The same for the same batch.

        Args:
            requests: rows of the batch's requests: they seed the draw.
            positives: item rows of the batch's positives.
        """
        if self.full:
            return np.arange(self.items), np.zeros(self.items, np.float32)
        key = zlib.crc32(np.ascontiguousarray(requests, np.int64).tobytes())
        generator = np.random.default_rng([self._seed, key])
        drawn = generator.choice(self.items, self.uniform, replace=False, shuffle=False)
        known = positives[positives < self.items]
        rows = np.union1d(drawn, known).astype(np.int64)
        absent = (1 - self.uniform / self.items) * (1 - self._share[rows]) ** len(known)
        return rows, np.log1p(-absent).astype(np.float32)
