"""The definitions of the attention kernels: short and slow, in the terms of the equations.

Shape letters: B requests, H heads, l links, N history positions (padded), e numbers per head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from limerank.kernels.ragged import ragged
from limerank.kernels.shared import Matches


def link_attention(
    q_bhle: Tensor,
    k_bhne: Tensor,
    v_bhne: Tensor,
    rate_hl: Tensor,
    age_bn: Tensor,
    lengths_b: Tensor,
) -> Tensor:
    """SiLU(q k^T / sqrt(e)) softmax(-rate * age) v, one request, head and link at a time."""
    batch, heads, links, e = q_bhle.shape
    out = torch.zeros(batch, heads, links, e, dtype=v_bhne.dtype)
    for b in range(batch):
        n = int(lengths_b[b])
        if n == 0:
            continue
        for h in range(heads):
            for i in range(links):
                logits_n = k_bhne[b, h, :n] @ q_bhle[b, h, i] / e**0.5
                share_n = (-rate_hl[h, i] * age_bn[b, :n]).softmax(0)
                out[b, h, i] = (F.silu(logits_n) * share_n) @ v_bhne[b, h, :n]
    return out


def softmax_attention(
    q_bhle: Tensor,
    k_bhne: Tensor,
    v_bhne: Tensor,
    rate_hl: Tensor,
    age_bn: Tensor,
    lengths_b: Tensor,
) -> Tensor:
    """softmax(q k^T / sqrt(e) - rate * age) v, one request, head and link at a time."""
    batch, heads, links, e = q_bhle.shape
    out = torch.zeros(batch, heads, links, e, dtype=v_bhne.dtype)
    for b in range(batch):
        n = int(lengths_b[b])
        if n == 0:
            continue
        for h in range(heads):
            for i in range(links):
                logits_n = k_bhne[b, h, :n] @ q_bhle[b, h, i] / e**0.5
                logits_n = logits_n - rate_hl[h, i] * age_bn[b, :n]
                out[b, h, i] = logits_n.softmax(0) @ v_bhne[b, h, :n]
    return out


def xor_attention(
    q_bhxe: Tensor, k_bhxe: Tensor, v_bhxe: Tensor, links: int, lengths_b: Tensor
) -> Tensor:
    """Dense attention over X = [links ; events] under the mask: SiLU(Q K^T / sqrt(e)) * Mxor / n V.

    ``Mxor[i][j]`` is 1 exactly where one of i, j is a link and the other a real event; n is the
    number of keys that the row may see.

    Args:
        q_bhxe, k_bhxe, v_bhxe: [B, H, l + N, e].
        links: l.
        lengths_b: real events of each request.
    """
    positions = torch.arange(q_bhxe.shape[2])
    is_link_x = positions < links
    real_bx = is_link_x | (positions < links + lengths_b[:, None])
    mask_bxx = (is_link_x[:, None] != is_link_x[None, :]) & real_bx[:, None] & real_bx[:, :, None]
    n_bx = mask_bxx.sum(-1).clamp(min=1)
    a_bhxx = F.silu(q_bhxe @ k_bhxe.mT / q_bhxe.shape[-1] ** 0.5)
    return (a_bhxx * mask_bxx[:, None] / n_bx[:, None, :, None]) @ v_bhxe


def shared_logits(
    weights_mj: Tensor,
    folded_bjg: Tensor,
    head_mg: Tensor,
    matches: Matches | None,
    layer_gr: Tensor | None,
    out_bkh: Tensor,
) -> Tensor:
    """See limerank.kernels.shared."""
    sums_bmg = torch.einsum("mj,bjg->bmg", weights_mj, folded_bjg) + head_mg
    if matches is not None and layer_gr is not None:
        key, link = ragged(matches.low, matches.high - matches.low)
        candidate = matches.candidates[key].long()
        held = candidate >= 0
        request = torch.repeat_interleave(matches.offsets.diff())[link]
        added_ng = (matches.links[link] * matches.shares[key][:, None]) @ layer_gr.T
        at = request[held], candidate[held]
        sums_bmg = sums_bmg.index_put(at, added_ng[held], accumulate=True)
    a_bmh = sums_bmg[..., : out_bkh.shape[-1]].relu()
    if a_bmh.shape != sums_bmg.shape:
        a_bmh = a_bmh * sums_bmg[..., out_bkh.shape[-1] :]
    return torch.einsum("bmh,bkh->bmk", a_bmh, out_bkh)
