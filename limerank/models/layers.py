"""Parts that several rankers use.

Shape letters: B requests, N history positions, d width, H heads, e = d / H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.kernels.dispatch import fast_inference
from limerank.models.anchors import Anchored
from limerank.models.tables import TABLE_STD

AGE_BUCKETS = 48
"""Buckets of the logarithm of an age."""
START_EVENTS = 4
"""Number of events at which the factor is one half when training starts; see
:class:`Evidence`. Other values:
docs/results/attempts.md."""
START_FLOOR = 0.5
"""See :class:`FlooredNorm`. Other values: docs/results/attempts.md."""
HALF_LIVES = 10.0, 1000.0
"""Shortest and longest half-life of a model that does not know the ages of a log's events."""


def age_bucket(age: Tensor) -> Tensor:
    """Ages in days (events, where the log has no clock) -> bucket, i32: about 19 % wide each."""
    return (4 * torch.log2(1 + 24 * age)).int().clamp(max=AGE_BUCKETS - 1)


class Ages(nn.Embedding):
    """An embedding of how old each event is: [B, N] -> [B, N, d]."""

    def __init__(self, width: int) -> None:
        super().__init__(AGE_BUCKETS, width)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=TABLE_STD)

    def forward(self, age_bn: Tensor) -> Tensor:
        return super().forward(age_bucket(age_bn))


@torch.no_grad()
def start_forgetting(log_rate_hl: Tensor, ages_n: Tensor | None = None) -> None:
    """Spread the half-lives of heads and links before training starts, evenly in the logarithm.

    The shortest is the 5th percentile of the ages above 0, the longest is ten times the 95th. Some
    links then forget within a session and some remember almost everything, whether the users of a
    log stay for an afternoon or for years.

    Args:
        log_rate_hl: logarithms of the rates, f32 [H, l], written in place; a rate is ln 2 over the
            half-life.
        ages_n: ages of the log's events; :data:`HALF_LIVES` without any above 0.
    """
    shortest, longest = HALF_LIVES
    if ages_n is not None and bool((ages_n > 0).any()):
        ages_n = ages_n[ages_n > 0].double().sort().values
        shortest = float(ages_n[len(ages_n) // 20])
        longest = 10 * float(ages_n[-1 - len(ages_n) // 20])
    heads, links = log_rate_hl.shape
    spread = torch.linspace(math.log(shortest), math.log(longest), heads * links)
    log_rate_hl.copy_(math.log(math.log(2)) - spread.view(links, heads).T)


class Evidence(nn.Module):
    """n / (n + k), with a learned k: the factor for what was read of n events.

    The mean over one event is as large as the mean over a hundred events that agree, but it is
    weaker evidence. Without events the factor is 0. Logs contain few short histories to learn k
    from, so it stays near :data:`START_EVENTS`.

    Args:
        shape: of k, [...]; :meth:`forward` takes counts i64 [B] and returns f32 [B, ...].
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.log_prior = nn.Parameter(torch.full(shape, math.log(START_EVENTS)))

    def forward(self, count_b: Tensor) -> Tensor:
        of_events = count_b.log().view(-1, *(1 for _ in self.log_prior.shape))
        return torch.sigmoid(of_events - self.log_prior)


class FlooredNorm(nn.Module):
    """x / sqrt(mean(x^2) + c^2), with a learned c that starts as :data:`START_FLOOR`.

    A large vector is scaled to unit size, as by any norm, so that a few events that are like a link
    count among hundreds that are not. A small vector stays small, so that a link contributes
    nothing if no event is like it. [..., d] -> [..., d].
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_floor = nn.Parameter(torch.tensor(math.log(START_FLOOR)))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and fast_inference():
            return F.rms_norm(x, x.shape[-1:], eps=math.exp(2 * float(self.log_floor)))
        size = x.float().square().mean(-1, keepdim=True) + (2 * self.log_floor).exp()
        return x * torch.rsqrt(size).to(x.dtype)


class FeedForward(nn.Module):
    """Linear(SiLU(Linear(LN(x)))), twice as wide inside."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        if not fast_inference() or self.training:
            y: Tensor = self.layers(x)
            return y
        norm, up, _, _, down = self.layers
        return down(F.silu(up(norm(x)), inplace=True))


class HeadTerms(NamedTuple):
    """Of each item: ``head`` [..., g], its part of the head's first layer."""

    head: Tensor


class HeadState(NamedTuple):
    """Of each request: ``head`` [B, g], its part of the head's first layer."""

    head: Tensor
    anchored: Anchored | None = None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, d] -> [B, H, N, e]."""
    batch, size, d = x.shape
    return x.view(batch, size, heads, d // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, N, e] -> [B, N, d]."""
    return x.transpose(1, 2).flatten(-2)


def positions_from_newest(lengths_b: Tensor, size: int, most: int) -> Tensor:
    """How many events of its history are newer than each one, at most ``most - 1``: i64 [B, N]."""
    positions_bn = lengths_b[:, None] - 1 - torch.arange(size, device=lengths_b.device)
    return positions_bn.clamp(0, most - 1)
