"""The softmax over items that all requests of a batch share, in pieces of bounded memory.

Shape letters: B requests, P own candidates of each, S shared items, T logits that are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limerank.data.batch import ItemKeys
from limerank.models import Ranker
from limerank.models.ranker import part_of

PAIR_NUMBERS = 1 << 24
"""Numbers that the scores of shared items take at once (Ranker.scratch), about: 64 MiB, and a few
times as much with what the backward pass needs. Where a batch has more, its requests are scored in
parts, and the backward pass computes each part again."""
NOTHING = -1e30
"""Logit of an item that does not count; finite, so that its gradient is zero."""


def log_sums(
    ranker: Ranker,
    state: Any,
    terms: Any,
    shared: Tensor,
    offset: Tensor,
    keys: ItemKeys | None,
    outputs: Sequence[int],
    left_out: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Logarithms of the sums of exp(logit + offset) over the shared items: f32 [B, T].

    Args:
        ranker: the model.
        state: of B requests, by ``encode_users``.
        terms: of items, by ``encode_items``.
        shared: positions among the items, i64 [S].
        offset: of each shared item, f32 [S].
        keys: of the items.
        outputs: which of the model's logits are wanted, T of them.
        left_out: what does not count: the request, the position in ``shared`` and the number of the
            logit, i64 [n] each.
    """
    batch = len(state[0])
    own = type(terms)(*(part[shared] for part in terms))
    mask = torch.zeros(
        batch, len(shared), len(outputs), dtype=torch.bool, device=shared.device
    ).index_put_(left_out, torch.ones((), dtype=torch.bool, device=shared.device))

    def of(some: slice) -> Tensor:
        part = part_of(state, some)
        logits = ranker.score(part, own, ranker.extra(part, keys, shared))[..., list(outputs)]
        logits = (logits.float() + offset[:, None]).masked_fill(mask[some], NOTHING)
        return logits.logsumexp(1)

    size = max(1, PAIR_NUMBERS // max(len(shared) * ranker.scratch(state), 1))
    if size >= batch:
        return of(slice(0, batch))
    return torch.cat(
        [
            checkpoint(partial(of, slice(at, at + size)), use_reentrant=False)
            for at in range(0, batch, size)
        ]
    )
