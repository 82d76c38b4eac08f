"""Attention to events, in its fast forms; limerank.kernels.reference defines them.

Shape letters: B requests, H heads, l links, N history positions (padded), e numbers per head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from limerank.kernels.dispatch import fast_inference

LEAST_SHARE = 1e-30
"""Smallest share of an event that counts. Smaller ones are subnormal in f32, and arithmetic with
those is many times as slow."""


def real_positions(lengths_b: Tensor, size: int) -> Tensor:
    """Which of ``size`` history positions are events, not padding: bool [B, N]."""
    return torch.arange(size, device=lengths_b.device) < lengths_b[:, None]


def unpadded(lengths_b: Tensor, size: int) -> bool:
    """Whether this is one request without padding, ``size`` >= 1: the most frequent call of a
    server. False on a GPU, which would have to finish its work before it could answer."""
    alone = size > 0 and len(lengths_b) == 1 and lengths_b.device.type == "cpu"
    return alone and int(lengths_b) == size


def link_attention(
    q_bhle: Tensor,
    k_bhne: Tensor,
    v_bhne: Tensor,
    rate_hl: Tensor,
    age_bn: Tensor,
    lengths_b: Tensor,
) -> Tensor:
    """SiLU(q k^T / sqrt(e)) v, averaged over each request's real events by shares that fall with
    age: [B, H, l, e]. A request without events reads zeros; see :func:`link_weights`."""
    q_bhle = q_bhle * q_bhle.shape[-1] ** -0.5
    weights_bhln = link_weights(q_bhle, k_bhne, rate_hl, age_bn, lengths_b)
    return weights_bhln.to(v_bhne.dtype) @ v_bhne


def link_weights(
    q_bhle: Tensor,
    k_bhne: Tensor,
    rate_hl: Tensor,
    age_bn: Tensor,
    lengths_b: Tensor,
) -> Tensor:
    """SiLU(q k^T) softmax(-rate * age) over each request's real events, [B, H, l, N].

    The shares of events fall with their age and sum to one; they do not depend on the instant that
    ages count from. The similarity of a link and an event is not normalised: a link may read
    nothing of all events. Queries are already divided by sqrt(e).
    """
    real_b11n = real_positions(lengths_b, age_bn.shape[1])[:, None, None]
    share_bhln = age_bn[:, None, None] * -rate_hl.unsqueeze(-1)
    share_bhln = shares(share_bhln.masked_fill(~real_b11n, -1e30)) * real_b11n
    return F.silu(q_bhle @ k_bhne.mT) * share_bhln


def shares(logarithms: Tensor) -> Tensor:
    """Softmax over the last dimension, without shares below :data:`LEAST_SHARE`."""
    found = logarithms.softmax(-1)
    return F.threshold(found, LEAST_SHARE, 0.0, inplace=not torch.is_grad_enabled())


def softmax_attention(
    q_bhle: Tensor,
    k_bhne: Tensor,
    v_bhne: Tensor,
    rate_hl: Tensor,
    age_bn: Tensor,
    lengths_b: Tensor,
) -> Tensor:
    """softmax(q k^T / sqrt(e) - rate * age) v over each request's real events: [B, H, l, e].

    A request without events reads zeros. ``rate_hl`` may be [H, 1], the same for all queries.
    """
    batch, heads, links, e = q_bhle.shape
    scale, kind = e**-0.5, q_bhle.dtype
    size = age_bn.shape[1]
    if fast_inference() and size:
        # Fused: nothing of the size l x N is written but the mask, and not even that where links
        # share their rate. Training takes the form below, whose gradients reach the rates.
        mask_bhln = age_bn.view(batch, 1, 1, size) * -rate_hl.unsqueeze(-1)
        if unpadded(lengths_b, size):
            return F.scaled_dot_product_attention(
                q_bhle, k_bhne, v_bhne, attn_mask=mask_bhln.to(kind)
            )
        real_b11n = real_positions(lengths_b, size)[:, None, None]
        mask_bhln = mask_bhln.masked_fill_(~real_b11n, -1e30).to(kind)
        read_bhle = F.scaled_dot_product_attention(q_bhle, k_bhne, v_bhne, attn_mask=mask_bhln)
        return read_bhle * (lengths_b > 0)[:, None, None, None]
    real_bn = real_positions(lengths_b, size)
    rate_hl = rate_hl.expand(-1, links)
    # Two more columns carry recency and padding through the product of queries and keys, so that
    # nothing of the size l x N is touched besides the product, the softmax and the reading.
    rate_bhl1 = rate_hl[None, :, :, None].expand(batch, -1, -1, -1).to(kind)
    one_bhl1 = torch.ones((), dtype=kind, device=q_bhle.device).expand(batch, heads, links, 1)
    more_bn2 = torch.stack([-age_bn, torch.where(real_bn, 0.0, -1e30)], -1).to(kind)
    queries_bhlf = torch.cat([q_bhle * scale, rate_bhl1, one_bhl1], -1)
    keys_bhnf = torch.cat([k_bhne, more_bn2[:, None].expand(-1, heads, -1, -1)], -1)
    weights_bhln = (queries_bhlf @ keys_bhnf.mT).softmax(-1)
    return (weights_bhln.to(kind) @ v_bhne) * (lengths_b > 0)[:, None, None, None]


def pointwise_attention(
    q_bhle: Tensor, k_bhne: Tensor, v_bhne: Tensor, lengths_b: Tensor
) -> Tensor:
    """SiLU(q k^T / sqrt(e)) v / n over each request's n real events: [B, l, H e]."""
    real_bn = real_positions(lengths_b, k_bhne.shape[2])
    share_bn = (real_bn / lengths_b.clamp(min=1)[:, None]).to(v_bhne.dtype)
    a_bhln = F.silu((q_bhle * q_bhle.shape[-1] ** -0.5) @ k_bhne.mT)
    read_bhle = a_bhln @ (v_bhne * share_bn[:, None, :, None])
    return read_bhle.transpose(1, 2).flatten(-2)


def xor_attention(
    q_bhle: Tensor,
    k_bhne: Tensor,
    v_bhne: Tensor,
    q_bhne: Tensor,
    k_bhle: Tensor,
    v_bhle: Tensor,
    lengths_b: Tensor,
) -> tuple[Tensor, Tensor]:
    """The two rectangles of pointwise attention under the mask that allows link-event pairs only.

    Returns:
        What each link reads of the events, [B, l, H e]: see :func:`pointwise_attention`; and what
        each event reads of the links, [B, N, H e].
    """
    read_bld = pointwise_attention(q_bhle, k_bhne, v_bhne, lengths_b)
    a_bhnl = F.silu(q_bhne @ (k_bhle * q_bhle.shape[-1] ** -0.5).mT)
    read_bhne = a_bhnl @ (v_bhle / k_bhle.shape[2])
    return read_bld, read_bhne.transpose(1, 2).flatten(-2)
