"""Two towers (TTSN): the user is one pooled vector, which scores an item by a dot product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from limerank.data.batch import Users
from limerank.kernels.attention import real_positions
from limerank.models.anchors import Anchored
from limerank.models.axes import OUTPUTS, Axes, Axis
from limerank.models.config import DataShape, ModelConfig
from limerank.models.ranker import Ranker, plus


class TowerTerms(NamedTuple):
    """Of each item: ``vectors`` [..., K d] and ``bias`` [..., K]."""

    vectors: Tensor
    bias: Tensor


class TowerState(NamedTuple):
    """Of each request: ``vectors`` [B, K d] and ``bias`` [B, K]."""

    vectors: Tensor
    bias: Tensor
    anchored: Anchored | None = None


class TwoTowerConfig(ModelConfig):
    """Settings of the two towers, whose hidden layers are 2 d and 4 d wide."""

    model: str = "two-tower"


class TwoTower(Ranker):
    """logits_k = <q_k, p_k> / sqrt(d) + item bias + user bias.

    q = MLP([mean of the events ; u ; c]), p = MLP(t).
    """

    config: TwoTowerConfig

    def __init__(self, shape: DataShape, config: TwoTowerConfig) -> None:
        super().__init__(shape, config)
        d, outputs = config.width, shape.outputs
        self.user = nn.Sequential(
            nn.Linear(3 * d, 4 * d),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(4 * d, outputs * (d + 1)),
        )
        self.item = nn.Sequential(
            nn.Linear(d, 2 * d),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * d, outputs * (d + 1)),
        )

    def encode_items(self, vectors_ud: Tensor) -> TowerTerms:
        return TowerTerms(*self._parts(self.item(vectors_ud)))

    def user_state(self, users: Users, vectors_ud: Tensor) -> TowerState:
        events_bnd = self.event_tower(users, vectors_ud)
        real_bn = real_positions(users.lengths, events_bnd.shape[1])
        sums_bd = (events_bnd * real_bn[..., None]).sum(1)
        pooled_bd = sums_bd / users.lengths.clamp(min=1)[:, None]
        u_bd, c_bd = self.user_tower(users)
        return TowerState(*self._parts(self.user(torch.cat([pooled_bd, u_bd, c_bd], -1))))

    def score(self, state: TowerState, terms: TowerTerms, extra: Tensor | None = None) -> Tensor:
        d, outputs = self.config.width, self.shape.outputs
        q_bkd = state.vectors.unflatten(-1, (outputs, d)) * d**-0.5
        p_mkd = terms.vectors.unflatten(-1, (outputs, d))
        if p_mkd.dim() == 3:
            products_bmk = torch.einsum("bkd,mkd->bmk", q_bkd, p_mkd)
        else:
            products_bmk = torch.einsum("bkd,bmkd->bmk", q_bkd, p_mkd)
        return plus(products_bmk + terms.bias + state.bias[:, None], extra)

    def last_layers(self) -> tuple[nn.Linear, ...]:
        user, item = self.user[-1], self.item[-1]
        assert isinstance(user, nn.Linear) and isinstance(item, nn.Linear)
        return user, item, *self.adding_layers()

    @torch.no_grad()
    def calibrate(self, scale_k: Tensor, shift_k: Tensor) -> None:
        user, item, *adding = self.last_layers()
        vectors = scale_k.repeat_interleave(self.config.width)
        for layer, scale in (
            (user, torch.cat([vectors, scale_k])),
            (item, torch.cat([torch.ones_like(vectors), scale_k])),
        ):
            layer.weight.mul_(scale[:, None])
            layer.bias.mul_(scale)
        user.bias[-self.shape.outputs :].add_(shift_k)
        for layer in adding:
            layer.weight.mul_(scale_k[:, None])

    def axes(self) -> Axes:
        """The last layers give d numbers and a bias of each logit."""
        parts = (Axis(OUTPUTS, self.config.width), Axis(OUTPUTS))
        layers = ("user.3", "item.3")
        return {f"{name}.{of}": (parts,) for name in layers for of in ("weight", "bias")}

    def _parts(self, out: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.shape.outputs
        return out[..., :-outputs], out[..., -outputs:]
