"""LIME: a few learned links connect a user's history with the candidates.

What this model has (LIME, arXiv 2510.18239; equations in docs/model.md):
- links that are contextualised by the user's features and personalised by the history, in time
  linear in the history: one attention layer reads the events as they are (LIME-MHA), or as they
  come out of HSTU-style blocks under a mask that allows only link-event pairs, computed as two
  rectangles (LIME-XOR);
- attention of candidates to the raw links, which no user enters: computed once per item;
- a shallow head whose first layer is additive, so that the links are folded through it once per
  request and a candidate costs H l g + h K multiply-adds.
It has no product of candidates with events, and none of events with events.

Shape letters: B requests, N history positions, M candidates, U items, d width, H heads,
e = d / H, l links, g first-layer outputs of the head, K tasks.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from limerank.data.batch import ItemKeys, Sequences, Users
from limerank.kernels.attention import link_attention, link_weights
from limerank.kernels.personal import Personaliser, Stage, affine
from limerank.kernels.prefix import Carry, nothing_yet, prefix_attention
from limerank.kernels.shared import shared_logits
from limerank.models.anchors import Anchored, matches
from limerank.models.config import AttentionConfig, DataShape
from limerank.models.layers import (
    Evidence,
    FeedForward,
    FlooredNorm,
    join_heads,
    split_heads,
    start_forgetting,
)
from limerank.models.ranker import Ranker, gather, plus

START_GAIN = 2.0
"""Spread of the logits between links and vectors at the start; see ``_start_alike``."""
PREFIX_CHUNK = 64
"""Events whose prefixes are computed at once."""
PREFIX_PART = 512
"""Events before the first prefix that are read at once."""


class LinkTerms(NamedTuple):
    """Of each item: ``weights`` [..., H l] of its links and ``head`` [..., g], its head terms."""

    weights: Tensor
    head: Tensor


class LinkState(NamedTuple):
    """Of each request: personalised ``links`` [B, l, d] and ``head`` [B, g], the user's terms."""

    links: Tensor
    head: Tensor
    anchored: Anchored | None = None


class LimeConfig(AttentionConfig):
    """Settings of both forms."""

    anchors: tuple[str, ...] | None = None
    """What has anchored links: "item" (this very item in the history) and names of features. None:
    items and all features that the dataset anchors."""
    heads: int = Field(1, ge=1)
    """Attention heads, H; they divide the width. An item has H times ``links`` weights: more links
    are cheaper than more heads."""
    links: int = Field(32, ge=1)
    """Learned links between history and candidates, l. Scoring time and index size grow with it;
    the effective number of links in the metrics shows how many the model uses."""

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


class Lime(Ranker):
    """The parts that both forms share; they differ in how the links read the history."""

    config: LimeConfig

    folds = explains = late_context = True
    reads = Reading
    native_user_stage = True

    def __init__(self, shape: DataShape, config: LimeConfig) -> None:
        super().__init__(shape, config)
        d, links = config.width, config.links
        self.links = nn.Parameter(torch.randn(links, d))
        self.context_in = nn.Linear(2 * d, 2 * d)
        self.context_out = nn.Linear(2 * d, d)
        self.item_query = nn.Linear(d, d)
        self.link_key = nn.Linear(d, d)
        self.reading = self.reads(config)
        self.norm = nn.LayerNorm(d)
        self.head = self.new_head()
        self.personaliser: Personaliser | None = None

    def encode_items(self, vectors_ud: Tensor) -> LinkTerms:
        """W = softmax(t Wq (L Wk)^T / sqrt(e)) per head, over the raw links; and A_t t + b."""
        heads = self.config.heads
        q_uhe = self.item_query(vectors_ud).unflatten(-1, (heads, -1))
        k_lhe = self.link_key(self.links).unflatten(-1, (heads, -1))
        logits_uhl = torch.einsum("uhe,lhe->uhl", q_uhe, k_lhe) * q_uhe.shape[-1] ** -0.5
        return LinkTerms(logits_uhl.softmax(-1).flatten(-2), self.head.from_item(vectors_ud))

    def user_state(self, users: Users, vectors_ud: Tensor) -> LinkState:
        u_bd, c_bd = self.user_tower(users)
        if self.user_stage.used == "native" and not self.training:
            self._check_native(u_bd)
            self.personaliser = self.personaliser or Personaliser(self.config.heads, self.stage())
            events_bnd = self.events(users, vectors_ud)
            personal_bld = self.personaliser(u_bd, events_bnd, users.age, users.lengths)
        else:
            links_bld = self.contextualise(u_bd)
            personal_bld = self.norm(self.personalise(links_bld, users, vectors_ud))
        return LinkState(personal_bld, self.head.from_request(u_bd, c_bd))

    def _check_native(self, u_bd: Tensor) -> None:
        """Refuse what the native user stage would compute wrongly."""
        if u_bd.requires_grad:
            raise RuntimeError(
                "the native user stage has no gradients: compute without gradients, or choose the "
                "user stage torch"
            )
        if u_bd.device.type != "cpu" or u_bd.dtype != torch.float32:
            raise RuntimeError(
                "the native user stage is for float32 on the CPU: choose the user stage again once "
                "the model has moved"
            )

    def stage(self) -> Stage:
        """The parameters of the user stage, in the order of :class:`Stage`."""
        reading = self.reading
        norm, up, _, _, down = reading.feed.layers
        return [
            (self, "links"),
            *affine(self.context_in, self.context_out),
            *affine(reading.query, reading.key_value, reading.out),
            (reading.norm_read, "log_floor"),
            (reading.evidence, "log_prior"),
            (reading, "log_rate"),
            *affine(norm, up, down, self.norm),
        ]

    @abc.abstractmethod
    def events(self, users: Users, vectors_ud: Tensor) -> Tensor:
        """Vectors of the history's events, which links read: [B, N, d]."""

    def contextualise(self, u_bd: Tensor) -> Tensor:
        """LC = L + MLP([L ; u]), the first layer multiplied once per link and once per user."""
        of_link, of_user = self.context_in.weight.chunk(2, dim=1)
        user_bx = F.linear(u_bd, of_user, self.context_in.bias)
        sums_blx = F.linear(self.links, of_link) + user_bx[:, None]
        return self.links + self.context_out(F.silu(sums_blx))

    def start_at(self, ages_n: Tensor) -> None:
        start_forgetting(self.reading.log_rate, ages_n)

    @torch.no_grad()
    def _start_alike(
        self, blocks: Iterable[tuple[Tensor, Tensor]] = (), *, item_gain: float
    ) -> None:
        """Start with the same directions in the weights of items over links and of links over
        events.

        From the first step on, an item then weighs those links highest that read events like it.
        From unrelated directions every item reads the mean of all links, and training on a small
        log ends before it has learned to tell them apart.

        Args:
            blocks: weights [d, d] of the links' queries and of the events' keys, of each block.
            item_gain: spread of the logits between items and links. That between links and events
                is :data:`START_GAIN` in the last reading, and 1 in the blocks.
        """
        d, reading = self.config.width, self.reading
        of_vectors, of_links = torch.empty(d, d), torch.empty(d, d)
        nn.init.orthogonal_(of_vectors)
        nn.init.orthogonal_(of_links)
        self.item_query.weight.copy_(item_gain * of_vectors)
        self.link_key.weight.copy_(of_links)
        for query, key, gain in [
            *((query, key, 1.0) for query, key in blocks),
            (reading.query.weight, reading.key_value.weight[:d], START_GAIN),
        ]:
            query.copy_(of_links)
            key.copy_(gain * of_vectors)

    @abc.abstractmethod
    def personalise(self, links_bld: Tensor, users: Users, vectors_ud: Tensor) -> Tensor:
        """Contextualised links -> personalised links, [B, l, d]."""

    @property
    def link_shape(self) -> tuple[int, int]:
        return self.config.heads, self.config.links

    def link_weights(self, terms: LinkTerms) -> Tensor:
        return terms.weights.unflatten(-1, self.link_shape)

    def score(self, state: LinkState, terms: LinkTerms, extra: Tensor | None = None) -> Tensor:
        heads = self.config.heads
        if terms.weights.dim() == 2:
            # The shares of a head sum to one, so the user's terms ride on the links.
            folded_bjg = self.fold(state) + state.head[:, None] / heads
            batch = len(folded_bjg)
            weights_bmj = terms.weights.expand(batch, -1, -1)
            sums_bmg = torch.baddbmm(terms.head.expand(batch, -1, -1), weights_bmj, folded_bjg)
            return self.head(plus(sums_bmg, extra))
        w_bhml, links_bhle = split_heads(terms.weights, heads), split_heads(state.links, heads)
        o_bmd = join_heads(w_bhml @ links_bhle)
        sums_bmg = self.head.from_links(o_bmd) + terms.head + state.head[:, None]
        return self.head(plus(sums_bmg, extra))

    def score_shared(
        self, state: LinkState, terms: LinkTerms, keys: ItemKeys | None, candidates: Tensor
    ) -> Tensor:
        """As in every model; in training, hidden units are dropped once for all candidates of a
        request, and only logits are stored for the backward pass."""
        if not self._fused(state):
            return super().score_shared(state, terms, keys, candidates)
        batch, own = len(state.links), LinkTerms(*(part[candidates] for part in terms))
        folded_bjg = self.fold(state) + state.head[:, None] / self.config.heads
        added = self._shared_anchors(state, keys, candidates, len(terms.weights))
        out = self.head.out
        units_bkh = self.head.dropout(out.weight.new_ones(batch, 1, out.in_features))
        logits = shared_logits(
            own.weights, folded_bjg, own.head, *added, (units_bkh * out.weight).contiguous()
        )
        return logits + out.bias

    def _fused(self, state: LinkState) -> bool:
        """Whether the kernel of shared candidates computes this model's training."""
        return (
            torch.is_grad_enabled()
            and self.config.activation == "relu"
            and state.links.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
        )

    def _shared_anchors(
        self, state: LinkState, keys: ItemKeys | None, candidates: Tensor, items: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What anchored links add to shared candidates: where the additions of each request begin
        and end, the candidate of each, and its sums."""
        batch = len(state.links)
        if self.anchors is None or state.anchored is None or keys is None:
            none = candidates.new_zeros(batch + 1), candidates[:0]
            return *none, state.head.new_zeros(0, self.added)
        request, item, links = matches(state.anchored, keys)
        position = candidates.new_full((items + 1,), -1)
        position[candidates] = torch.arange(len(candidates), device=candidates.device)
        candidate = position[item.clamp(max=items)]
        held = (candidate >= 0).nonzero()[:, 0]
        counts = torch.bincount(request[held], minlength=batch)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return offsets, candidate[held], self.from_anchors(links[held])

    def shared_scratch(self, state: LinkState) -> int:
        return 4 * self.shape.outputs if self._fused(state) else super().shared_scratch(state)

    def fold(self, state: LinkState) -> Tensor:
        """The links through the head's first layer: [B, H l, g]. W @ this is A_o o."""
        heads = self.config.heads
        links_blhe = state.links.unflatten(-1, (heads, -1))
        out_ghe = self.head.from_links.weight.unflatten(-1, (heads, -1))
        return torch.einsum("blhe,ghe->bhlg", links_blhe, out_ghe).flatten(1, 2)


class LimeMha(Lime):
    """LP = the contextualised links after they have read the events."""

    streams = True

    def __init__(self, shape: DataShape, config: LimeMhaConfig) -> None:
        super().__init__(shape, config)
        self._start_alike(item_gain=START_GAIN)

    def personalise(self, links_bld: Tensor, users: Users, vectors_ud: Tensor) -> Tensor:
        kv_bnd = self.event_tower.through(self.reading.key_value, users, vectors_ud)
        read: Tensor = self.reading(links_bld, kv_bnd, users.age, users.lengths)
        return read

    def events(self, users: Users, vectors_ud: Tensor) -> Tensor:
        events_bnd: Tensor = self.event_tower(users, vectors_ud)
        return events_bnd

    def sequence_logits(self, batch: Sequences) -> Tensor:
        """Logits [M, K] of impressions that each see exactly the events before them."""
        users, owner_m = batch.users, batch.owner
        vectors_ud = self.item_vectors(batch.items)
        terms = gather(self.encode_items(vectors_ud[: batch.distinct]), batch.candidates)
        links_mld, request_mg = self._sequence_parts(batch, vectors_ud)
        head_mg = terms.head + request_mg
        if self.anchors is not None:
            z_mr = self.anchors.at_prefixes(users, owner_m, batch.prefix, batch.candidates)
            head_mg = head_mg + self.from_anchors(z_mr)
        if self.impressions is not None and batch.shown is not None:
            head_mg = head_mg + self.impressions(batch.shown)
        links_mhle = split_heads(links_mld, self.config.heads)
        w_mhl = terms.weights.unflatten(-1, self.link_shape)
        o_md = torch.einsum("mhl,mhle->mhe", w_mhl.to(links_mhle.dtype), links_mhle).flatten(-2)
        return self.head(self.head.from_links(o_md) + head_mg)

    def sequence_states(self, batch: Sequences, vectors_ud: Tensor) -> LinkState:
        anchored = None
        if self.anchors is not None:
            anchored = self.anchors.of_prefixes(batch.users, batch.owner, batch.prefix)
        return LinkState(*self._sequence_parts(batch, vectors_ud), anchored)

    def _sequence_parts(self, batch: Sequences, vectors_ud: Tensor) -> tuple[Tensor, Tensor]:
        """Personalised links [M, l, d] of impressions, and their users' terms [M, g].

        One pass over each history. Events before the first impression are read
        :data:`PREFIX_PART` at a time. The others are read :data:`PREFIX_CHUNK` at a time, with
        separate links for each impression. If there are several pieces, the backward pass computes
        each of them again, so memory holds one piece at a time.
        """
        users, owner_m = batch.users, batch.owner
        u_bd = self.user_tower(users)[0]
        c_md = self.user_tower.contexts(batch.context)
        request_mg = self.head.from_request(F.embedding(owner_m, u_bd), c_md)
        links_bld = self.contextualise(u_bd)
        q_bhle = self.reading.queries(links_bld)
        kv_bnd = self.event_tower.through(self.reading.key_value, users, vectors_ud)
        time_bn = users.age[:, :1] - users.age  # since the first event
        pass_over = partial(self._pass, links_bld, q_bhle, self.reading.log_rate.exp())
        carry = nothing_yet(q_bhle, users.age.new_zeros(len(u_bd)))

        shared_b = users.lengths.new_zeros(len(u_bd))
        shared_b = shared_b.scatter_reduce(0, owner_m, batch.prefix, "amin", include_self=False)
        own_b = users.lengths - shared_b
        parts = range(0, int(shared_b.max()), PREFIX_PART)
        chunks = range(0, max(int(own_b.max()), 1), PREFIX_CHUNK)
        if len(parts) + len(chunks) > 2:
            pass_over = partial(checkpoint, pass_over, use_reentrant=False)
        none_m = owner_m[:0]
        for start in parts:
            part = slice(start, start + PREFIX_PART)
            count_b = (shared_b - start).clamp(0, PREFIX_PART)
            events = kv_bnd[:, part], time_bn[:, part], count_b
            carry = Carry(*pass_over(*events, none_m, none_m, none_m, *carry)[1:])

        prefix_m = batch.prefix - shared_b[owner_m]  # of each one's own events
        chunk_m = (prefix_m - 1).clamp(min=0).div(PREFIX_CHUNK, rounding_mode="floor")
        links, rows = [], []
        for chunk, start in enumerate(chunks):
            size = min(PREFIX_CHUNK, int(own_b.max()) - start)
            at_bn = (shared_b + start)[:, None] + torch.arange(size, device=shared_b.device)
            at_bn = at_bn.clamp(max=kv_bnd.shape[1] - 1)
            kv_chunk = kv_bnd.gather(1, at_bn[..., None].expand(-1, -1, kv_bnd.shape[-1]))
            count_b = (own_b - start).clamp(0, size)
            some = (chunk_m == chunk).nonzero()[:, 0]
            found, *after = pass_over(
                kv_chunk,
                time_bn.gather(1, at_bn),
                count_b,
                owner_m[some],
                prefix_m[some] - start,
                batch.prefix[some],
                *carry,
            )
            carry = Carry(*after)
            links.append(found)
            rows.append(some)
        return torch.cat(links)[torch.cat(rows).argsort()], request_mg

    def _pass(
        self,
        links_bld: Tensor,
        q_bhle: Tensor,
        rate_hl: Tensor,
        kv_bnd: Tensor,
        time_bn: Tensor,
        count_b: Tensor,
        owner_m: Tensor,
        prefix_m: Tensor,
        events_m: Tensor,
        *carry: Tensor,
    ) -> tuple[Tensor, ...]:
        """Links of the impressions whose prefixes end in a chunk of events, and the new carry.

        Of an impression, ``prefix_m`` counts its events within the chunk, ``events_m`` all of them.
        """
        heads = self.config.heads
        k_bhne, v_bhne = (split_heads(part, heads) for part in kv_bnd.chunk(2, -1))
        counts_b = torch.bincount(owner_m, minlength=len(links_bld))
        column_m = torch.arange(len(owner_m), device=owner_m.device)
        column_m = column_m - (counts_b.cumsum(0) - counts_b)[owner_m]
        prefix_bm = prefix_m.new_zeros((len(links_bld), int(counts_b.max())))
        prefix_bm[owner_m, column_m] = prefix_m
        read_bmhle, after = prefix_attention(
            q_bhle, k_bhne, v_bhne, rate_hl, time_bn, prefix_bm, count_b, Carry(*carry)
        )
        read_mhle = read_bmhle[owner_m, column_m].to(links_bld.dtype)
        return self.norm(self.reading.absorb(links_bld[owner_m], read_mhle, events_m)), *after

    def read_weights(self, users: Users, vectors_ud: Tensor) -> Tensor:
        links_bld = self.contextualise(self.user_tower(users)[0])
        kv_bnd = self.event_tower.through(self.reading.key_value, users, vectors_ud)
        return self.reading.weights(links_bld, kv_bnd.chunk(2, -1)[0], users.age, users.lengths)
