"""Which requests make a batch, and which items a batch has: arrays in, arrays out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limerank.data.ragged import ragged_index

POOL_BATCHES = 128
"""Training batches are cut from pools of about so many batches, similar requests together."""
EVENTS_PER_IMPRESSION = 64
"""A request with more history events per impression counts as more impressions in a batch."""


def plan_batches(
    counts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    impressions: int,
    users: NDArray[np.int32] | None = None,
    generator: np.random.Generator | None = None,
    together: int = 1,
) -> list[NDArray[np.int64]]:
    """Batches of about ``impressions`` impressions, of requests of similar size.

    With a ``generator`` the order is random: requests are shuffled, similar ones are gathered
    within pools, and the batches are shuffled. Without, all requests are one pool, which gives the
    fewest padded positions.

    Args:
        counts: impressions of each of R requests, i64 [R].
        lengths: events of their histories, i64 [R].
        impressions: of a batch.
        users: of the requests, [R], those of one user side by side; needed unless ``together``
            is 1.
        generator: of random numbers.
        together: so many consecutive requests of a user stay in one batch; 0: all of them.

    Returns:
        Positions among the R requests, one array for each batch.
    """
    first = np.arange(len(counts))
    if users is not None and together != 1 and len(counts):
        of_user = np.flatnonzero(np.diff(users, prepend=users[0] - 1))
        rank = first - np.repeat(of_user, np.diff(of_user, append=len(users)))
        first = np.flatnonzero(rank % together == 0 if together else rank == 0)
        size_of = np.diff(first, append=len(counts))
        counts = np.add.reduceat(counts, first)
        lengths = np.maximum.reduceat(lengths, first)
    else:
        size_of = np.ones(len(first), np.int64)
    order = np.arange(len(first))
    pools = [order]
    if generator is not None:
        order = generator.permutation(order)
        mean = max(counts.mean(), 1.0) if len(counts) else 1.0
        size = max(1, int(POOL_BATCHES * impressions / mean))
        pools = [order[at : at + size] for at in range(0, len(order), size)]
    batches = [
        ragged_index(first[part], size_of[part])
        for pool in pools
        if len(pool)
        for part in _similar(pool, lengths, counts, impressions)
    ]
    if generator is not None:
        batches = [batches[position] for position in generator.permutation(len(batches))]
    return batches


def _similar(
    pool: NDArray[np.int64],
    lengths: NDArray[np.int64],
    counts: NDArray[np.int64],
    impressions: int,
) -> list[NDArray[np.int64]]:
    """Cut a pool in two, by history length or by candidates, whichever leaves less padding; and
    again, until every part is a batch of about ``impressions`` impressions, or fewer where long
    histories with few impressions each would take too much memory."""
    sizes = np.maximum(counts, lengths / EVENTS_PER_IMPRESSION)
    total = float(sizes[pool].sum())
    parts = round(total / impressions)
    if parts < 2 or len(pool) == 1:
        return [pool]
    halves: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
    for key in (lengths, counts):
        ordered = pool[np.argsort(key[pool], kind="stable")]
        wanted = total * (parts // 2) / parts
        position = int(np.searchsorted(np.cumsum(sizes[ordered]), wanted))
        position = min(max(position, 1), len(pool) - 1)
        pair = ordered[:position], ordered[position:]
        computed = sum(len(half) * int(lengths[half].max() + counts[half].max()) for half in pair)
        halves.append((computed, *pair))
    _, first, second = min(halves, key=lambda half: half[0])
    return [
        part for half in (first, second) for part in _similar(half, lengths, counts, impressions)
    ]


def distinct_items(
    candidates: NDArray[np.int32], history: NDArray[np.int32]
) -> tuple[NDArray[np.int64], int, NDArray[np.int64], NDArray[np.int64]]:
    """The distinct items of a batch.

    Args:
        candidates, history: item rows, [C] and [H].

    Returns:
        The distinct item rows, candidates first, i64; how many of them are candidates; and the
        position of each candidate and of each item of the histories among them, i64 [C] and [H].
    """
    rows, inverse = np.unique(np.concatenate([candidates, history]), return_inverse=True)
    is_candidate = np.zeros(len(rows), dtype=bool)
    is_candidate[inverse[: len(candidates)]] = True
    order = np.argsort(~is_candidate, kind="stable")
    position = np.empty(len(rows), dtype=np.int64)
    position[order] = np.arange(len(rows))
    positions = position[inverse]
    distinct = int(is_candidate.sum())
    return (
        rows[order].astype(np.int64),
        distinct,
        positions[: len(candidates)],
        positions[len(candidates) :],
    )
