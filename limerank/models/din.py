"""DIN (arXiv 1706.06978): every candidate pools the history with an activation unit.

Shape letters: B requests, N history positions, M candidates, U items, d width, a units of the
activation unit, g first-layer outputs of the head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import Users
from limerank.kernels.attention import real_positions
from limerank.kernels.dispatch import fast_inference
from limerank.models.anchors import Anchored
from limerank.models.config import DataShape, HeadConfig
from limerank.models.layers import Ages
from limerank.models.ranker import Ranker, at_once, pieces, plus

UNITS = 36
"""Of the activation unit's hidden layer, as in the paper."""
UNIT_STD = 0.01
"""Standard deviation of its last layer at the start. The sum is not divided by the number of
events: with PyTorch's default, logits would start in the hundreds after a hundred events."""
PAIRS = 4096
"""Events times candidates that go through the activation unit at once without gradients: what
they take fits into the processor's cache."""


class ActivationTerms(NamedTuple):
    """Of each item: ``vectors`` [..., d], ``unit`` [..., a], its part of the activation unit's
    first layer, and ``head`` [..., g]."""

    vectors: Tensor
    unit: Tensor
    head: Tensor


class EventState(NamedTuple):
    """Of each request: ``events`` [B, N, d], ``unit`` [B, N, a], their part of the activation
    unit's first layer, ``lengths`` [B] and ``head`` [B, g], the user's terms."""

    events: Tensor
    unit: Tensor
    lengths: Tensor
    head: Tensor
    anchored: Anchored | None = None


class DinConfig(HeadConfig):
    """Settings of DIN."""

    model: str = "din"


class Din(Ranker):
    """o = sum over events of a(e_j, t) e_j, a(e, t) = w PReLU(W [e ; e * t ; t] + b) + c.

    Without a softmax, the sum grows with the part of the history that is like the candidate. (The
    paper's Dice, a PReLU that is shifted by statistics of the batch, is left out: scores would
    depend on what else is in a batch.)
    """

    config: DinConfig

    pairwise = True

    def __init__(self, shape: DataShape, config: DinConfig) -> None:
        super().__init__(shape, config)
        d = config.width
        self.ages = Ages(d)
        self.of_event = nn.Linear(d, UNITS)
        self.of_item = nn.Linear(d, UNITS, bias=False)
        self.of_both = nn.Linear(d, UNITS, bias=False)
        self.slope = nn.PReLU(UNITS)
        self.unit = nn.Linear(UNITS, 1)
        nn.init.normal_(self.unit.weight, std=UNIT_STD)
        nn.init.zeros_(self.unit.bias)
        self.head = self.new_head()

    def encode_items(self, vectors_ud: Tensor) -> ActivationTerms:
        return ActivationTerms(
            vectors_ud, self.of_item(vectors_ud), self.head.from_item(vectors_ud)
        )

    def user_state(self, users: Users, vectors_ud: Tensor) -> EventState:
        events_bnd = self.event_tower(users, vectors_ud) + self.ages(users.age)
        head_bg = self.head.from_request(*self.user_tower(users))
        return EventState(events_bnd, self.of_event(events_bnd), users.lengths, head_bg)

    def score(
        self, state: EventState, terms: ActivationTerms, extra: Tensor | None = None
    ) -> Tensor:
        batch, size, _ = state.events.shape
        some = at_once(PAIRS, batch * size, state.events.device)
        if fast_inference() and terms.unit.shape[-2] > some:
            return torch.cat([self.score(state, *piece) for piece in pieces(terms, some, extra)], 1)
        vectors_bmd = terms.vectors.expand(batch, *terms.vectors.shape[-2:])
        unit_bma = terms.unit.expand(batch, *terms.unit.shape[-2:])
        # W_both (e * t), as a product of the events with each candidate's own matrix.
        own_bmda = vectors_bmd[..., None] * self.of_both.weight.T
        both_bnma = (state.events @ own_bmda.transpose(1, 2).flatten(-2)).unflatten(
            -1, (vectors_bmd.shape[1], UNITS)
        )
        sums_bnma = both_bnma + state.unit[:, :, None] + unit_bma[:, None]
        weights_bnm = self.unit(self._slope(sums_bnma)).squeeze(-1)
        weights_bnm = weights_bnm * real_positions(state.lengths, size)[..., None]
        o_bmd = weights_bnm.to(state.events.dtype).mT @ state.events
        sums_bmg = self.head.from_links(o_bmd) + terms.head + state.head[:, None]
        return self.head(plus(sums_bmg, extra))

    def _slope(self, x: Tensor) -> Tensor:
        return F.relu(x) - self.slope.weight * F.relu(-x)

    def scratch(self, state: EventState) -> int:
        return super().scratch(state) + (3 * state.events.shape[1] + self.config.width) * UNITS
