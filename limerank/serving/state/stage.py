"""From a stored window or stream to the state that a scorer takes: the user stage of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Features, Items
from limerank.data.event_log import EventForm, EventLog
from limerank.data.features import FeatureTable
from limerank.data.packing import unpack_list
from limerank.index import Index
from limerank.models.anchors import Anchored, AnchoredLinks
from limerank.models.links import HistoryState
from limerank.models.profile import Means
from limerank.ranking.explain import Past
from limerank.ranking.request import HistoryItems, index_keys, item_vectors, past_of
from limerank.runs.model import Trained
from limerank.serving.state.entries import AskedState, Entry
from limerank.serving.state.stored import Stream, Window
from limerank.serving.state.user_features import EncodedUser, UserFeatureCache


class UserStage:
    """Computes user states with one model.

    Args:
        trained: the model.
        form: the event form of its run.
        length: events of a history, at most.
        user_features: the encodings of users' features.
    """

    def __init__(
        self, trained: Trained, form: EventForm, length: int, user_features: UserFeatureCache
    ) -> None:
        self.trained, self.form, self.length = trained, form, length
        self.user_features = user_features
        self.computed = 0
        """How often the user stage was computed."""
        self._ranker: Any = trained.ranker
        self._device = next(trained.ranker.parameters()).device

    # From an entry to a state

    def state(self, entry: Entry, index: Index, now: int, context: Mapping[str, Any]) -> Any:
        """The state of a user for a request; the previous request's where that is the same."""
        asked = entry.asked
        if asked is not None and asked.since <= now < asked.until and asked.context == context:
            return asked.state
        return self.computed_state(entry, index, now, context)

    @torch.inference_mode()
    def computed_state(
        self, entry: Entry, index: Index, now: int, context: Mapping[str, Any]
    ) -> Any:
        """The same, computed from the entry's user stage; a missing stage is computed first."""
        if not self._ranker.late_context:
            past = self._past_of(entry, index, now, context)
            key, stage = tuple(past.users.context[0].tolist()), entry.stage
            if stage is None or stage[0] != key:
                stage = key, self._ranker.encode_users(past.users, past.vectors)
                self.computed += 1
                entry.stage = stage
            return stage[1]
        stage = entry.stage
        if stage is None:
            if isinstance(entry.stored, Stream):
                history, newest = self._streamed(entry, index), entry.stored.newest[0]
            else:
                past = self._past_of(entry, index, now, context)
                history = self._ranker.history_state(past.users, past.vectors)
                newest = int(past.times[-1]) if len(past.times) else 0
            stage = newest, history
            self.computed += 1
            entry.stage = stage
        (newest, history), count = stage, entry.stored.events
        at = max(now, newest) if count else now
        tokens = self._context(newest, count, at, context)
        c_bd = self._ranker.user_tower.contexts(tokens.to(self._device))
        state = self._ranker.state_of(history, entry.encoded.u, c_bd)
        until = self.form.encoder.context_until(at, newest, count)
        # A copy, since the caller may change its mapping.
        entry.asked = AskedState(dict(context), now, until, state)
        return state

    def _past_of(self, entry: Entry, index: Index, now: int, context: Mapping[str, Any]) -> Past:
        assert isinstance(entry.stored, Window)
        events = entry.stored.open or unpack_list(entry.stored.packed)[1]
        entry.stored = replace(entry.stored, open=None)
        log = self.form.log(events)
        return self.past(log, entry.encoded, now, context, index)

    def _streamed(self, entry: Entry, index: Index) -> HistoryState:
        """What a streaming state gives."""
        stored = entry.stored
        assert isinstance(stored, Stream)
        profile, count = None, torch.tensor([stored.events], device=self._device)
        if self._ranker.profile is not None:
            means = stored.means or self._ranker.profile.no_means(1)
            profile = self._ranker.profile.of_means(
                Means(*(x.to(self._device) for x in means)), count
            )
        links = self._read(stored, entry.encoded)
        return HistoryState(links, profile, self._anchored(stored, index))

    def _read(self, stored: Stream, encoded: EncodedUser) -> Tensor:
        """Personalised links [1, l, d] of a streaming state."""
        links_bld, queries_hle = self.user_features.links(encoded)
        read_hle = torch.zeros_like(queries_hle) if stored.carry is None else stored.carry.mean
        count = torch.tensor([stored.events], device=self._device)
        read_bhle = read_hle.to(self._device)[None]
        personal: Tensor = self._ranker.norm(
            self._ranker.reading.absorb(links_bld, read_bhle, count)
        )
        return personal

    def _anchored(self, stored: Stream, index: Index) -> Anchored | None:
        """Anchored links of a streaming state."""
        links: AnchoredLinks | None = self._ranker.anchors
        if links is None:
            return None
        statistics = stored.keys.statistics(
            stored.events,
            stored.newest[0],
            index,
            links.item_tokens,
            clock=self.form.clock,
            device=self._device,
        )
        return links.links_of(statistics)

    def _context(self, newest: int, count: int, now: int, context: Mapping[str, Any]) -> Tensor:
        tokens = self.form.encoder.context(
            self.form.context(context), np.array([now]), np.array([newest]), np.array([count])
        )
        return torch.from_numpy(tokens)

    def past(
        self,
        log: EventLog,
        encoded: EncodedUser,
        now: int,
        context: Mapping[str, Any],
        index: Index,
    ) -> Past:
        """A request with these events as its history. Its time is never before its newest event,
        since clocks of clients and of this machine differ."""
        times = log.columns["time"][log.rows]
        now = max(now, int(times[-1])) if len(times) else now
        return past_of(
            log,
            self.form,
            self.length,
            lambda count: _times(encoded.features, count),
            lambda ids, codes: self.items_of(index, index.ids.find(ids[codes])),
            now,
            context,
        )

    def items_of(self, index: Index, rows: NDArray[np.int64]) -> HistoryItems:
        """Items by index row, i64 [U]; -1: one that the index lacks, of which nothing is known."""
        vectors, lacking = item_vectors(index, rows, self._device), rows < 0
        if lacking.any():
            vectors[torch.from_numpy(lacking)] = self._blank
        keys = None if self._ranker.anchors is None else index_keys(index, rows)
        return HistoryItems(vectors, keys)

    @cached_property
    def _blank(self) -> Tensor:
        """The vector of an item without an id and features, [1, d]."""
        content = FeatureTable.unknown(self.trained.manifest["encoding"]["items"])
        items = Items(
            ids=torch.zeros(1, dtype=torch.int64), content=content.take(np.zeros(1, np.int64))
        )
        with torch.inference_mode():
            vector: Tensor = self._ranker.item_vectors(items.to(self._device))
        return vector


def _times(features: Features, count: int) -> Features:
    """One row of features, repeated."""
    size = int(features.offsets[-1])
    return Features(
        tokens=features.tokens.repeat(count),
        weights=features.weights.repeat(count),
        offsets=torch.arange(count + 1, device=features.offsets.device) * size,
        numeric=features.numeric.expand(count, -1),
    )
