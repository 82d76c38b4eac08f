"""The anchored links and the profiles of histories without gradients, in C++.

The definitions are ``AnchoredLinks.forward`` in limerank.models.anchors and ``Profile.forward`` in
limerank.models.profile. For anchored links, pairs of a key and an event are grouped by a radix
sort, and each group becomes one link in one pass. A profile needs one weight of each event per
logit, since the mix of its means is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.kernels import _native


class LinkLayers(NamedTuple):
    """What turns a history into anchored links.

    Attributes:
        features: first row and number of rows of each anchored feature.
        items: whether items are anchored.
        item_tokens: the key of the item with the number 0.
        outcomes: table of outcomes, f32 [tokens, o].
        log_prior: logarithm of the events at which the evidence is one half, of values, items and,
            where there are some, neighbours, f32 [2 or 3].
        networks: of items, values and neighbours: weight of the first layer [h, statistics], its
            bias [h], and weight of the second layer [r, h], SiLU between them.
        scales: of items and of each feature, f32 [1 + features].
        neighbours: whether the last one of the features is that of neighbours, with keys below 0.
        fading: weight of an event relative to the next one.
        knots: of log2 of counts, of events since, of the age, and of events from the newest
            positive one.
        positive: the event token of a positive outcome; -1: links do not know which events are.
        per_day: what an age is multiplied by.
    """

    features: Sequence[tuple[int, int]]
    items: bool
    item_tokens: int
    outcomes: Tensor
    log_prior: Tensor
    networks: Sequence[tuple[Tensor, Tensor, Tensor]]
    scales: Tensor
    neighbours: bool
    fading: float
    knots: tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]
    positive: int
    per_day: float


def anchored_links(
    layers: LinkLayers,
    items: Tensor,
    tokens: Tensor,
    age: Tensor,
    lengths: Tensor,
    key_offsets: Tensor,
    keys: Tensor,
    shares: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets i64 [B + 1], keys i64 [V] and links f32 [V, r] of the anchored links of B histories.

    Args:
        layers: of the model, f32 on the processor.
        items: positions of the histories' items among those with keys, i64 [B, N].
        tokens: event tokens, i64 [B, N, A].
        age: of each event, f32 [B, N].
        lengths: events of each history, i64 [B].
        key_offsets: where each item's keys begin and, last, end, i64.
        keys: i64.
        shares: of each key, f32.
    """
    first, bias, second = ([_array(x) for x in of] for of in zip(*layers.networks, strict=True))
    of_counts, of_ago, of_ages, of_since = layers.knots
    offsets, of_links, links = _native.anchored_links(
        _array(items),
        _array(tokens),
        _array(age),
        _array(lengths),
        _array(key_offsets),
        _array(keys),
        _array(shares),
        np.array(layers.features, np.int64).reshape(-1, 2),
        layers.items,
        layers.item_tokens,
        _array(layers.outcomes),
        _array(layers.log_prior),
        first,
        bias,
        second,
        _array(layers.scales),
        layers.neighbours,
        layers.fading,
        np.array(of_counts, np.float32),
        np.array(of_ago, np.float32),
        np.array(of_ages, np.float32),
        np.array(of_since, np.float32),
        layers.positive,
        layers.per_day,
        torch.get_num_threads(),
    )
    return torch.from_numpy(offsets), torch.from_numpy(of_links), torch.from_numpy(links)


class ProfileLayers(NamedTuple):
    """What turns a history into a profile.

    Attributes:
        table: outcomes and then gates of event tokens, f32 [tokens, o + G].
        key: from item vectors to keys, f32 [S, d].
        mix: of the means of keys in each logit, f32 [K, F G].
        first, bias, second: of the network of outcomes, f32 [h, F o + knots], [h], [g, h].
        log_prior: logarithm of the events at which the evidence of outcomes, and of keys, is one
            half, f32 [2].
        fadings: weights of an event relative to the next one, F.
        knots: of log2 of the number of events.
    """

    table: Tensor
    key: Tensor
    mix: Tensor
    first: Tensor
    bias: Tensor
    second: Tensor
    log_prior: Tensor
    fadings: Sequence[float]
    knots: Sequence[float]


def profiles(
    layers: ProfileLayers, items: Tensor, tokens: Tensor, lengths: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """What the profiles of B histories add to first-layer sums, f32 [B, g], and their queries, f32
    [B, K, S].

    Args:
        layers: of the model, f32 on the processor.
        items: positions of the histories' items among the vectors, i64 [B, N].
        tokens: event tokens, i64 [B, N, A].
        lengths: events of each history, i64 [B].
        vectors: of items, f32 [U, d].
    """
    first, queries = _native.profiles(
        _array(items),
        _array(tokens),
        _array(lengths),
        _array(vectors),
        _array(layers.table),
        _array(layers.key),
        _array(layers.mix),
        _array(layers.first),
        _array(layers.bias),
        _array(layers.second),
        _array(layers.log_prior),
        np.array(layers.fadings, np.float32),
        np.array(layers.knots, np.float32),
        torch.get_num_threads(),
    )
    return torch.from_numpy(first), torch.from_numpy(queries)


def _array(values: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = values.detach().contiguous().numpy()
    return found
