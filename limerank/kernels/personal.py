"""The user stage of LIME without gradients, in C++: each request in one call.

What a request costs by itself, small as it is, would otherwise be mostly that of its hundred tensor
operations. limerank/kernels/native/personal.hpp tells how, limerank.models.lime what.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limerank.kernels import _native

Stage = list[tuple[nn.Module, str]]
"""Parameters, each by the module that has it and its name: the links [l, d]; weight and bias of
the two context layers, of the reading's queries, of its keys and values and of what comes out of
it; its floor, what it takes for evidence, its rates; weight and bias of the feed-forward layer's
norm, of its two layers, and of the last norm. Then, of each block: weight and bias of its norm, of
U and Q, of K and V, and of the norm of what is read; what it takes for evidence; weight and bias of
what comes out."""

ONCE, EACH_BLOCK = 22, 11
"""How many of them there are, beside those of blocks; and of each block."""


def affine(*modules: nn.Module) -> Stage:
    """Weight and bias of each module."""
    return [(module, name) for module in modules for name in ("weight", "bias")]


class Personaliser:
    """Requests -> their links, contextualised and personalised, as ``Lime.personalise`` has them.

    Weights are read where the modules have them: what an optimiser writes, or a state that is
    loaded, counts at once.

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
        """Of the matrix products of a request with so many events."""
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
            users_bd: what the users' features say.
            events_bnd: of each request the first ``count_b`` are real.
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
