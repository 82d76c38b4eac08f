"""From new events to a stored window or stream: the state is updated, not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limerank.data.batch import ItemKeys, Users
from limerank.data.canonical import DAY_MS
from limerank.data.event_log import EventLog
from limerank.data.events import Event
from limerank.data.history import latest
from limerank.data.packing import pack_list, unpack_list
from limerank.errors import FormatError
from limerank.index import Index
from limerank.kernels.prefix import Carry, carry_of, merged
from limerank.models.anchors import AnchoredLinks
from limerank.models.layers import split_heads
from limerank.models.profile import Means, Profile
from limerank.models.profile import merged as merged_means
from limerank.serving.state.keyed import CHUNK, KeyTable
from limerank.serving.state.stage import UserStage
from limerank.serving.state.stored import Seen, Stream, Window
from limerank.serving.state.user_features import EncodedUser

Mode = Literal["window", "streaming"]


class Updater:
    """Merges events into windows or streams.

    Args:
        mode: ``window`` or ``streaming``.
        stage: the user stage of the model.
    """

    def __init__(self, mode: Mode, stage: UserStage) -> None:
        self.mode, self.form, self.length = mode, stage.form, stage.length
        self._stage = stage
        self._ranker: Any = stage.trained.ranker
        self._device = next(stage.trained.ranker.parameters()).device

    def empty(self, user: int | str) -> Window | Stream:
        return Window(pack_list(user, []), 0, Seen()) if self.mode == "window" else Stream()

    def updated(
        self,
        user: int | str,
        stored: Window | Stream,
        events: Sequence[Event],
        encoded: EncodedUser,
        index: Index,
    ) -> Window | Stream | None:
        """A window or stream with more events; None where it has to be made of all events."""
        seen = stored.seen.add([event.item for event in events]) if events else stored.seen
        events = [event for event in events if self.form.retained(event)]
        if isinstance(stored, Stream):
            return self._streamed(replace(stored, seen=seen), events, encoded, index)
        if not events:
            return replace(stored, seen=seen)
        try:
            held = stored.open or unpack_list(stored.packed)[1]
        except FormatError:
            return None
        # Events that left a full window are older than those in it.
        every = sorted([*held, *events], key=_by_time)[-self.length :]
        return Window(pack_list(user, every), len(every), seen, tuple(every))

    def _streamed(
        self, stored: Stream, events: Sequence[Event], encoded: EncodedUser, index: Index
    ) -> Stream | None:
        if not events:
            return replace(stored, index_rows=len(index))
        events = sorted(events, key=_by_time)
        by_position = self._ranker.anchors is not None or self._ranker.profile is not None
        counted = not self.form.clock or by_position
        if counted and stored.events and _by_time(events[0]) < stored.newest:
            return None  # positions count here: one in between changes those of older ones
        found, carry, count, unknown = stored.newest, stored.carry, stored.events, stored.unknown
        keys, means, at = stored.keys, stored.means, 0
        rate_hl = self._ranker.reading.log_rate.exp()
        while at < len(events):
            some = events[at : at + CHUNK - count % CHUNK]
            at += len(some)
            log = self.form.log(some)
            rows = index.ids.find(log.ids)
            unknown += int((rows < 0)[log.columns["item"]].sum())
            items = self._stage.items_of(index, rows)
            users = self._users(log, encoded, items.keys)
            fresh = self._carry(users, log, items.vectors, count + len(some), encoded)
            if carry is not None:
                fresh = merged(carry, fresh, rate_hl)
            keys = self._with_keys(keys, users, log, count, index)
            means = self._with_means(means, users, items.vectors, count)
            carry, count = fresh, count + len(some)
            if count % CHUNK == 0:
                keys = keys.remembered(count)
        return Stream(
            carry,
            count,
            unknown,
            len(index),
            max(found, _by_time(events[-1])) if stored.events else _by_time(events[-1]),
            stored.seen,
            keys,
            means,
        )

    def _users(self, log: EventLog, encoded: EncodedUser, keys: ItemKeys | None) -> Users:
        """Some events as a history."""
        n = len(log.rows)
        zero, end = np.zeros(1, np.int64), np.array([n])
        history = latest(log.columns, self.form.encoder, zero, end, n, log.rows)
        return Users.from_history(
            history,
            items=history.items,
            features=encoded.features,
            context=torch.zeros((1, 0), dtype=torch.int64),
            keys=keys,
        ).to(self._device)

    @torch.inference_mode()
    def _with_keys(
        self, keys: KeyTable, users: Users, log: EventLog, count: int, index: Index
    ) -> KeyTable:
        """Statistics of keys with some more events; ``count``: the number of events before them."""
        links: AnchoredLinks | None = self._ranker.anchors
        if links is None:
            return keys
        times = np.asarray(log.columns["time"][log.rows], np.int64)
        return keys.updated(links.statistics(users), times, count, index, links.item_tokens)

    @torch.inference_mode()
    def _with_means(
        self, means: Means | None, users: Users, vectors: Tensor, count: int
    ) -> Means | None:
        """Means of the profile with some more events; ``count``: the number of events before
        them."""
        profile: Profile | None = self._ranker.profile
        if profile is None:
            return None
        fresh = profile.means(users, vectors)
        if means is None:
            return fresh
        older = Means(*(part.to(self._device) for part in means))
        return merged_means(older, torch.tensor([count]).to(self._device), fresh, users.lengths)

    @torch.inference_mode()
    def _carry(
        self, users: Users, log: EventLog, vectors: Tensor, count: int, encoded: EncodedUser
    ) -> Carry:
        """The carry of some events; ``count``: the number of events up to them."""
        kv_bnd = self._ranker.event_tower.through(self._ranker.reading.key_value, users, vectors)
        k_bhne, v_bhne = (
            split_heads(part, self._ranker.config.heads) for part in kv_bnd.chunk(2, -1)
        )
        newest = int(log.columns["time"][log.rows[-1]])
        at = newest / DAY_MS if self.form.clock else float(count)
        time = torch.tensor(at, dtype=torch.float64, device=self._device)
        rate_hl, queries = (
            self._ranker.reading.log_rate.exp(),
            self._stage.user_features.links(encoded)[1],
        )
        return carry_of(queries, k_bhne[0], v_bhne[0], rate_hl, users.age[0], time)


def _by_time(event: Event) -> tuple[int, bytes]:
    return event.time, event.id
