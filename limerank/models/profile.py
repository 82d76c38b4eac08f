"""The profile: what a history says as a whole, beside what each link reads of it.

Links compare an item with the history through a few directions, anchored links through exact
matches. Neither compares its vector with those of the items in the history as such, which is what
item-kNN does, and neither knows how a user fares on all items alike. Both follow from
fading means over the history, with f the weight of an event relative to the next one::

    w_fj  = f ** (n - j) / sum over all n events                     f of FADINGS
    o_f   = sum over events j of w_fj o_j                            their outcomes
    x_fg  = sum over events j of w_fj g(o_j) p_j                     their keys, by G learned gates
    first = N([o_f; log n]) + ...                                    into the head's first layer
    q_k   = n / (n + c) * sum over f, g of M_kfg x_fg                of each logit k
    z_k  += q_k . p_t / sqrt(S)                                      p_t = P t: the key of an item

The network ``N`` ends in zeros and ``M`` starts at zero: a model begins as it is without a profile.
The keys start as the collaborative vectors in t (limerank.training.collaborative), where items have
them. Keys are of the item alone, so they are in the index; all else is of the user alone.

The means are running means: those of two consecutive parts of a history give those of the history.

Shape letters: B requests, N history positions, U items, M impressions, F fadings, G gates,
o outcome numbers, S numbers of a key, K logits, g first-layer outputs of the head, d width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import Users
from limerank.kernels.history import ProfileLayers, profiles
from limerank.models.anchors import fading_weights, knots

FADINGS = 1.0, 0.95, 0.6
"""Weights of an event relative to the next one."""
OUTCOMES = 8
"""Numbers of an embedded outcome, o."""
GATES = 4
"""Learned factors of an event by its outcome, G."""
HIDDEN = 32
"""Hidden units of the network N."""
COUNTS = 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0
"""Knots of log2(1 + n)."""
START_EVENTS = 1.0, 2.7
"""Number of events at which the evidence of outcomes, and of keys, is one half when training
starts."""
CHUNK = 64
"""Events whose prefixes are computed at once."""


class Means(NamedTuple):
    """Fading means over histories: ``outcomes`` [B, F, o] and ``keys`` [B, F, G, S]; zero where a
    history has no events."""

    outcomes: Tensor
    keys: Tensor


class ProfileState(NamedTuple):
    """What the profiles of B requests add: ``first`` [B, g] to the head's first-layer sums, and
    ``query`` [B, K, S], whose products with an item's key add to its logits."""

    first: Tensor
    query: Tensor


def total(fading: Tensor, n: Tensor) -> Tensor:
    """Sum of the weights of n events, [..., F] of n [...]; the newest one weighs 1."""
    n = n[..., None].to(fading.dtype)
    one = fading == 1.0
    return torch.where(one, n, (1 - fading**n) / torch.where(one, 1.0, 1 - fading))


def merged(older: Means, n_older: Tensor, newer: Means, n_newer: Tensor) -> Means:
    """The means over two consecutive parts of histories, of ``n_older`` and ``n_newer`` events,
    i64 [B]."""
    fading = older.outcomes.new_tensor(FADINGS, dtype=torch.float64)
    of_newer = total(fading, n_newer)
    weights = of_newer / total(fading, n_older + n_newer).clamp(min=1e-12)
    share = weights.to(older.outcomes.dtype)[..., None]
    return Means(
        torch.lerp(older.outcomes, newer.outcomes, share),
        torch.lerp(older.keys, newer.keys, share[..., None]),
    )


class Profile(nn.Module):
    """The profile of one model.

    Args:
        event_tokens: rows of the table of outcomes.
        width: length of an item vector, d.
        size: numbers of a key, S.
        outputs: logits, K.
        added: first-layer outputs of the head, g.
        dropout: share of the means that a training step drops.
        of_vectors: the layer from collaborative vectors to item vectors, [d, v]; keys start along
            its columns. None: at random.
    """

    def __init__(
        self,
        event_tokens: int,
        width: int,
        size: int,
        outputs: int,
        added: int,
        dropout: float,
        of_vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.outcomes = nn.Embedding(event_tokens, OUTCOMES + GATES)
        nn.init.normal_(self.outcomes.weight, std=0.5)
        self.key = nn.Linear(width, size, bias=False)
        if of_vectors is not None:
            with torch.no_grad():
                columns = F.normalize(of_vectors[:, :size], dim=0)
                self.key.weight[: columns.shape[1]] = columns.T * (0.5 * math.sqrt(width / size))
        self.mix = nn.Linear(len(FADINGS) * GATES, outputs, bias=False)
        nn.init.zeros_(self.mix.weight)
        inputs = len(FADINGS) * OUTCOMES + len(COUNTS)
        down = nn.Linear(HIDDEN, added, bias=False)
        nn.init.zeros_(down.weight)
        self.network = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.SiLU(), down)
        self.log_prior = nn.Parameter(torch.tensor([math.log(n) for n in START_EVENTS]))
        self.dropout = nn.Dropout(dropout)

    def keys(self, vectors_ud: Tensor) -> Tensor:
        """p [U, S] of item vectors, over sqrt(S): products with queries are added as they are."""
        keys_us: Tensor = self.key(vectors_ud) * self.size**-0.5
        return keys_us

    def forward(self, users: Users, vectors_ud: Tensor, native: bool = False) -> ProfileState:
        """What the profiles of requests add.

        Args:
            users: B requests.
            vectors_ud: item vectors, which ``users.items`` are rows of.
            native: compute it in C++: without gradients, float32 on the processor.
        """
        if native:
            of = users.items, users.tokens, users.lengths, vectors_ud
            return ProfileState(*profiles(self.layers(), *of))
        return self.of_means(self.means(users, vectors_ud), users.lengths)

    def layers(self) -> ProfileLayers:
        """The parameters and constants of :meth:`forward`."""
        up, _, down = self.network
        assert isinstance(up, nn.Linear) and isinstance(down, nn.Linear)
        return ProfileLayers(
            table=self.outcomes.weight,
            key=self.key.weight,
            mix=self.mix.weight,
            first=up.weight,
            bias=up.bias,
            second=down.weight,
            log_prior=self.log_prior,
            fadings=FADINGS,
            knots=COUNTS,
        )

    def means(self, users: Users, vectors_ud: Tensor) -> Means:
        """Fading means over the histories."""
        n = users.items.shape[1]
        later_bn = users.lengths[:, None] - 1 - torch.arange(n, device=users.lengths.device)
        fading = vectors_ud.new_tensor(FADINGS)
        weights_bfn = fading_weights(fading[:, None], later_bn.clamp(min=0)[:, None])
        weights_bfn = weights_bfn * (later_bn >= 0)[:, None]
        weights_bfn = weights_bfn / total(fading, users.lengths).clamp(min=1e-12)[..., None]
        outcomes_bno, gates_bng = self._outcomes(users)
        keys_bns = F.embedding(users.items, self.key(vectors_ud))
        gated_bfgn = weights_bfn[:, :, None] * gates_bng.mT[:, None]
        keys_bfgs = (gated_bfgn.flatten(1, 2) @ keys_bns).unflatten(1, gated_bfgn.shape[1:3])
        return Means(weights_bfn @ outcomes_bno, keys_bfgs)

    def no_means(self, batch: int) -> Means:
        """Those of empty histories."""
        size, weight = self.size, self.key.weight
        return Means(
            weight.new_zeros(batch, len(FADINGS), OUTCOMES),
            weight.new_zeros(batch, len(FADINGS), GATES, size),
        )

    def of_means(self, means: Means, counts_b: Tensor) -> ProfileState:
        """What fading means over ``counts_b`` events, i64 [B], add."""
        n_b = counts_b.to(means.outcomes.dtype)
        evidence_b2 = n_b[:, None] / (n_b[:, None] + self.log_prior.exp())
        outcomes = self.dropout(means.outcomes.flatten(1) * evidence_b2[:, :1])
        first: Tensor = self.network(torch.cat([outcomes, knots((1 + n_b).log2(), COUNTS)], 1))
        # A dropped mean is dropped for all numbers of a key.
        shares_bkx = self.dropout(evidence_b2[:, 1:].expand(-1, self.mix.in_features))[:, None]
        shares_bkx = shares_bkx * self.mix.weight
        return ProfileState(first, shares_bkx @ means.keys.flatten(1, 2))

    def at_prefixes(
        self, users: Users, vectors_ud: Tensor, owner_m: Tensor, prefix_m: Tensor
    ) -> ProfileState:
        """What the profiles of M impressions add, each from exactly the events before it.

        Args:
            users: B histories.
            vectors_ud: item vectors, which ``users.items`` are rows of.
            owner_m: the history of each impression, i64.
            prefix_m: how many of its events each one sees, i64.
        """
        outcomes_bno, gates_bng = self._outcomes(users)
        keys_bns = F.embedding(users.items, self.key(vectors_ud))
        batch, n = users.items.shape
        fading = vectors_ud.new_tensor(FADINGS)
        distance = torch.arange(CHUNK, device=owner_m.device)
        distance = distance[:, None] - distance
        within_fij = fading[:, None, None] ** distance.clamp(min=0) * (distance >= 0)
        carried_fi = fading[:, None] ** torch.arange(1, CHUNK + 1, device=owner_m.device)
        o, x = OUTCOMES, GATES * self.size
        sums_bfx = keys_bns.new_zeros(batch, len(FADINGS), o + x)
        found = [keys_bns.new_zeros(0, len(FADINGS), o + x)]
        rows = [(prefix_m == 0).nonzero()[:, 0]]
        found[0] = keys_bns.new_zeros(len(rows[0]), len(FADINGS), o + x)
        for start in range(0, n, CHUNK):
            part = slice(start, min(start + CHUNK, n))
            size = part.stop - start
            keys_bixx = gates_bng[:, part, :, None] * keys_bns[:, part, None]
            events_bix = torch.cat([outcomes_bno[:, part], keys_bixx.flatten(2)], 2)
            # Sums of the first i + 1 events of the chunk, and those before it.
            upto_bfix = torch.einsum("fij,bjx->bfix", within_fij[:, :size, :size], events_bix)
            upto_bfix = upto_bfix + carried_fi[:, :size, None] * sums_bfx[:, :, None]
            some = ((prefix_m > start) & (prefix_m <= part.stop)).nonzero()[:, 0]
            rows.append(some)
            found.append(upto_bfix[owner_m[some], :, prefix_m[some] - start - 1])
            sums_bfx = upto_bfix[:, :, -1]
        sums_mfx = torch.cat(found)[torch.cat(rows).argsort()]
        means_mfx = sums_mfx / total(fading, prefix_m).clamp(min=1e-12)[..., None]
        outcomes_mfo, keys_mfx = means_mfx.split([o, x], -1)
        return self.of_means(
            Means(outcomes_mfo, keys_mfx.unflatten(-1, (GATES, self.size))), prefix_m
        )

    def _outcomes(self, users: Users) -> tuple[Tensor, Tensor]:
        """The embedded outcome of each event, [B, N, o], and its gates, [B, N, G]."""
        batch, length, _ = users.tokens.shape
        sums_nx = self.outcomes(users.tokens.flatten(0, 1)).sum(1)
        sums_bnx = sums_nx.view(batch, length, OUTCOMES + GATES)
        return sums_bnx[..., :OUTCOMES], sums_bnx[..., OUTCOMES:]
