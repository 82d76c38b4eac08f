"""Anchored links over an index: the keys of its items, and links in small integers.

In integers, every set of anchored values that a request's history touches gets r codes, as does
every item in it; those of an item of the index are the sum of its sets' and its own. With F
anchored features::

    z_s = sum over the tokens v of the set s of share(s, v) z(v)
    zs  = (sum over features of max over their sets of |z_s| + max over items of |z_i|)
          / (127 - (F + 1) / 2)                                       # per number, of r
    k_s = round(z_s / zs);  k_i = round(z_i / zs)                     # any sum is in -127 .. 127

Shape letters: B requests, n items, P touched sets and items of all requests, r numbers of an
anchored link, F anchored features, S sets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import ItemKeys
from limerank.errors import SpecError
from limerank.index import Index
from limerank.index.anchors import Anchors, Keys
from limerank.models.anchors import Anchored, matches
from limerank.ranking.scorer.contract import Rows

MOST_FEATURES = 100
"""Of which the quantised scorers add codes."""


def item_keys(index: Index, rows: Rows | slice) -> ItemKeys | None:
    """Keys of items of an index, whose numbers are index rows; those of row -1, an item that the
    index lacks, are none. None where the model has no anchored links."""
    return None if index.anchors is None else _tensors(index.anchors.keys(rows))


def set_keys(anchors: Anchors, rows: Rows | slice) -> ItemKeys:
    """Sets of items of an index and, last, S + row: what :class:`CodedLinks` has codes of."""
    return _tensors(anchors.codes_of(rows))


def _tensors(keys: Keys) -> ItemKeys:
    return ItemKeys(
        keys=torch.from_numpy(keys.keys),
        shares=torch.from_numpy(keys.shares),
        offsets=torch.from_numpy(keys.offsets),
    )


class Postings(NamedTuple):
    """The sets that each token is in: ``keys`` i64, ascending, ``sets`` i32 and ``shares`` f32, all
    [T]; and ``kinds``, the number of each set's feature, i32 [S]."""

    keys: NDArray[np.int64]
    sets: NDArray[np.int32]
    shares: NDArray[np.float32]
    kinds: NDArray[np.int32]

    @classmethod
    def of(cls, anchors: Anchors) -> Postings:
        if len(anchors.features) > MOST_FEATURES:
            raise SpecError(
                f"{len(anchors.features)} features are anchored, the quantised scorers add "
                f"{MOST_FEATURES} at most: anchor fewer (anchors), or use the model scorer"
            )
        keys, shares, offsets = anchors.of_sets(np.arange(anchors.sets))
        sets = np.repeat(np.arange(anchors.sets, dtype=np.int32), np.diff(offsets))
        kinds = np.zeros(anchors.sets, np.int32)
        for number, (start, size) in enumerate(anchors.features):
            kinds[sets[(keys > start) & (keys < start + size)]] = number
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], sets[order], shares[order], kinds)


class CodedLinks(NamedTuple):
    """Anchored links in integers.

    Attributes:
        links: their codes as floats, [P, r], by set s, or S + row of an item.
        step: zs, f32 [B, r].
    """

    links: Anchored
    step: Tensor

    @classmethod
    def of(cls, anchored: Anchored, anchors: Anchors, postings: Postings) -> CodedLinks:
        """Of the anchored links of B requests."""
        batch, width = len(anchored), anchored.links.shape[1]
        count, kinds = len(postings.keys), len(anchors.features) + 1
        request, at, found = matches(
            anchored,
            ItemKeys(
                keys=torch.from_numpy(postings.keys),
                shares=torch.from_numpy(postings.shares),
                offsets=torch.arange(count + 1),
            ),
        )
        most = anchors.sets + len(anchors.codes)
        pair, of = torch.unique(
            request * most + torch.from_numpy(postings.sets)[at], return_inverse=True
        )
        z = found.new_zeros(len(pair), width).index_add(0, of, found)
        row = anchored.keys - anchors.item_tokens
        is_item = (row >= 0) & (row < len(anchors.codes))
        owner = torch.repeat_interleave(anchored.offsets.diff())[is_item]
        pair = torch.cat([pair, owner * most + anchors.sets + row[is_item]])
        z = torch.cat([z, anchored.links[is_item]])
        pair, order = pair.sort()
        z, request, key = z[order], pair.div(most, rounding_mode="floor"), pair % most
        of_sets = torch.from_numpy(postings.kinds)[key.clamp(max=anchors.sets - 1)].long()
        kind = torch.where(key < anchors.sets, of_sets, kinds - 1)
        largest = z.new_zeros(batch * kinds, width)
        of_kind = (request * kinds + kind)[:, None].expand(-1, width)
        largest = largest.scatter_reduce(0, of_kind, z.abs(), "amax")
        step = largest.view(batch, kinds, width).sum(1) / (127 - 0.5 * kinds)
        codes = (z / torch.where(step > 0, step, 1.0)[request]).round()
        per = torch.bincount(request, minlength=batch)
        offsets = torch.cat([per.new_zeros(1), per.cumsum(0)])
        return cls(Anchored(offsets, key, codes), step)
