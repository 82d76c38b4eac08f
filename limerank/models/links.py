"""Links: their settings, what scoring needs of items and requests, and how links read events.

Shape letters: B requests, N history positions, U items, d width, H heads, e = d / H, l links,
g first-layer outputs of the head, K logits, S numbers of a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from limerank.kernels.attention import link_attention, link_weights
from limerank.models.anchors import Anchored
from limerank.models.config import AttentionConfig
from limerank.models.layers import (
    Evidence,
    FeedForward,
    FlooredNorm,
    join_heads,
    split_heads,
    start_forgetting,
)
from limerank.models.profile import ProfileState


class LinkTerms(NamedTuple):
    """Of each item: ``weights`` [..., H l] of its links; ``head`` [..., g], its head terms; and its
    ``key`` [..., S] for profiles (S is 0 without them)."""

    weights: Tensor
    head: Tensor
    key: Tensor


class LinkState(NamedTuple):
    """Of each request: personalised ``links`` [B, l, d]; ``head`` [B, g], the user's terms; and the
    ``query`` [B, K, S] of its profile."""

    links: Tensor
    head: Tensor
    query: Tensor | None = None
    anchored: Anchored | None = None


class HistoryState(NamedTuple):
    """The part of a :class:`LinkState` that does not depend on the context of a request: ``links``
    [B, l, d], and what the profile and anchored links give."""

    links: Tensor
    profile: ProfileState | None = None
    anchored: Anchored | None = None


class LimeConfig(AttentionConfig):
    """Settings of both forms."""

    anchors: tuple[str, ...] | None = None
    """What has anchored links: "item" (this very item in the history) and names of features. None:
    items and all features that the dataset anchors."""
    neighbours: int | None = Field(None, ge=0)
    """Items that the same users choose, of each item, whose anchored links it receives from as well
    (limerank.models.neighbours); 0: none. They take 8 bytes each, and in training six times that.
    By default, a model with anchored links has 50, or fewer (10 at least) where there are more than
    100,000 items."""
    counter_hours: int = Field(1, ge=0)
    """Hours from one refresh of the items' counters to the next; 0: no counters. A model with
    counters knows what is popular now: an item's rate of the first binary label, its impressions,
    both of the latest 24 hours alone, and the time since it was first shown
    (limerank.data.counters). They are part of the index: a server that is given what was shown
    refreshes them; else the index has those of the log that it is built from. Only where the log
    has times and such a label, with the objective "impressions"."""
    heads: int = Field(1, ge=1)
    """Attention heads, H; they divide the width. An item has H times ``links`` weights: more links
    are cheaper than more heads."""
    links: int = Field(32, ge=1)
    """Learned links between history and candidates, l. Scoring time and index size grow with it;
    the effective number of links in the metrics shows how many the model uses."""
    profile: int = Field(32, ge=0)
    """Numbers of an item's key, which is compared with the profile of the history
    (limerank.models.profile); 0: no profile."""
    profile_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the fading means of a profile that a training step drops."""

    other_names: ClassVar[Mapping[str, str]] = {
        **AttentionConfig.other_names,
        "slots": "links",
        "events": "links",
    }


class LimeMhaConfig(LimeConfig):
    """Settings of LIME-MHA."""

    model: str = "lime-mha"


class Reading(nn.Module):
    """The last layer in which links read events: attention, scaled by the evidence that the number
    of events gives, then a feed-forward layer.

    A link reads SiLU(q k^T / sqrt(e)) v, averaged over the events with shares that fall as
    exp(-rate * age); the rate is learned per head and link. The shares do not depend on the instant
    that ages count from, so the layer is two running sums over events in any order (see
    limerank.kernels.prefix). A softmax of the logits would not do: a link would read as much from a
    history without any event like it as from one that is full of them.
    """

    def __init__(self, config: LimeConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.links = config.heads, config.links
        self.query = nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.norm_read = FlooredNorm()
        self.out = nn.Linear(d, d)
        self.feed = FeedForward(d, config.dropout)
        self.evidence = Evidence(config.links)
        self.log_rate = nn.Parameter(torch.empty(config.heads, config.links))
        start_forgetting(self.log_rate)

    def queries(self, links_bld: Tensor) -> Tensor:
        """[B, l, d] -> [B, H, l, e]."""
        return split_heads(self.query(links_bld), self.heads)

    def forward(self, links_bld: Tensor, kv_bnd: Tensor, age_bn: Tensor, count_b: Tensor) -> Tensor:
        """Links that have read events, given as their keys and values, [B, N, 2 d]."""
        k_bhne, v_bhne = (split_heads(part, self.heads) for part in kv_bnd.chunk(2, -1))
        read_bhle = self.attend(self.queries(links_bld), k_bhne, v_bhne, age_bn, count_b)
        return self.absorb(links_bld, read_bhle, count_b)

    def attend(
        self, q_bhle: Tensor, k_bhne: Tensor, v_bhne: Tensor, age_bn: Tensor, count_b: Tensor
    ) -> Tensor:
        """Values that the links read, [B, H, l, e]."""
        return link_attention(q_bhle, k_bhne, v_bhne, self.log_rate.exp(), age_bn, count_b)

    def absorb(self, links_bld: Tensor, read_bhle: Tensor, count_b: Tensor) -> Tensor:
        """Add to the links what they read of ``count_b`` events; then the feed-forward layer."""
        update_bld = self.out(self.norm_read(join_heads(read_bhle)))
        heard_bl1 = self.evidence(count_b)[..., None].to(update_bld.dtype)
        links_bld = links_bld + update_bld * heard_bl1
        return links_bld + self.feed(links_bld)

    def weights(self, links_bld: Tensor, k_bnd: Tensor, age_bn: Tensor, count_b: Tensor) -> Tensor:
        """The weights with which :meth:`attend` reads events: [B, H, l, N]."""
        q_bhle, k_bhne = self.queries(links_bld), split_heads(k_bnd, self.heads)
        scaled_bhle = q_bhle * q_bhle.shape[-1] ** -0.5
        return link_weights(scaled_bhle, k_bhne, self.log_rate.exp(), age_bn, count_b)
