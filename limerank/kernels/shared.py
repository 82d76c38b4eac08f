"""Logits of candidates that all requests of a batch share, for training.

The definition is ``reference.shared_logits``. Nothing of the size requests times candidates times
units is stored: :data:`CANDIDATES` candidates of a request are computed at a time, in memory that
stays in the processor's cache, and the backward pass computes them again. The anchored links of a
request are summed by candidate before the first layer, and nothing is stored for a pair of a link
and a candidate, since there may be thousands of them for each event of a history.

Shape letters: B requests, M candidates, j shares of an item, h hidden units, g first-layer sums
(2 h when gated, else h), K logits, V anchored links of all requests, r numbers of such a link, T
keys of all candidates.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limerank.kernels import _native
from limerank.kernels.ragged import ragged

CANDIDATES = 2048


class Matches(NamedTuple):
    """Which candidates receive from which anchored links.

    Attributes:
        offsets: where the links of each request begin and, last, end, i64 [B + 1].
        low, high: the keys of candidates that each link belongs to: ``low .. high - 1``, i64 [V].
        candidates: the candidate of each of these keys; -1 of an item that is none, i32 [T].
        shares: of each key, [T].
        links: [V, r].
    """

    offsets: Tensor
    low: Tensor
    high: Tensor
    candidates: Tensor
    shares: Tensor
    links: Tensor


def shared_logits(
    weights_mj: Tensor,
    folded_bjg: Tensor,
    head_mg: Tensor,
    matches: Matches | None,
    layer_gr: Tensor | None,
    out_bkh: Tensor,
) -> Tensor:
    """f32 [B, M, K]: ``(relu(a) * gate) out_b`` of the first-layer sums ``weights folded_b + head +
    layer (sum of share link)``, whose halves are a and gate; of g = h sums, ``relu(a) out_b``.

    Args:
        weights_mj: shares of each candidate.
        folded_bjg: what each request has for a share.
        head_mg: of each candidate.
        matches: of anchored links; None where the model has none.
        layer_gr: the first layer of anchored links.
        out_bkh: weights of the last layer, of each request.
    """
    if matches is None or layer_gr is None:
        none, empty = head_mg.new_zeros(0, 1), torch.zeros(0, dtype=torch.long)
        matches = Matches(empty.new_zeros(len(out_bkh) + 1), empty, empty, empty.int(), none, none)
        layer_gr = head_mg.new_zeros(head_mg.shape[1], 1)
    found: Tensor = _SharedLogits.apply(
        weights_mj, folded_bjg, head_mg, *matches, layer_gr, out_bkh
    )
    return found


class _SharedLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        weights_mj, folded_bjg, head_mg, *matched, layer_gr, out_bkh = given
        ctx.save_for_backward(*given)
        batch, outputs, hidden = out_bkh.shape
        logits = head_mg.new_empty(batch, len(head_mg), outputs)
        for at, own in enumerate(_of_requests(Matches(*matched))):
            links_mr = own.sums(len(head_mg))
            for some in _blocks(len(head_mg)):
                sums = torch.addmm(head_mg[some], weights_mj[some], folded_bjg[at])
                if links_mr is not None:
                    sums.addmm_(links_mr[some], layer_gr.T)
                z = sums[:, :hidden].clamp_min(0)
                if sums.shape[1] > hidden:
                    z *= sums[:, hidden:]
                torch.mm(z, out_bkh[at].T, out=logits[at, some])
        return logits

    @staticmethod
    def backward(ctx: Any, *of_output: Tensor) -> tuple[Tensor | None, ...]:
        weights_mj, folded_bjg, head_mg, *matched, layer_gr, out_bkh = ctx.saved_tensors
        (of_logits,) = of_output
        hidden = out_bkh.shape[2]
        of_weights, of_head = torch.zeros_like(weights_mj), torch.zeros_like(head_mg)
        of_folded, of_out = torch.zeros_like(folded_bjg), torch.zeros_like(out_bkh)
        of_layer = torch.zeros_like(layer_gr)
        of_links = []
        for at, own in enumerate(_of_requests(Matches(*matched))):
            links_mr = own.sums(len(head_mg))
            of_links_mr = None if links_mr is None else torch.empty_like(links_mr)
            for some in _blocks(len(head_mg)):
                sums = torch.addmm(head_mg[some], weights_mj[some], folded_bjg[at])
                if links_mr is not None:
                    sums.addmm_(links_mr[some], layer_gr.T)
                of_mk = of_logits[at, some]
                of_z = of_mk @ out_bkh[at]
                a = sums[:, :hidden].clamp_min(0)
                if sums.shape[1] > hidden:
                    gate = sums[:, hidden:]
                    of_out[at].addmm_(of_mk.T, a * gate)
                    of_gate = of_z * a
                    sums[:, :hidden] = torch.where(a > 0, of_z * gate, 0.0)
                    sums[:, hidden:] = of_gate
                else:
                    of_out[at].addmm_(of_mk.T, a)
                    sums = torch.where(a > 0, of_z, 0.0)
                of_weights[some].addmm_(sums, folded_bjg[at].T)
                of_folded[at].addmm_(weights_mj[some].T, sums)
                of_head[some] += sums
                if links_mr is not None and of_links_mr is not None:
                    of_layer.addmm_(sums.T, links_mr[some])
                    torch.mm(sums, layer_gr, out=of_links_mr[some])
            if of_links_mr is not None:
                of_links.append(own.gradients(of_links_mr))
        of_all = torch.cat([matched[-1][:0], *of_links])
        return of_weights, of_folded, of_head, *[None] * 5, of_all, of_layer, of_out


class _Own(NamedTuple):
    """Of one request the links and the keys that they belong to; and of all keys the candidates and
    shares."""

    low: Tensor
    high: Tensor
    candidates: Tensor
    shares: Tensor
    links: Tensor

    def sums(self, candidates: int) -> Tensor | None:
        """Sums of the links that each candidate receives, [M, r]; None without links."""
        if not len(self.links):
            return None
        sums = self.links.new_zeros(candidates, self.links.shape[1])
        if self._native:
            low, high, entries, shares, links = map(_array, self)
            _native.give_links(low, high, entries, shares, links, _array(sums))
            return sums
        candidate, key, link = self._pairs()
        return sums.index_add_(0, candidate, self.links[link] * self.shares[key][:, None])

    def gradients(self, of_sums: Tensor) -> Tensor:
        """Of the links, [v, r], from those of the sums."""
        of_links = torch.zeros_like(self.links)
        if self._native:
            low, high, entries, shares, _ = map(_array, self)
            _native.take_links(low, high, entries, shares, _array(of_sums), _array(of_links))
            return of_links
        candidate, key, link = self._pairs()
        return of_links.index_add_(0, link, of_sums[candidate] * self.shares[key][:, None])

    @property
    def _native(self) -> bool:
        return self.links.dtype == torch.float32

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The candidate, the key and the link of each match."""
        key, link = ragged(self.low, self.high - self.low)
        candidate = self.candidates[key].long()
        held = candidate >= 0
        return candidate[held], key[held], link[held]


def _of_requests(of: Matches) -> list[_Own]:
    bounds = pairwise(of.offsets.tolist())
    return [
        _Own(of.low[low:high], of.high[low:high], of.candidates, of.shares, of.links[low:high])
        for low, high in bounds
    ]


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _blocks(candidates: int) -> list[slice]:
    return [slice(at, at + CANDIDATES) for at in range(0, candidates, CANDIDATES)]
