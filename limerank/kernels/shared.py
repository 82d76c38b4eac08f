"""Logits of candidates that all requests of a batch share, for training.

The definition is ``reference.shared_logits``. Nothing of the size requests times candidates times
units is stored: :data:`CANDIDATES` candidates of a request are computed at a time, in memory that
stays in the processor's cache, and the backward pass computes them again.

Shape letters: B requests, M candidates, j shares of an item, h hidden units, g first-layer sums
(2 h when gated, else h), K logits, n additions.
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
    added_ng: Tensor,
    out_bkh: Tensor,
) -> Tensor:
    """f32 [B, M, K]: ``(relu(a) * gate) out_b`` of the first-layer sums ``weights folded_b + head +
    additions``, whose halves are a and gate; of g = h sums, ``relu(a) out_b``.

    Args:
        weights_mj: shares of each candidate.
        folded_bjg: what each request has for a share.
        head_mg: of each candidate.
        offsets: where the additions of each request begin and, last, end, i64 [B + 1].
        candidate_n: the candidate of each addition, i64; a candidate may have several.
        added_ng: additions to its sums.
        out_bkh: weights of the last layer, of each request.
    """
    found: Tensor = _SharedLogits.apply(
        weights_mj, folded_bjg, head_mg, offsets, candidate_n, added_ng, out_bkh
    )
    return found


class _SharedLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        weights_mj, folded_bjg, head_mg, offsets, candidate_n, added_ng, out_bkh = given
        ctx.save_for_backward(*given)
        batch, outputs, hidden = out_bkh.shape
        logits = head_mg.new_empty(batch, len(head_mg), outputs)
        for at, low, high in _requests(offsets):
            for some in _blocks(len(head_mg)):
                sums = torch.addmm(head_mg[some], weights_mj[some], folded_bjg[at])
                _add(sums, some, candidate_n[low:high], added_ng[low:high])
                z = sums[:, :hidden].clamp_min(0)
                if sums.shape[1] > hidden:
                    z *= sums[:, hidden:]
                torch.mm(z, out_bkh[at].T, out=logits[at, some])
        return logits

    @staticmethod
    def backward(ctx: Any, *of_output: Tensor) -> tuple[Tensor | None, ...]:
        weights_mj, folded_bjg, head_mg, offsets, candidate_n, added_ng, out_bkh = ctx.saved_tensors
        (of_logits,) = of_output
        hidden = out_bkh.shape[2]
        of_weights, of_head = torch.zeros_like(weights_mj), torch.zeros_like(head_mg)
        of_folded, of_out = torch.zeros_like(folded_bjg), torch.zeros_like(out_bkh)
        of_added = torch.zeros_like(added_ng)
        for at, low, high in _requests(offsets):
            for some in _blocks(len(head_mg)):
                sums = torch.addmm(head_mg[some], weights_mj[some], folded_bjg[at])
                _add(sums, some, candidate_n[low:high], added_ng[low:high])
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
                _take(of_added[low:high], some, candidate_n[low:high], sums)
        return of_weights, of_folded, of_head, None, None, of_added, of_out


def _requests(offsets: Tensor) -> list[tuple[int, int, int]]:
    """Number, first and last addition of each request."""
    bounds = offsets.tolist()
    return [(at, low, high) for at, (low, high) in enumerate(pairwise(bounds))]


def _blocks(candidates: int) -> list[slice]:
    return [slice(at, at + CANDIDATES) for at in range(0, candidates, CANDIDATES)]


def _add(sums: Tensor, some: slice, candidate_n: Tensor, added_ng: Tensor) -> None:
    """Add to the sums of a block what its candidates have."""
    inside = (candidate_n >= some.start) & (candidate_n < some.start + len(sums))
    rows = inside.nonzero()[:, 0]
    if len(rows):
        sums.index_add_(0, candidate_n[rows] - some.start, added_ng[rows])


def _take(of_added: Tensor, some: slice, candidate_n: Tensor, of_sums: Tensor) -> None:
    """Gradients of a block's additions."""
    inside = (candidate_n >= some.start) & (candidate_n < some.start + len(of_sums))
    rows = inside.nonzero()[:, 0]
    if len(rows):
        of_added[rows] = of_sums[candidate_n[rows] - some.start]
