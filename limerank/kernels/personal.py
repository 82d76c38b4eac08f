"""The user stage of LIME without gradients, in C++: each request in one call.

For a single request, most of the time would otherwise be the overhead of a hundred tensor
operations. The definition is in limerank.models.lime, the algorithm in
limerank/kernels/native/personal.hpp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limerank.kernels import _native

Stage = list[tuple[nn.Module, str]]
"""Parameters, each as its module and its name: the links [l, d]; weight and bias of the two context
layers, and of the queries, the keys and values, and the output of the reading; its floor, its
evidence prior, its rates; weight and bias of the feed-forward layer's norm, of its two layers, and
of the last norm. Then for each block: weight and bias of its norm, of U and Q, of K and V, and of
the norm of the values read; its evidence prior; weight and bias of its output."""

ONCE, EACH_BLOCK = 22, 11
"""Number of parameters without blocks, and of each block."""


def affine(*modules: nn.Module) -> Stage:
    """Weight and bias of each module."""
    return [(module, name) for module in modules for name in ("weight", "bias")]


class Personaliser:
    """Requests -> their links, contextualised and personalised, as ``Lime.personalise`` has them.

    It reads the weights in the memory of the modules: updates of an optimiser and loaded states
    take effect at once.

    Args:
        heads: that divide the width.
        stage: f32, on the processor.
    """

    def __init__(self, heads: int, stage: Stage) -> None:
        self.heads, self.stage = heads, stage
        self._at: list[int] = []
        self._native: _native.Personaliser | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_at": [], "_native": None}

    def multiply_adds(self, events: int) -> int:
        """Multiply-adds of the matrix products of a request with so many events."""
        (links, d), blocks = self._weights()[0].shape, (len(self.stage) - ONCE) // EACH_BLOCK
        context = 2 * d * d + 4 * links * d * d
        block = 5 * (links + events) * d * d + 4 * events * links * d
        reading = links * (8 * d * d + 2 * d) + 2 * self.heads * events * links * d
        return context + blocks * block + reading

    def _weights(self) -> list[Tensor]:
        found = (module._parameters[name] for module, name in self.stage)
        return [weight for weight in found if weight is not None]

    def __call__(
        self, users_bd: Tensor, events_bnd: Tensor, age_bn: Tensor, count_b: Tensor
    ) -> Tensor:
        """Links [B, l, d].

        Args:
            users_bd: vectors of the users' own features.
            events_bnd: vectors of events; the first ``count_b`` of each request are not padding.
            age_bn: of the events.
            count_b: i64.
        """
        weights = self._weights()
        at = [weight.data_ptr() for weight in weights]
        if self._native is None or at != self._at:
            links, *others = (weight.detach().numpy() for weight in weights)
            self._native, self._at = _native.Personaliser(self.heads, links, others), at
        links_bld = self._native(
            users_bd.contiguous().numpy(),
            events_bnd.contiguous().numpy(),
            age_bn.contiguous().numpy(),
            count_b.contiguous().numpy(),
            torch.get_num_threads(),
        )
        return torch.from_numpy(links_bld)
