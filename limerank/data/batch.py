"""The inputs of a model: users, items and batches of requests.

Shape letters: B requests, N history positions, M candidates (both padded at the end), U distinct
items of the batch, A tokens per event, C context tokens, K tasks, T content tokens, F numbers (of
impressions: features).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.history import History

Self = TypeVar("Self", bound="_Movable")


class _Movable:
    def to(self: Self, device: Any) -> Self:
        """The same with every tensor on ``device``."""
        changes = {}
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, _Movable)):
                changes[field.name] = value.to(device)
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class Features(_Movable):
    """Content of n items or users.

    Attributes:
        tokens: rows of the content table, i64 [T], row after row.
        weights: one weight per token, f32 [T].
        offsets: where each row's tokens begin and, last, end, i64 [n + 1].
        numeric: normalised numbers, f32 [n, F].
    """

    tokens: Tensor
    weights: Tensor
    offsets: Tensor
    numeric: Tensor


@dataclass(frozen=True, kw_only=True)
class Items(_Movable):
    """n items: what the item tower reads.

    Attributes:
        ids: rows of the id table, i64 [n]; 0: an item that training has not seen.
        content: their features.
        statistics: collaborative statistics that training rows are given, f32 [n, S]; None: those
            of the model (limerank.training.collaborative).
        counted: counters that an index gives them, f32 [n, F]; None: those of the model
            (limerank.data.counters).
    """

    ids: Tensor
    content: Features
    statistics: Tensor | None = None
    counted: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ItemKeys(_Movable):
    """What n items have in common with the items of a history: the items themselves, and values of
    their features (limerank.models.anchors).

    Attributes:
        keys: i64 [T], item after item: rows of the content table, and ``item_tokens + i`` for the
            item with the number i; below 0 those of neighbours (limerank.models.neighbours).
        shares: the weight of each, f32 [T].
        offsets: where each item's keys begin and, last, end, i64 [n + 1].
        ids: the items' rows of the id table, i64 [n]; None: of items of an index, whose keys are
            complete.
        complete: whether the keys of neighbours, which models add by ``ids``, are there.
    """

    keys: Tensor
    shares: Tensor
    offsets: Tensor
    ids: Tensor | None = None
    complete: bool = False


@dataclass(frozen=True, kw_only=True)
class Users(_Movable):
    """B users (or requests): what the user side of a model reads.

    Attributes:
        items: positions of the history's items among the item vectors that go with these users,
            i64 [B, N]; 0 where padded.
        tokens: event tokens, i64 [B, N, A].
        age: days or events from each event to the newest one of the history, f32 [B, N].
        lengths: events of each history, i64 [B].
        features: the users' own features.
        context: what is known of the request, i64 [B, C].
        keys: of the items that ``items`` are positions of; None: for models without anchored links.
    """

    items: Tensor
    tokens: Tensor
    age: Tensor
    lengths: Tensor
    features: Features
    context: Tensor
    keys: ItemKeys | None = None

    @classmethod
    def from_history(
        cls,
        history: History,
        *,
        items: NDArray[Any],
        features: Features,
        context: Tensor,
        keys: ItemKeys | None = None,
    ) -> Users:
        """Users with these histories.

        Args:
            history: B histories.
            items: positions of their items among the item vectors, integers [B, N].
            features: the users' own features, B rows.
            context: i64 [B, C].
            keys: of the items that ``items`` are positions of.
        """
        return cls(
            items=torch.from_numpy(items.astype(np.int64, copy=False)),
            tokens=torch.from_numpy(history.tokens),
            age=torch.from_numpy(history.age),
            lengths=torch.from_numpy(history.lengths.astype(np.int64)),
            features=features,
            context=context,
            keys=keys,
        )


@dataclass(frozen=True, kw_only=True)
class Impressions(_Movable):
    """Impression features of candidates: values of one candidate in one request, such as its price.

    Attributes:
        tokens: rows of the impression table, i64 [..., F], one for each feature; 0: unknown.
        numbers: normalised numbers, f32 [..., F]; 0 where unknown, and for categories.
    """

    tokens: Tensor
    numbers: Tensor

    def where(self, known: Tensor) -> Impressions:
        """The same, unknown where ``known`` is false; it broadcasts to [..., F]."""
        return Impressions(tokens=self.tokens * known, numbers=self.numbers * known)

    def take(self, rows: Tensor) -> Impressions:
        """Some rows of the first dimension, by position i64 [n]."""
        return Impressions(tokens=self.tokens[rows], numbers=self.numbers[rows])


@dataclass(frozen=True, kw_only=True)
class Batch(_Movable):
    """B requests with their candidates and, in training, the outcomes.

    Attributes:
        items: the distinct items of the batch, candidates first.
        distinct: how many of the items are candidates.
        users: histories, features and contexts; their items are positions among ``items``.
        candidates: positions among ``items``, i64 [B, M]; 0 where padded.
        counts: candidates of each request, i64 [B].
        labels: f32 [B, M, K], 0 where padded; durations in seconds.
        shown: impression features [B, M, F], unknown where padded; None where there are none.
        shared: positions among ``items`` of further candidates, the same for all requests, i64 [S];
            None where there are none.
        counted: counters of the candidates at the time of the request, f32 [B, M, F]; None: those
            that the model has of them (limerank.data.counters).
    """

    items: Items
    distinct: int
    users: Users
    candidates: Tensor
    counts: Tensor
    labels: Tensor
    shown: Impressions | None = None
    shared: Tensor | None = None
    counted: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """Which candidate positions are not padding, bool [B, M]."""
        positions = torch.arange(self.candidates.shape[1], device=self.counts.device)
        return positions < self.counts[:, None]

    @property
    def impressions(self) -> int:
        """How many candidates are not padding."""
        return int(self.counts.sum())

    @property
    def unpadded(self) -> int:
        """Positions of histories and candidates, without padding."""
        return self.impressions + int(self.users.lengths.sum())

    @property
    def computed(self) -> int:
        """Positions of histories and candidates, padding included."""
        return self.candidates.numel() + self.users.items.numel()


@dataclass(frozen=True, kw_only=True)
class Sequences(_Movable):
    """B full histories, each of a user up to some time, and M impressions, each of which sees
    exactly the events before it.

    Attributes:
        items: the distinct items, candidates first.
        distinct: how many of the items are candidates.
        users: full histories and features; their contexts are empty, [B, 0].
        owner: the history that each impression belongs to, i64 [M], ascending.
        prefix: how many of its events each one sees, i64 [M], ascending within a history.
        context: what is known of each one's request, i64 [M, C].
        candidates: positions among ``items``, i64 [M].
        labels: f32 [M, K].
        shown: impression features [M, F]; None where there are none.
        shared: positions among ``items`` of further candidates, the same for all impressions,
            i64 [S]; None where there are none.
        counted: as in a batch, f32 [M, F].
    """

    items: Items
    distinct: int
    users: Users
    owner: Tensor
    prefix: Tensor
    context: Tensor
    candidates: Tensor
    labels: Tensor
    shown: Impressions | None = None
    shared: Tensor | None = None
    counted: Tensor | None = None

    def take(self, rows: Tensor) -> Sequences:
        """Some of the impressions, by position i64 [n], ascending."""
        return replace(
            self,
            owner=self.owner[rows],
            prefix=self.prefix[rows],
            context=self.context[rows],
            candidates=self.candidates[rows],
            labels=self.labels[rows],
            shown=None if self.shown is None else self.shown.take(rows),
            counted=None if self.counted is None else self.counted[rows],
        )

    @property
    def real(self) -> Tensor:
        """All impressions are, bool [M]."""
        return torch.ones_like(self.owner, dtype=torch.bool)

    @property
    def impressions(self) -> int:
        """How many there are."""
        return len(self.owner)

    @property
    def unpadded(self) -> int:
        """Positions of histories and impressions, without padding."""
        return self.impressions + int(self.users.lengths.sum())

    @property
    def computed(self) -> int:
        """Positions of histories and impressions, padding included."""
        return len(self.owner) + self.users.items.numel()


@dataclass(frozen=True)
class Interactions:
    """n events of some users in the training window, user by user, each user's by time.

    Attributes:
        users: rows of users, ascending, i64 [n].
        items: rows of the id table, i64 [n]; 0: an item that training has not seen.
        weights: of each event as a positive, f32 [n]; 0: it is none.
        counted: whether it is an interaction with the item, bool [n]; a mere impression is none.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    weights: NDArray[np.float32]
    counted: NDArray[np.bool_]


class TrainingEvents(Protocol):
    """What a model that is fitted by counting reads (limerank.data.interactions)."""

    @property
    def token(self) -> int | None:
        """The event token that marks an interaction in a history; None: every event is one."""

    def blocks(self) -> Iterator[Interactions]:
        """All events of the training window; each block has all events of its users."""
