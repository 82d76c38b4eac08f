"""LIME with one part changed: the ablations compare these variants with the unchanged model.

Importing this module registers them, as ``lime-mha-softmax`` and so on. Some give up the property
that makes LIME cheap; their docstrings name it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import Users
from limerank.kernels.attention import pointwise_attention, real_positions, softmax_attention
from limerank.models.config import DataShape
from limerank.models.layers import join_heads, split_heads
from limerank.models.lime import START_GAIN, Lime, LimeMha
from limerank.models.lime_xor import LimeXor, LimeXorConfig, XorBlock
from limerank.models.links import LimeConfig, LimeMhaConfig, LinkState, LinkTerms, Reading
from limerank.models.ranker import plus
from limerank.models.registry import register

# What links are


class RawLinks(Lime):
    """Links are not contextualised by the user's features: LC = L."""

    native_user_stage = streams = False

    def __init__(self, shape: DataShape, config: LimeConfig) -> None:
        super().__init__(shape, config)
        del self.context_in, self.context_out

    def contextualise(self, u_bd: Tensor) -> Tensor:
        return self.links.expand(len(u_bd), -1, -1)


# Attention between links and events


class ReadOnly(LimeXor):
    """Events are never updated: links attend to the same events in every block."""

    native_user_stage = streams = False

    def through(
        self, links_bld: Tensor, events_bnd: Tensor, count_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        for block in self.blocks():
            links_bld = links_read(block, links_bld, events_bnd, count_b)
        return links_bld, events_bnd


def links_read(block: XorBlock, links_bld: Tensor, events_bnd: Tensor, count_b: Tensor) -> Tensor:
    """A block without the attention of events to links."""
    u_bld, q_bhle = block.two(block.norm(links_bld))
    k_bhne, v_bhne = block.pair(block.norm(events_bnd))
    read_bld = pointwise_attention(q_bhle, k_bhne, v_bhne, count_b)
    return links_bld + block.dropout(block.link_update(read_bld, u_bld, count_b))


class Dense(LimeXor):
    """Padding is the only mask: links also attend to links, events to events, in (l + N)^2."""

    native_user_stage = streams = False

    def through(
        self, links_bld: Tensor, events_bnd: Tensor, count_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        links = links_bld.shape[1]
        x_bxd = torch.cat([links_bld, events_bnd], 1)
        real_bn = real_positions(count_b, events_bnd.shape[1])
        real_bx = torch.cat([real_bn.new_ones(len(real_bn), links), real_bn], 1)
        share_bx = real_bx / real_bx.sum(1, keepdim=True)
        for block in self.blocks():
            normal_bxd = block.norm(x_bxd)
            u_bxd, q = block.two(normal_bxd)
            k, v = block.pair(normal_bxd)
            v = v * share_bx[:, None, :, None].to(v.dtype)
            read_bxd = join_heads(F.silu((q * q.shape[-1] ** -0.5) @ k.mT) @ v)
            update_bxd = block.dropout(block.out(block.norm_read(read_bxd) * u_bxd))
            heard_bl1 = block.evidence(real_bx.sum(1))[..., None]
            x_bxd = x_bxd + torch.cat([update_bxd[:, :links] * heard_bl1, update_bxd[:, links:]], 1)
        return x_bxd[:, :links], x_bxd[:, links:]


class LastBlock(LimeXor):
    """The last block has the form of the others, as in the paper; candidates use its links."""

    native_user_stage = streams = False

    def __init__(self, shape: DataShape, config: LimeXorConfig) -> None:
        super().__init__(shape, config)
        d = config.width
        self.last = XorBlock(config)
        with torch.no_grad():
            self.last.uq.weight[d:] = self.reading.query.weight
            self.last.kv.weight[:d] = self.reading.key_value.weight[:d] / START_GAIN
        del self.reading

    def start_at(self, ages_n: Tensor) -> None:
        """Ages enter through their embedding alone."""

    def read(
        self, links_bld: Tensor, events_bnd: Tensor, age_bn: Tensor, count_b: Tensor
    ) -> Tensor:
        return links_read(self.last, links_bld, events_bnd, count_b)

    def read_weights(self, users: Users, vectors_ud: Tensor) -> Tensor:
        links_bld = self.contextualise(self.user_tower(users)[0])
        events_bnd = self.events(users, vectors_ud)
        links_bld, events_bnd = self.through(links_bld, events_bnd, users.lengths)
        q_bhle = self.last.two(self.last.norm(links_bld))[1]
        k_bhne = self.last.pair(self.last.norm(events_bnd))[0]
        read_bld = pointwise_attention(q_bhle, k_bhne, unit_values(k_bhne), users.lengths)
        return split_heads(read_bld, self.config.heads)


def unit_values(k_bhne: Tensor) -> Tensor:
    """Values [B, H, N, N] that are read as the weights themselves."""
    unit_nn = torch.eye(k_bhne.shape[2], dtype=k_bhne.dtype, device=k_bhne.device)
    return unit_nn.expand(*k_bhne.shape[:2], -1, -1)


class SoftmaxReading(Reading):
    """phi is a softmax: softmax(q k^T / sqrt(e) - rate * age)."""

    def attend(
        self, q_bhle: Tensor, k_bhne: Tensor, v_bhne: Tensor, age_bn: Tensor, count_b: Tensor
    ) -> Tensor:
        return softmax_attention(q_bhle, k_bhne, v_bhne, self.log_rate.exp(), age_bn, count_b)

    def weights(self, links_bld: Tensor, k_bnd: Tensor, age_bn: Tensor, count_b: Tensor) -> Tensor:
        q_bhle, k_bhne = self.queries(links_bld), split_heads(k_bnd, self.heads)
        return self.attend(q_bhle, k_bhne, unit_values(k_bhne), age_bn, count_b)


class SoftmaxMha(LimeMha):
    """Links read events by a softmax."""

    native_user_stage = streams = False
    reads = SoftmaxReading


class SoftmaxXor(LimeXor):
    """The same, and a softmax instead of SiLU / n in both rectangles."""

    reads = SoftmaxReading
    native_user_stage = streams = False

    def through(
        self, links_bld: Tensor, events_bnd: Tensor, count_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        real_bn = real_positions(count_b, events_bnd.shape[1])
        padding_b11n = torch.where(real_bn, 0.0, -1e30)[:, None, None]
        for block in self.blocks():
            normal_bld, normal_bnd = block.norm(links_bld), block.norm(events_bnd)
            (u_bld, ql), (u_bnd, qn) = block.two(normal_bld), block.two(normal_bnd)
            (kl, vl), (kn, vn) = block.pair(normal_bld), block.pair(normal_bnd)
            update_bld = block.link_update(_softmax(ql, kn, vn, padding_b11n), u_bld, count_b)
            update_bnd = block.out(block.norm_read(_softmax(qn, kl, vl)) * u_bnd)
            links_bld = links_bld + block.dropout(update_bld)
            events_bnd = events_bnd + update_bnd
        return links_bld, events_bnd


def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, H, n, e] each -> what is read, [B, n, d]; zeros where there is nothing to read."""
    if k.shape[2] == 0:
        return join_heads(torch.zeros_like(q))
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return join_heads(logits.softmax(-1).to(v.dtype) @ v)


# How candidates meet the links


class Coupled(Lime):
    """An item's weights come from the personalised links, not from the raw ones: W = softmax(
    t Wq (LP Wk)^T / sqrt(e)). Nothing of them can be computed before the user is known."""

    folds = streams = explains = False

    def encode_items(self, vectors_ud: Tensor) -> LinkTerms:
        of_head, keys = self.head.from_item(vectors_ud), self.keys_of(vectors_ud)
        return LinkTerms(self.item_query(vectors_ud), of_head, keys)

    def score(self, state: LinkState, terms: LinkTerms, extra: Tensor | None = None) -> Tensor:
        heads, batch = self.config.heads, len(state.head)
        q_bmd = terms.weights.expand(batch, *terms.weights.shape[-2:])
        keys_bld = self.link_key(state.links)
        o_bmd = _softmax(*(split_heads(x, heads) for x in (q_bmd, keys_bld, state.links)))
        sums_bmg = self.head.from_links(o_bmd) + terms.head + state.head[:, None]
        return plus(self.head(plus(sums_bmg, extra)), self.alike(state, terms))


class ProductTerms(NamedTuple):
    """:class:`LinkTerms` and the item vectors themselves, ``vectors`` [..., d]."""

    weights: Tensor
    head: Tensor
    key: Tensor
    vectors: Tensor


class Product(Lime):
    """The head's first layer also reads o * t, which cannot be folded: d x g more a candidate."""

    folds = streams = False

    def __init__(self, shape: DataShape, config: LimeConfig) -> None:
        super().__init__(shape, config)
        outputs = self.head.from_links.out_features
        self.of_product = nn.Linear(config.width, outputs, bias=False)

    def encode_items(self, vectors_ud: Tensor) -> Any:
        return ProductTerms(*super().encode_items(vectors_ud), vectors_ud)

    def score(self, state: LinkState, terms: ProductTerms, extra: Tensor | None = None) -> Tensor:  # type: ignore[override]  # own terms
        heads, batch = self.config.heads, len(state.head)
        w_bmj = terms.weights.expand(batch, *terms.weights.shape[-2:])
        o_bmd = join_heads(split_heads(w_bmj, heads) @ split_heads(state.links, heads))
        a_bmg = self.head.from_links(o_bmd) + self.of_product(o_bmd * terms.vectors)
        a_bmg = plus(a_bmg + terms.head + state.head[:, None], extra)
        return plus(self.head(a_bmg), self.alike(state, terms))


CONFIGS: dict[str, type[LimeConfig]] = {"lime-mha": LimeMhaConfig, "lime-xor": LimeXorConfig}
VARIANTS: dict[tuple[str, str], type[Lime]] = {
    ("lime-mha", "softmax"): SoftmaxMha,
    ("lime-xor", "softmax"): SoftmaxXor,
    ("lime-xor", "last-block"): LastBlock,
    ("lime-xor", "read-only"): ReadOnly,
    ("lime-xor", "dense"): Dense,
    **{
        (model, variant): type(f"{part.__name__}{base.__name__}", (part, base), {})
        for model, base in (("lime-mha", LimeMha), ("lime-xor", LimeXor))
        for variant, part in (("raw-links", RawLinks), ("coupled", Coupled), ("product", Product))
    },
}
"""(model, variant) -> class."""


def name_of(model: str, variant: str | None) -> str:
    """Under what name a variant is registered; the model's own without one."""
    return model if variant is None else f"{model}-{variant}"


for (model, variant), ranker in VARIANTS.items():
    register(name_of(model, variant), ranker, CONFIGS[model])
