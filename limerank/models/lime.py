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
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from limerank.data.batch import ItemKeys, Sequences, Users
from limerank.kernels.personal import Personaliser, Stage, affine
from limerank.kernels.prefix import Carry, nothing_yet, prefix_attention
from limerank.kernels.shared import Matches, shared_logits
from limerank.models.anchors import key_ranges
from limerank.models.config import DataShape
from limerank.models.layers import (
    join_heads,
    split_heads,
    start_forgetting,
)
from limerank.models.links import (
    HistoryState,
    LimeConfig,
    LimeMhaConfig,
    LinkState,
    LinkTerms,
    Reading,
)
from limerank.models.profile import Profile
from limerank.models.ranker import Ranker, gather, plus

START_GAIN = 2.0
"""Spread of the logits between links and vectors at the start; see ``_start_alike``."""
PREFIX_CHUNK = 64
"""Events whose prefixes are computed at once."""
PREFIX_PART = 512
"""Events before the first prefix that are read at once."""


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
        self.profile: Profile | None = None
        if config.profile:
            of_vectors = None
            if config.vectors:
                of_vectors = self.item_tower.of_statistics.weight[:, -config.vectors :]
            with torch.random.fork_rng(devices=[]):  # other weights start as without it
                self.profile = Profile(
                    shape.event_tokens,
                    d,
                    config.profile,
                    shape.outputs,
                    self.added,
                    config.profile_dropout,
                    of_vectors,
                )
        self.personaliser: Personaliser | None = None

    def encode_items(self, vectors_ud: Tensor) -> LinkTerms:
        """W = softmax(t Wq (L Wk)^T / sqrt(e)) per head, over the raw links; A_t t + b; and the key
        of the profile."""
        heads = self.config.heads
        q_uhe = self.item_query(vectors_ud).unflatten(-1, (heads, -1))
        k_lhe = self.link_key(self.links).unflatten(-1, (heads, -1))
        logits_uhl = torch.einsum("uhe,lhe->uhl", q_uhe, k_lhe) * q_uhe.shape[-1] ** -0.5
        weights_uj = logits_uhl.softmax(-1).flatten(-2)
        return LinkTerms(weights_uj, self.head.from_item(vectors_ud), self.keys_of(vectors_ud))

    def keys_of(self, vectors_ud: Tensor) -> Tensor:
        """Keys of the profile, [U, S]."""
        return vectors_ud[..., :0] if self.profile is None else self.profile.keys(vectors_ud)

    def user_state(self, users: Users, vectors_ud: Tensor) -> LinkState:
        u_bd, c_bd = self.user_tower(users)
        return self.state_of(self._history_state(users, vectors_ud, u_bd), u_bd, c_bd)

    def history_state(self, users: Users, vectors_ud: Tensor) -> HistoryState:
        """The part of the state of requests that does not depend on their contexts; see
        :attr:`late_context`."""
        found = self._history_state(users, vectors_ud, self.user_tower(users)[0])
        return found._replace(anchored=self.anchored_links(users))

    def state_of(self, history: HistoryState, u_bd: Tensor, c_bd: Tensor) -> LinkState:
        """The state of requests.

        Args:
            history: of :meth:`history_state`.
            u_bd, c_bd: of the user tower.
        """
        head_bg, profile = self.head.from_request(u_bd, c_bd), history.profile
        if profile is None:
            return LinkState(history.links, head_bg, anchored=history.anchored)
        return LinkState(history.links, head_bg + profile.first, profile.query, history.anchored)

    def _history_state(self, users: Users, vectors_ud: Tensor, u_bd: Tensor) -> HistoryState:
        """The same without anchored links."""
        native = self.user_stage.used == "native" and not self.training
        if native:
            self._check_native(u_bd)
            self.personaliser = self.personaliser or Personaliser(self.config.heads, self.stage())
            events_bnd = self.events(users, vectors_ud)
            personal_bld = self.personaliser(u_bd, events_bnd, users.age, users.lengths)
        else:
            links_bld = self.contextualise(u_bd)
            personal_bld = self.norm(self.personalise(links_bld, users, vectors_ud))
        profile = None if self.profile is None else self.profile(users, vectors_ud, native=native)
        return HistoryState(personal_bld, profile)

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

    @property
    def keys(self) -> int:
        return self.config.profile

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
            return plus(self.head(plus(sums_bmg, extra)), self.alike(state, terms))
        w_bhml, links_bhle = split_heads(terms.weights, heads), split_heads(state.links, heads)
        o_bmd = join_heads(w_bhml @ links_bhle)
        sums_bmg = self.head.from_links(o_bmd) + terms.head + state.head[:, None]
        return plus(self.head(plus(sums_bmg, extra)), self.alike(state, terms))

    def alike(self, state: LinkState, terms: Any) -> Tensor | None:
        """What the profile adds to logits, q . p [B, M, K]; None without one. ``terms`` have a
        ``key``."""
        return None if state.query is None else terms.key @ state.query.mT

    def last_layers(self) -> tuple[nn.Linear, ...]:
        return super().last_layers() + (() if self.profile is None else (self.profile.mix,))

    @torch.no_grad()
    def calibrate(self, scale_k: Tensor, shift_k: Tensor) -> None:
        out, *of_profile = self.last_layers()
        out.weight.mul_(scale_k[:, None])
        out.bias.mul_(scale_k).add_(shift_k)
        for layer in of_profile:
            layer.weight.mul_(scale_k[:, None])

    def score_shared(
        self, state: LinkState, terms: LinkTerms, keys: ItemKeys | None, candidates: Tensor
    ) -> Tensor:
        """As in every model; in training, hidden units are dropped once for all candidates of a
        request, and only logits are stored for the backward pass."""
        fused = (
            self._fused(state) and self.counters is None
        )  # a model of impressions alone has some
        if not fused or type(terms) is not LinkTerms:
            return super().score_shared(state, terms, keys, candidates)
        batch, own = len(state.links), LinkTerms(*(part[candidates] for part in terms))
        folded_bjg = self.fold(state) + state.head[:, None] / self.config.heads
        matches = self._shared_links(state, keys, candidates, len(terms.weights))
        layer = None if matches is None else self.from_anchors.weight
        out = self.head.out
        units_bkh = self.head.dropout(out.weight.new_ones(batch, 1, out.in_features))
        logits = shared_logits(
            own.weights, folded_bjg, own.head, matches, layer, (units_bkh * out.weight).contiguous()
        )
        return plus(logits + out.bias, self.alike(state, own))

    def _fused(self, state: LinkState) -> bool:
        """Whether the kernel of shared candidates computes this model's training."""
        return (
            torch.is_grad_enabled()
            and self.config.activation == "relu"
            and state.links.device.type == "cpu"
            and state.links.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        )

    def _shared_links(
        self, state: LinkState, keys: ItemKeys | None, candidates: Tensor, items: int
    ) -> Matches | None:
        """Anchored links of shared candidates."""
        if self.anchors is None or state.anchored is None or keys is None:
            return None
        complete = self.complete(keys)
        order, low, high = key_ranges(state.anchored, complete)
        position = candidates.new_full((items + 1,), -1)
        position[candidates] = torch.arange(len(candidates), device=candidates.device)
        item = torch.repeat_interleave(complete.offsets.diff())[order]
        candidate = position[item.clamp(max=items)].int()
        offsets, links = state.anchored.offsets, state.anchored.links
        return Matches(offsets, low, high, candidate, complete.shares[order].to(links), links)

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
        links_mld, request_mg, query_mks = self._sequence_parts(batch, vectors_ud)
        head_mg = terms.head + request_mg
        if self.anchors is not None:
            complete = self.completed(users)
            z_mr = self.anchors.at_prefixes(complete, owner_m, batch.prefix, batch.candidates)
            head_mg = head_mg + self.from_anchors(z_mr)
        if self.impressions is not None and batch.shown is not None:
            head_mg = head_mg + self.impressions(batch.shown)
        if self.counters is not None:
            head_mg = head_mg + self.counters(self.counted_of(batch))
        links_mhle = split_heads(links_mld, self.config.heads)
        w_mhl = terms.weights.unflatten(-1, self.link_shape)
        o_md = torch.einsum("mhl,mhle->mhe", w_mhl.to(links_mhle.dtype), links_mhle).flatten(-2)
        logits_mk = self.head(self.head.from_links(o_md) + head_mg)
        if query_mks is None:
            return logits_mk
        return logits_mk + torch.einsum("mks,ms->mk", query_mks, terms.key)

    def sequence_states(self, batch: Sequences, vectors_ud: Tensor) -> LinkState:
        anchored = None
        if self.anchors is not None:
            users = self.completed(batch.users)
            anchored = self.anchors.of_prefixes(users, batch.owner, batch.prefix)
        return LinkState(*self._sequence_parts(batch, vectors_ud), anchored=anchored)

    def _sequence_parts(
        self, batch: Sequences, vectors_ud: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Personalised links [M, l, d] of impressions, their users' terms [M, g], and the queries
        [M, K, S] of their profiles.

        One pass over each history. Events before the first impression are read
        :data:`PREFIX_PART` at a time. The others are read :data:`PREFIX_CHUNK` at a time, with
        separate links for each impression. If there are several pieces, the backward pass computes
        each of them again, so memory holds one piece at a time.
        """
        users, owner_m = batch.users, batch.owner
        u_bd = self.user_tower(users)[0]
        c_md = self.user_tower.contexts(batch.context)
        request_mg = self.head.from_request(F.embedding(owner_m, u_bd), c_md)
        query_mks = None
        if self.profile is not None:
            profile = self.profile.at_prefixes(users, vectors_ud, owner_m, batch.prefix)
            request_mg, query_mks = request_mg + profile.first, profile.query
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
        return torch.cat(links)[torch.cat(rows).argsort()], request_mg, query_mks

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
