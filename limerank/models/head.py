"""The head that models share: a shallow network whose first layer is additive.

Shape letters: B requests, d width, h hidden units, g first-layer outputs (2 h when gated, else h),
K logits.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from limerank.models.config import DataShape, HeadConfig

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "hardswish": F.hardswish}


class Head(nn.Module):
    """A shallow network with an additive first layer, so that each side's part is computed once.

    ``a = A_o o + A_t t + A_u u + A_c c + b``; ``z = f(a)``, or with a gate ``z = f(a') * a''``
    where a', a'' are the halves of a; ``logits = A_k z + b_k``.
    """

    def __init__(self, shape: DataShape, config: HeadConfig) -> None:
        super().__init__()
        outputs = config.hidden * (2 if config.gated else 1)
        self.from_links = nn.Linear(config.width, outputs, bias=False)
        self.from_item = nn.Linear(config.width, outputs)
        self.from_user = nn.Linear(config.width, outputs, bias=False)
        self.from_context = nn.Linear(config.width, outputs, bias=False)
        self.out = nn.Linear(config.hidden, shape.outputs)
        self.gated = config.gated
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def from_request(self, u_bd: Tensor, c_bd: Tensor) -> Tensor:
        """The user's and the context's part of the first layer, [B, g]."""
        return self.from_user(u_bd) + self.from_context(c_bd)

    def forward(self, a_g: Tensor) -> Tensor:
        """First-layer sums [..., g] -> logits [..., K]."""
        if self.gated:
            a_h, gate_h = a_g.chunk(2, dim=-1)
            z_h = self.activation(a_h) * gate_h
        else:
            z_h = self.activation(a_g)
        logits: Tensor = self.out(self.dropout(z_h))
        return logits
