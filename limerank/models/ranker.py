"""The contract of every ranker.

A ranker splits scoring so that each part is computed as rarely as possible::

    vectors = ranker.item_vectors(items)             # once per item: the item tower
    terms   = ranker.encode_items(vectors)           # once per item: its part of the scoring
    state   = ranker.encode_users(users, vectors)    # once per request: its part of the scoring
    logits  = ranker.score(state, terms, extra)      # once per candidate

and ``ranker(batch)`` is exactly that, for training. ``extra`` are additions to the first-layer
sums: what :meth:`Ranker.extra` gives of the request's anchored links (limerank.models.anchors), of
the candidates' impression features, and of their counters at the time of the request
(limerank.models.counters).

Shape letters: B requests, N history positions, M candidates, U items, d width, H heads, l links,
h hidden units, g first-layer outputs (2 h when gated, else h), K logits, F features or counters,
s numbers that extra adds to: g, or K in models without the shared head.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limerank.data.batch import (
    Batch,
    Impressions,
    ItemKeys,
    Items,
    Sequences,
    TrainingEvents,
    Users,
)
from limerank.errors import SpecError
from limerank.kernels import dispatch
from limerank.metrics import Affine
from limerank.models.anchors import Anchored, AnchoredLinks
from limerank.models.config import DataShape, HeadConfig, ModelConfig
from limerank.models.counters import CounterTower
from limerank.models.head import Head
from limerank.models.impressions import ImpressionTower
from limerank.models.neighbours import Neighbours, neighbours_of, with_neighbours
from limerank.models.noise import key_of
from limerank.models.towers import EventTower, ItemTower, UserTower


class Ranker(nn.Module, abc.ABC):
    """Base of all models. See the module's text for the contract.

    The class attributes state what a model can do beyond it.
    """

    config: ModelConfig

    folds: ClassVar[bool] = False
    """Whether :meth:`encode_items` gives exactly each item's weights of links and its head terms,
    so that :meth:`fold` has all that scoring needs of a request: the quantised index, its scorers
    and the use of links in evaluations are for these models."""
    streams: ClassVar[bool] = False
    """Whether what a user's events contribute is a running sum, of any number of events: training
    on exact histories (:meth:`sequence_logits`) and streaming states are for these models."""
    explains: ClassVar[bool] = False
    """Whether each item has weights of links that no user enters (:meth:`link_weights`), and links
    have weights of events (:meth:`read_weights`)."""
    pairwise: ClassVar[bool] = False
    """Whether :meth:`score` reads the history for each candidate: a candidate then costs far more
    than for models that read the history once."""
    native_user_stage: ClassVar[bool] = False
    """Whether limerank.kernels.personal has the user stage of this model in C++."""
    fitted: ClassVar[bool] = False
    """Whether the model is fitted by counting (:meth:`fit`) instead of trained by gradients."""
    late_context: ClassVar[bool] = False
    """Whether only the head terms of a state depend on the context of the request: a new request
    of the same user needs no more than ``state_of`` the ``history_state`` that it had."""

    def __init__(self, shape: DataShape, config: ModelConfig) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        self.user_stage = dispatch.Choice("user stage", "torch", "the definition")
        """What :meth:`encode_users` uses in evaluation mode; see :meth:`choose_user_stage`."""
        self.item_tower = ItemTower(shape, config)
        self.event_tower = EventTower(shape, config)
        self.user_tower = UserTower(shape, config)
        self.anchors: AnchoredLinks | None = None
        self.neighbour_table: Neighbours | None = None
        if most := neighbours_of(shape, config):
            self.neighbour_table = Neighbours(shape.item_ids, most)
        named = shape.anchored(config.anchors) or ((False, ()) if most else None)
        if named is not None:
            with torch.random.fork_rng(devices=[]):  # other weights start as without them
                self.anchors = AnchoredLinks(
                    shape.event_tokens,
                    shape.item_tokens,
                    *named,
                    config.anchor_width,
                    config.anchor_dropout,
                    shape.item_ids if most else 0,
                    shape.positive if config.since_positive else None,
                )
                self.from_anchors = nn.Linear(config.anchor_width, self.added, bias=False)
            nn.init.zeros_(self.from_anchors.weight)
        self.counters: CounterTower | None = None
        if config.counter_hours and shape.counted:
            with torch.random.fork_rng(devices=[]):
                self.counters = CounterTower(shape.item_ids, self.added, config.counter_dropout)
        self.impressions: ImpressionTower | None = None
        if shape.impression_tokens:
            with torch.random.fork_rng(devices=[]):
                self.impressions = ImpressionTower(shape, config, self.added)

    @property
    def added(self) -> int:
        """Numbers that ``extra`` adds to, s."""
        if isinstance(self.config, HeadConfig):
            return self.config.hidden * (2 if self.config.gated else 1)
        return self.shape.outputs

    def adding_layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers, without bias, whose sum ``extra`` is."""
        layers: list[nn.Linear] = [] if self.anchors is None else [self.from_anchors]
        if self.impressions is not None:
            layers += [self.impressions.from_tokens, self.impressions.from_numbers]
        if self.counters is not None:
            layers += [self.counters.from_buckets, self.counters.from_numbers]
        return tuple(layers)

    def item_vectors(self, items: Items) -> Tensor:
        """Item tower: t, [U, d]."""
        vectors: Tensor = self.item_tower(items)
        return vectors

    def complete(self, keys: ItemKeys) -> ItemKeys:
        """Keys of items, with those of their neighbours where the model has some."""
        if self.neighbour_table is None or keys.ids is None or keys.complete:
            return keys
        return with_neighbours(keys, self.neighbour_table.lists)

    def new_head(self) -> Head:
        """The head whose form all models share.

        Raises:
            SpecError: the configuration has no settings of a head.
        """
        if not isinstance(self.config, HeadConfig):
            raise SpecError(
                f"{type(self.config).__name__} has no settings of the shared head; derive it from "
                "limerank.models.config.HeadConfig"
            )
        return Head(self.shape, self.config)

    @property
    def link_shape(self) -> tuple[int, int] | None:
        """Heads H and links l; None for models without links."""
        return None

    @property
    def keys(self) -> int:
        """Numbers of an item's key for the profiles of users, S; 0 for models without profiles."""
        return 0

    def start_at(self, ages_n: Tensor) -> None:
        """Set starting values that depend on how old the events of the log are. Called once, before
        training; by default nothing depends on it.

        Args:
            ages_n: ages of events of the training split, f32 [n], in the unit of ``Users.age``.
        """

    def choose_user_stage(self, wanted: str | None = None) -> dispatch.Choice:
        """Choose the implementation of the user stage in evaluation mode; in training mode it is
        always torch.

        Args:
            wanted: "native", "torch" or "auto"; when not given, that of the environment variable
                ``LIMERANK_USER_STAGE``, else "auto".

        Raises:
            SpecError: there is no such implementation, or it cannot compute this model.
        """
        weight = next(self.parameters())
        self.user_stage = dispatch.user_stage(
            wanted,
            has_native=self.native_user_stage,
            device=weight.device,
            dtype=weight.dtype,
        )
        return self.user_stage

    def begin_step(self, seed: int, step: int) -> None:
        """Make the ids that are hidden depend on the seed of a training and its step, and on the
        ids alone (limerank.models.noise); without it they are drawn from torch's generator."""
        self.item_tower.step_key = key_of(seed, step)

    def fit(self, events: TrainingEvents, quiet: bool = True) -> None:
        """Set all weights by counting the events of the training window, with progress unless
        ``quiet``; only where the model is :attr:`fitted`."""
        raise NotImplementedError(f"{self.config.model} is trained, not fitted")

    def last_layers(self) -> tuple[nn.Linear, ...]:
        """The layers whose weights :meth:`calibrate` changes; by default the head's last one.

        Raises:
            NotImplementedError: the model does not end in the shared head.
        """
        head = getattr(self, "head", None)
        if not isinstance(head, Head):
            raise NotImplementedError(f"{self.config.model} has no last layer to calibrate")
        return (head.out,)

    @torch.no_grad()
    def calibrate(self, scale_k: Tensor, shift_k: Tensor) -> None:
        """Change the last layers so that every logit z_k becomes ``scale_k z_k + shift_k``.

        A model that does not end in the shared head overrides this method and
        :meth:`last_layers`.

        Args:
            scale_k: f32 [K], above 0: the order of candidates does not change.
            shift_k: f32 [K].
        """
        (out,) = self.last_layers()
        out.weight.mul_(scale_k[:, None])
        out.bias.mul_(scale_k).add_(shift_k)

    @contextmanager
    def calibrated(self, maps: Sequence[Affine]) -> Iterator[None]:
        """Within it, logits are those of :meth:`calibrate`; after it, the weights are bit for bit
        those of before.

        Args:
            maps: of each of the K logits.
        """
        weights = [weight for layer in self.last_layers() for weight in layer.parameters()]
        before = [weight.detach().clone() for weight in weights]
        scale_k, shift_k = weights[0].new_tensor(maps).T
        try:
            self.calibrate(scale_k, shift_k)
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, before, strict=True):
                    weight.copy_(value)

    def scratch(self, state: Any) -> int:
        """Numbers that :meth:`score` allocates per request and candidate, about; callers choose the
        size of their pieces by it."""
        hidden = self.config.hidden if isinstance(self.config, HeadConfig) else 0
        return 2 * hidden + self.shape.outputs

    @abc.abstractmethod
    def encode_items(self, vectors_ud: Tensor) -> Any:
        """All that scoring needs of each item: a named tuple of tensors [U, x]."""

    def encode_users(self, users: Users, vectors_ud: Tensor, only: Tensor | None = None) -> Any:
        """All that scoring needs of requests: a named tuple of tensors [B, ...] and anchored links.

        Args:
            users: the requests; ``users.items`` are rows of ``vectors_ud``.
            vectors_ud: item vectors.
            only: positions of all items that will be scored, i64 [B, M]; any where not given.
        """
        state = self.user_state(users, vectors_ud)
        if self.anchors is None:
            return state
        return state._replace(anchored=self.anchored_links(users, only))

    def anchored_links(self, users: Users, only: Tensor | None = None) -> Anchored | None:
        """Anchored links of requests (see :meth:`encode_users`); None for a model without them."""
        if self.anchors is None:
            return None
        native = self.user_stage.used == "native" and not self.training
        return self.anchors(self.completed(users), only, native=native)

    def completed(self, users: Users) -> Users:
        """Requests whose keys are complete."""
        return users if users.keys is None else replace(users, keys=self.complete(users.keys))

    @abc.abstractmethod
    def user_state(self, users: Users, vectors_ud: Tensor) -> Any:
        """The part of :meth:`encode_users` that is the model's own: a named tuple of tensors
        [B, ...] whose last field, ``anchored``, is None."""

    @abc.abstractmethod
    def score(self, state: Any, terms: Any, extra: Tensor | None = None) -> Tensor:
        """Logits [B, M, K] of M candidates per request.

        Args:
            state: of :meth:`encode_users`.
            terms: of :meth:`encode_items`; either [M, ...], the same candidates for everyone, or
                [B, M, ...] by :func:`gather`.
            extra: additions to the first-layer sums (of models without the shared head: to the
                logits), f32 [B, M, s].
        """

    def score_shared(
        self, state: Any, terms: Any, keys: ItemKeys | None, candidates: Tensor
    ) -> Tensor:
        """Logits [B, M, K] of M candidates that all requests share, anchored links included.

        Args:
            state: of :meth:`encode_users`.
            terms: of :meth:`encode_items`, of all items [U, ...].
            keys: of these items.
            candidates: positions among them, i64 [M].
        """
        own = type(terms)(*(part[candidates] for part in terms))
        return self.score(state, own, self.extra(state, keys, candidates))

    def shared_scratch(self, state: Any) -> int:
        """Numbers that :meth:`score_shared` holds per request and candidate, about."""
        return self.scratch(state)

    def extra(
        self,
        state: Any,
        keys: ItemKeys | None,
        candidates: Tensor,
        shown: Impressions | None = None,
        counted: Tensor | None = None,
    ) -> Tensor | None:
        """What a request's anchored links, impression features and counters add for its candidates,
        [B, M, s] (or [1, M, s], the same for everyone); None for nothing.

        Args:
            state: of :meth:`encode_users`.
            keys: of items.
            candidates: positions of the candidates among these items, i64 [B, M]; or [M], the same
                for everyone.
            shown: impression features of the candidates, [B, M, F]; None: unknown.
            counted: counters of the candidates, f32 [B, M, F] or [M, F]; None: those that the model
                has of the items, by the ids of ``keys``.
        """
        anchored: Anchored | None = state.anchored
        added: Tensor | None = None
        if self.anchors is not None and anchored is not None and keys is not None:
            of = self.anchors.gathered(anchored, self.complete(keys), candidates)
            added = self.from_anchors(of)
        if self.impressions is not None and shown is not None:
            added = plus(self.impressions(shown), added)
        if self.counters is not None:
            if counted is None:
                if keys is None or keys.ids is None:
                    raise RuntimeError("a model with counters needs those of the candidates")
                counted = self.counters.values[keys.ids[candidates]]
            of_items = self.counters(counted)
            added = plus(of_items if of_items.dim() == 3 else of_items[None], added)
        return added

    def counted_of(self, batch: Batch | Sequences) -> Tensor | None:
        """Counters of the candidates of a batch, f32 [..., F]: its own, or those that the model has
        of the items; None for a model without counters."""
        if self.counters is None or batch.counted is not None:
            return batch.counted
        return self.counters.values[batch.items.ids[batch.candidates]]

    def added_by(self, shown: Impressions | None) -> Tensor | None:
        """What impression features [M, F] of candidates add for every request, [1, M, s]."""
        if self.impressions is None or shown is None:
            return None
        added: Tensor = self.impressions(shown.to(self.impressions.table.weight.device))
        return added[None]

    def fold(self, state: Any) -> Tensor:
        """Links folded through the head's first layer, [B, H l, g]; only where the model
        :attr:`folds`."""
        raise NotImplementedError(f"{self.config.model} does not fold")

    def link_weights(self, terms: Any) -> Tensor:
        """Each item's weights of links, [..., H, l]; only where the model :attr:`explains`."""
        raise NotImplementedError(f"{self.config.model} has no links")

    def read_weights(self, users: Users, vectors_ud: Tensor) -> Tensor:
        """Weights with which links read events, of either sign, [B, H, l, N], 0 where padded; only
        where the model :attr:`explains`. For explanations: scoring never asks for it."""
        raise NotImplementedError(f"{self.config.model} has no links")

    def sequence_logits(self, batch: Sequences) -> Tensor:
        """Logits [M, K] of impressions that each see exactly the events before them; only where the
        model :attr:`streams`."""
        raise NotImplementedError(f"{self.config.model} has no exact histories")

    def sequence_states(self, batch: Sequences, vectors_ud: Tensor) -> Any:
        """What :meth:`encode_users` gives, of M impressions that each see exactly the events before
        them; only where the model :attr:`streams`.

        Args:
            batch: the impressions.
            vectors_ud: vectors of its items.
        """
        raise NotImplementedError(f"{self.config.model} has no exact histories")

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, M, K] of a batch's candidates; undefined where padded."""
        vectors_ud = self.item_vectors(batch.items)
        terms = gather(self.encode_items(vectors_ud[: batch.distinct]), batch.candidates)
        users = self.completed(batch.users)
        state = self.encode_users(users, vectors_ud, batch.candidates)
        counted = self.counted_of(batch)
        extra = self.extra(state, users.keys, batch.candidates, batch.shown, counted)
        return self.score(state, terms, extra)


def at_once(most: int, batch: int, device: torch.device) -> int:
    """How many events or candidates of each of ``batch`` requests to compute at once, if ``most``
    of all requests together fit into a processor's cache; a GPU needs more to be busy."""
    return max(most * (16 if device.type == "cuda" else 1) // max(batch, 1), 32)


def pieces(
    terms: Any, size: int, extra: Tensor | None = None
) -> Iterator[tuple[Any, Tensor | None]]:
    """Item terms and what is added to them, cut along the candidates, ``size`` at a time."""
    cut = [part.split(size, -2) for part in terms]
    added = [None] * len(cut[0]) if extra is None else extra.split(size, -2)
    for parts, own in zip(zip(*cut, strict=True), added, strict=True):
        yield type(terms)(*parts), own


def part_of(state: Any, requests: slice) -> Any:
    """The state of some requests."""
    return type(state)(*(None if part is None else part[requests] for part in state))


def plus(sums: Tensor, extra: Tensor | None) -> Tensor:
    """``sums + extra``, where there is any."""
    return sums if extra is None else sums + extra


def gather(terms: Any, index: Tensor) -> Any:
    """Rows of item terms (a named tuple of [U, x]) by position: [B, M] -> [B, M, x]."""
    return type(terms)(*(F.embedding(index, part) for part in terms))
