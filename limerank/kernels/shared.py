"""Logits of candidates that all requests of a batch share, for training on the processor.

The definition is ``reference.shared_logits``; here it is computed in C++, in float32. Nothing of
the size requests times candidates times units is stored, nor anything for a pair of an anchored
link and a candidate, of which there may be thousands for each event of a history: some candidates
of a request are computed at a time, in memory that stays in the processor's cache, and the backward
pass computes them again.

Shape letters: B requests, M candidates, j shares of an item, h hidden units, g first-layer sums
(2 h when gated, else h), K logits, V anchored links of all requests, r numbers of such a link, T
keys of all candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from limerank.kernels import _native


class Matches(NamedTuple):
    """Which candidates receive from which anchored links.

    Attributes:
        offsets: where the links of each request begin and, last, end, i64 [B + 1].
        low, high: the keys of candidates that each link belongs to: ``low .. high - 1``, i64 [V].
        candidates: the candidate of each of these keys; -1 of an item that is none, i32 [T].
        shares: of each key, f32 [T].
        links: f32 [V, r].
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
    Gradients are those of all but the shares of ``matches``.

    Args:
        weights_mj: shares of each candidate, f32.
        folded_bjg: what each request has for a share.
        head_mg: of each candidate.
        matches: of anchored links; None where the model has none.
        layer_gr: the first layer of anchored links.
        out_bkh: weights of the last layer, of each request.

    Raises:
        ValueError: shapes do not belong together, or a range of ``matches`` is outside the keys.
    """
    if matches is None or layer_gr is None:
        none, empty = head_mg.new_zeros(0, 1), torch.zeros(0, dtype=torch.long)
        offsets = torch.zeros(len(out_bkh) + 1, dtype=torch.long)
        matches = Matches(offsets, empty, empty, empty.int(), none[:, 0], none)
        layer_gr = head_mg.new_zeros(head_mg.shape[1], 1)
    found: Tensor = _SharedLogits.apply(
        weights_mj, folded_bjg, head_mg, *matches, layer_gr, out_bkh
    )
    return found


class _SharedLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given)
        arguments = *map(_array, given), torch.get_num_threads()
        return torch.from_numpy(_native.shared_logits(*arguments))

    @staticmethod
    def backward(ctx: Any, *of_output: Tensor) -> tuple[Tensor | None, ...]:
        arguments = *map(_array, (*of_output, *ctx.saved_tensors)), torch.get_num_threads()
        found = _native.shared_gradients(*arguments)
        of_weights, of_folded, of_head, of_links, of_layer, of_out = map(torch.from_numpy, found)
        return of_weights, of_folded, of_head, *[None] * 5, of_links, of_layer, of_out


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()
