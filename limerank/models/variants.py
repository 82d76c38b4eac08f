"""LIME with one part changed: what each part is worth is measured against these.

Chosen by ``ModelConfig.variant``. Not for serving: some of them give up the very property that
makes LIME cheap, and say so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.batch import Users
from limerank.config import DataShape, ModelConfig
from limerank.kernels.attention import real_positions, softmax_attention
from limerank.models.layers import join_heads, split_heads
from limerank.models.lime import Lime, LimeMha, LimeXor, LinkState, LinkTerms, XorBlock
from limerank.models.ranker import Ranker

# What links are


class RawLinks(Lime):
    """Links are not contextualised by the user's features: LC = L."""

    def __init__(self, shape: DataShape, config: ModelConfig) -> None:
        super().__init__(shape, config)
        del self.context_in, self.context_out

    def contextualise(self, u_bd: Tensor) -> Tensor:
        return self.links.expand(len(u_bd), -1, -1)


# How links and events read each other


class ReadOnly(LimeXor):
    """Events are never updated: links read the same events in every block."""

    def personalise(self, links_bld: Tensor, users: Users, vectors_ud: Tensor) -> Tensor:
        events_bnd = self.event_tower(users, vectors_ud) + self.ages(users.age)
        for block in self.stack:
            links_bld, _ = block(links_bld, events_bnd, users.lengths, True)
        return links_bld


class Dense(LimeXor):
    """No mask but padding: links read links and events read events as well, in (l + N)^2."""

    def personalise(self, links_bld: Tensor, users: Users, vectors_ud: Tensor) -> Tensor:
        events_bnd = self.event_tower(users, vectors_ud) + self.ages(users.age)
        links = links_bld.shape[1]
        x_bxd = torch.cat([links_bld, events_bnd], 1)
        real_bn = real_positions(users.lengths, events_bnd.shape[1])
        real_bx = torch.cat([real_bn.new_ones(len(real_bn), links), real_bn], 1)
        share_bx = real_bx / real_bx.sum(1, keepdim=True)
        for block in self.stack:
            assert isinstance(block, XorBlock)
            normal_bxd = block.norm(x_bxd)
            u_bxd, q_bxd = F.silu(block.uq(normal_bxd)).chunk(2, -1)
            k_bxd, v_bxd = F.silu(block.kv(normal_bxd)).chunk(2, -1)
            v_bxd = v_bxd * share_bx[..., None].to(v_bxd.dtype)
            q, k, v = (split_heads(part, block.heads) for part in (q_bxd, k_bxd, v_bxd))
            read_bxd = join_heads(F.silu((q * q.shape[-1] ** -0.5) @ k.mT) @ v)
            update_bxd = block.dropout(block.out(block.norm_read(read_bxd) * u_bxd))
            heard_bl1 = block.evidence(real_bx.sum(1))[..., None]
            x_bxd = x_bxd + torch.cat([update_bxd[:, :links] * heard_bl1, update_bxd[:, links:]], 1)
        return x_bxd[:, :links]


class SoftmaxXor(LimeXor):
    """phi is a softmax in both rectangles instead of SiLU / n."""

    def personalise(self, links_bld: Tensor, users: Users, vectors_ud: Tensor) -> Tensor:
        events_bnd = self.event_tower(users, vectors_ud) + self.ages(users.age)
        real_bn = real_positions(users.lengths, events_bnd.shape[1])
        padding_b11n = torch.where(real_bn, 0.0, -1e30)[:, None, None]
        for place, block in enumerate(self.stack):
            assert isinstance(block, XorBlock)
            normal_bld, normal_bnd = block.norm(links_bld), block.norm(events_bnd)
            (ul, ql), (un, qn) = (
                F.silu(block.uq(x)).chunk(2, -1) for x in (normal_bld, normal_bnd)
            )
            (kl, vl), (kn, vn) = (
                F.silu(block.kv(x)).chunk(2, -1) for x in (normal_bld, normal_bnd)
            )
            new_bld = _softmax(ql, kn, vn, padding_b11n, block.heads)
            update_bld = block.dropout(block.heard(new_bld, ul, users.lengths))
            if place + 1 < len(self.stack):
                new_bnd = _softmax(qn, kl, vl, None, block.heads)
                events_bnd = events_bnd + block.out(block.norm_read(new_bnd) * un)
            links_bld = links_bld + update_bld
        return links_bld


def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    if k.shape[1] == 0:
        return torch.zeros_like(q)
    q, k, v = (split_heads(part, heads) for part in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return join_heads(logits.softmax(-1).to(v.dtype) @ v)


class SoftmaxMha(LimeMha):
    """phi is a softmax: softmax(q k^T / sqrt(e) - rate * age)."""

    def personalise(self, links_bld: Tensor, users: Users, vectors_ud: Tensor) -> Tensor:
        heads = self.config.heads
        q_bhle = split_heads(self.query(links_bld), heads)
        kv_bnd = self.event_tower.through(self.key_value, users, vectors_ud)
        k_bhne, v_bhne = (split_heads(part, heads) for part in kv_bnd.chunk(2, -1))
        read_bhle = softmax_attention(
            q_bhle, k_bhne, v_bhne, self.log_rate.exp(), users.age, users.lengths
        )
        return self.absorb(links_bld, read_bhle, users.lengths)


# How candidates meet the links


class Coupled(Lime):
    """An item's weights come from the personalised links, not from the raw ones: W = softmax(
    t Wq (LP Wk)^T / sqrt(e)). Nothing of them can be computed before the user is known."""

    folds = False

    def encode_items(self, vectors_ud: Tensor) -> LinkTerms:
        return LinkTerms(self.item_query(vectors_ud), self.head.from_item(vectors_ud))

    def score(self, state: LinkState, terms: LinkTerms) -> Tensor:
        heads, batch = self.config.heads, len(state.head)
        q_bmd = terms.weights.expand(batch, *terms.weights.shape[-2:])
        o_bmd = _softmax(q_bmd, self.link_key(state.links), state.links, None, heads)
        return self.head(self.head.from_links(o_bmd) + terms.head + state.head[:, None])


class ProductTerms(NamedTuple):
    """:class:`LinkTerms` and the item vectors themselves, ``vectors`` [..., d]."""

    weights: Tensor
    head: Tensor
    vectors: Tensor


class Product(Lime):
    """The head's first layer also reads o * t, which cannot be folded: d x g more a candidate."""

    folds = False

    def __init__(self, shape: DataShape, config: ModelConfig) -> None:
        super().__init__(shape, config)
        outputs = self.head.from_links.out_features
        self.of_product = nn.Linear(config.width, outputs, bias=False)

    def encode_items(self, vectors_ud: Tensor) -> Any:
        return ProductTerms(*super().encode_items(vectors_ud), vectors_ud)

    def score(self, state: LinkState, terms: ProductTerms) -> Tensor:  # type: ignore[override]
        heads, batch = self.config.heads, len(state.head)
        w_bmj = terms.weights.expand(batch, *terms.weights.shape[-2:])
        o_bmd = join_heads(split_heads(w_bmj, heads) @ split_heads(state.links, heads))
        a_bmg = self.head.from_links(o_bmd) + self.of_product(o_bmd * terms.vectors)
        return self.head(a_bmg + terms.head + state.head[:, None])


VARIANTS: dict[tuple[str, str], type[Ranker]] = {
    ("lime-mha", "softmax"): SoftmaxMha,
    ("lime-xor", "softmax"): SoftmaxXor,
    ("lime-xor", "read-only"): ReadOnly,
    ("lime-xor", "dense"): Dense,
    **{
        (model, variant): type(f"{part.__name__}{base.__name__}", (part, base), {})
        for model, base in (("lime-mha", LimeMha), ("lime-xor", LimeXor))
        for variant, part in (("raw-links", RawLinks), ("coupled", Coupled), ("product", Product))
    },
}
"""(model, variant) -> class."""
