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
"""Numbers that the scores of shared items take at once (Ranker.shared_scratch), about: 64 MiB, and
a few times as much with what the backward pass needs. Where a batch has more, its requests are
scored in parts, and the backward pass computes each part again."""
NOTHING = -1e30
"""Logit of an item that does not count; finite, so that its gradient is zero."""


def shared_softmax(
    ranker: Ranker,
    state: Any,
    terms: Any,
    shared: Tensor,
    offset: Tensor,
    keys: ItemKeys | None,
    outputs: Sequence[int],
    positive: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Logits of positives, and what they are compared with.

    Args:
        ranker: the model.
        state: of B requests, by ``encode_users``.
        terms: of items, by ``encode_items``.
        shared: positions among the items, i64 [S].
        offset: of each shared item, f32 [S]: added to its logit where it is a negative.
        keys: of the items.
        outputs: which of the model's logits are wanted, T of them.
        positive: the request, the position in ``shared`` and the number of the logit of each
            positive, i64 [n] each; requests ascend.

    Returns:
        Logarithms of the sums of exp(logit + offset) over the shared items without the positives
        of the request and logit, f32 [B, T]; and the logit of each positive, f32 [n].
    """
    batch = len(state[0])
    request, position, task = positive

    def of(low: int, high: int) -> tuple[Tensor, Tensor]:
        part = part_of(state, slice(low, high))
        logits = ranker.score_shared(part, terms, keys, shared)[..., list(outputs)].float()
        first, last = torch.searchsorted(request, request.new_tensor([low, high])).tolist()
        at = request[first:last] - low, position[first:last], task[first:last]
        nothing = logits.new_full((), NOTHING)
        others = (logits + offset[:, None]).index_put(at, nothing)
        return others.logsumexp(1), logits[at]

    size = max(1, PAIR_NUMBERS // max(len(shared) * ranker.shared_scratch(state), 1))
    if size >= batch:
        return of(0, batch)
    found = [
        checkpoint(partial(of, low, min(low + size, batch)), use_reentrant=False)
        for low in range(0, batch, size)
    ]
    sums, own = zip(*found, strict=True)
    return torch.cat(sums), torch.cat(own)
