"""Attention of links over every prefix of histories, in a single pass.

Shares that fall as ``exp(-rate * age)`` are ratios of running sums, so what the links read of the
first p events follows from what they read of the events before and from the few in between. Chunks
of events are taken in turn: within a chunk prefixes are weighed by matrix products, and a
:class:`Carry` of constant size brings what came before. Time is linear in the history and memory
does not grow with it when each chunk is recomputed in the backward pass.

The definition is ``reference.link_attention`` on each prefix. Shape letters: B histories, H heads,
l links, n events of a chunk, m prefixes, e numbers per head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limerank.kernels.attention import shares

NOTHING = -1e30
"""Logarithm of the sum over no events; finite, so that a prefix without events reads zeros."""


class Carry(NamedTuple):
    """The state of links after all events so far: ``mean`` [..., H, l, e]; ``log`` [..., H, l], the
    logarithm of the sum of exp(-rate * age) as of ``time`` [...], that of the newest."""

    mean: Tensor
    log: Tensor
    time: Tensor


def nothing_yet(q_bhle: Tensor, time_b: Tensor) -> Carry:
    """The carry before the first event; ``time_b`` [B] is at most that event's."""
    return Carry(
        torch.zeros_like(q_bhle, dtype=torch.float32),
        torch.full(q_bhle.shape[:3], NOTHING, device=q_bhle.device),
        time_b,
    )


def prefix_attention(
    q_bhle: Tensor,
    k_bhne: Tensor,
    v_bhne: Tensor,
    rate_hl: Tensor,
    time_bn: Tensor,
    prefix_bm: Tensor,
    count_b: Tensor,
    carry: Carry,
) -> tuple[Tensor, Carry]:
    """Let links read all events before the chunk and the first few of its own.

    Args:
        q_bhle, k_bhne, v_bhne: queries of the links; keys and values of the chunk's n events.
        rate_hl: by how much the logarithm of a share falls per unit of age, at least 0.
        time_bn: times of the events, ascending, in the unit of ages.
        prefix_bm: how many of the chunk's events belong to each prefix, 0 .. ``count_b``.
        count_b: how many events of the chunk are real, 0 .. n; the others are never read.
        carry: of the events before the chunk.

    Returns:
        ``SiLU(q k^T / sqrt(e)) softmax(-rate * age) v`` over each prefix, [B, m, H, l, e], zeros
        for a prefix without events; and the carry of all events up to the chunk's end.
    """
    n = k_bhne.shape[2]
    upto_bm = torch.cat([prefix_bm, count_b[:, None]], 1)  # the last one: the full chunk
    # Column 0 represents all events before the chunk. Ages count from each prefix's own newest
    # event, so that large ones never cancel.
    time_bx = torch.cat([carry.time[:, None], time_bn], 1)
    newest_bm = time_bx.gather(1, upto_bm)
    age_bmx = newest_bm[..., None] - time_bx[:, None]
    seen_bmx = torch.arange(n + 1, device=upto_bm.device) <= upto_bm[..., None]
    of_all_bhlx = F.pad(carry.log[..., None], (0, n))  # an event's own logarithm is 0
    logits_bhlmx = of_all_bhlx[:, :, :, None] - rate_hl[..., None, None] * age_bmx[:, None, None]
    logits_bhlmx = logits_bhlmx.masked_fill(~seen_bmx[:, None, None], -torch.inf)
    share_bhlmx = shares(logits_bhlmx)
    alike_bhln = F.silu(((q_bhle * q_bhle.shape[-1] ** -0.5) @ k_bhne.mT).float())
    weights_bhlmn = share_bhlmx[..., 1:] * alike_bhln[:, :, :, None]
    # Links and prefixes side by side: one product for each history and head.
    read_bhje = weights_bhlmn.flatten(2, 3) @ v_bhne.float()
    of_past_bhlme = share_bhlmx[..., :1] * carry.mean[:, :, :, None]
    read_bhlme = read_bhje.view(of_past_bhlme.shape) + of_past_bhlme
    read_bmhle = read_bhlme.permute(0, 3, 1, 2, 4)
    log_bhl = logits_bhlmx[:, :, :, -1].logsumexp(-1)
    return read_bmhle[:, :-1], Carry(read_bmhle[:, -1], log_bhl, newest_bm[:, -1])


def carry_of(
    q_hle: Tensor, k_hne: Tensor, v_hne: Tensor, rate_hl: Tensor, age_n: Tensor, time: Tensor
) -> Carry:
    """The carry of n >= 1 events, in any order.

    Args:
        age_n: of each event, counted from the newest one, f32.
        time: that of the newest, f64 [], in the unit of ages.
    """
    logits_hln = -rate_hl[..., None] * age_n
    alike_hln = F.silu(((q_hle * q_hle.shape[-1] ** -0.5) @ k_hne.mT).float())
    mean_hle = (alike_hln * shares(logits_hln)) @ v_hne.float()
    return Carry(mean_hle, logits_hln.double().logsumexp(-1), time.double())


def merged(one: Carry, other: Carry, rate_hl: Tensor) -> Carry:
    """The carry of the events of both, in any order; the order of merging matters only for
    rounding.

    Logarithms of sums are converted to the time of the newest event of all. They only fall by that,
    so no gap is too long. Times and logarithms are f64, since f32 is too coarse for days since
    1970.
    """
    time = torch.maximum(one.time, other.time)
    log_hl = one.log - rate_hl.double() * (time - one.time)
    other_hl = other.log - rate_hl.double() * (time - other.time)
    sum_hl = torch.logaddexp(log_hl, other_hl)
    share_hl1 = (other_hl - sum_hl).exp()[..., None]
    mean_hle = one.mean + share_hl1 * (other.mean.double() - one.mean)
    return Carry(mean_hle.float(), sum_hl, time)
