"""Logits of candidates that all requests of a batch share, for training.

The definition is ``reference.shared_logits``. Nothing of the size requests times candidates times
units is stored: :data:`CANDIDATES` candidates of a request are computed at a time, in memory that
stays in the processor's cache, and the backward pass computes them again. Anchored links are summed
by candidate before the first layer, so that the cost of a request hardly depends on how many match.

Shape letters: B requests, M candidates, j shares of an item, h hidden units, g first-layer sums
(2 h when gated, else h), K logits, n matches of an anchored link, r numbers of such a link.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CANDIDATES = 2048


def shared_logits(
    weights_mj: Tensor,
    folded_bjg: Tensor,
    head_mg: Tensor,
    offsets: Tensor,
    candidate_n: Tensor,
    links_nr: Tensor,
    layer_gr: Tensor,
    out_bkh: Tensor,
) -> Tensor:
    """f32 [B, M, K]: ``(relu(a) * gate) out_b`` of the first-layer sums ``weights folded_b + head +
    layer (sum of links)``, whose halves are a and gate; of g = h sums, ``relu(a) out_b``.

    Args:
        weights_mj: shares of each candidate.
        folded_bjg: what each request has for a share.
        head_mg: of each candidate.
        offsets: where the matches of each request begin and, last, end, i64 [B + 1].
        candidate_n: the candidate of each match, i64; a candidate may have several.
        links_nr: the anchored link of each match, times its share.
        layer_gr: the first layer of anchored links.
        out_bkh: weights of the last layer, of each request.
    """
    found: Tensor = _SharedLogits.apply(
        weights_mj, folded_bjg, head_mg, offsets, candidate_n, links_nr, layer_gr, out_bkh
    )
    return found


class _SharedLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        weights_mj, folded_bjg, head_mg, offsets, candidate_n, links_nr, layer_gr, out_bkh = given
        ctx.save_for_backward(*given)
        batch, outputs, hidden = out_bkh.shape
        logits = head_mg.new_empty(batch, len(head_mg), outputs)
        for at, matches in enumerate(_matches(offsets)):
            links_mr = _by_candidate(len(head_mg), candidate_n[matches], links_nr[matches])
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
        (weights_mj, folded_bjg, head_mg, offsets, candidate_n, links_nr, layer_gr, out_bkh) = (
            ctx.saved_tensors
        )
        (of_logits,) = of_output
        hidden = out_bkh.shape[2]
        of_weights, of_head = torch.zeros_like(weights_mj), torch.zeros_like(head_mg)
        of_folded, of_out = torch.zeros_like(folded_bjg), torch.zeros_like(out_bkh)
        of_links, of_layer = torch.zeros_like(links_nr), torch.zeros_like(layer_gr)
        for at, matches in enumerate(_matches(offsets)):
            links_mr = _by_candidate(len(head_mg), candidate_n[matches], links_nr[matches])
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
                torch.index_select(of_links_mr, 0, candidate_n[matches], out=of_links[matches])
        return of_weights, of_folded, of_head, None, None, of_links, of_layer, of_out


def _matches(offsets: Tensor) -> list[slice]:
    """Of each request."""
    return [slice(low, high) for low, high in pairwise(offsets.tolist())]


def _blocks(candidates: int) -> list[slice]:
    return [slice(at, at + CANDIDATES) for at in range(0, candidates, CANDIDATES)]


def _by_candidate(candidates: int, candidate_n: Tensor, links_nr: Tensor) -> Tensor | None:
    """Sums of the links that match a candidate, [M, r]; None where none does."""
    if not len(candidate_n):
        return None
    return links_nr.new_zeros(candidates, links_nr.shape[1]).index_add_(0, candidate_n, links_nr)
