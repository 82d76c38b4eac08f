"""User states from live events: the scorer's input for a user, computed at most once per change.

Two modes differ in the events that the model sees:

- ``window``, any model: the latest N events, as in evaluation. They are stored as one packed list;
  a new event computes the user stage from that list again.
- ``streaming``, LIME-MHA: all events, however many. The links' attention over them is stored as a
  :class:`~limerank.kernels.prefix.Carry` of constant size, into which an event is merged in
  O(l d + d^2): no event is read twice. Training with ``exact = true`` sees the same. For a user
  with at most N events both modes give the same predictions.

A state is a function of the stored events, the user's features and the model, and not of the order
of arrival. It carries a *fingerprint* of the model, index and features that it was computed with;
a state with another fingerprint is computed again from the events.
"""

from __future__ import annotations

import os
import threading
import time as clock
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

import torch

from limerank.data.canonical import external_id
from limerank.data.event_log import EventForm
from limerank.data.events import Event
from limerank.errors import FingerprintError, SpecError, check_choice
from limerank.index import Index
from limerank.ranking.explain import Past
from limerank.ranking.request import seen_rows
from limerank.runs.model import Trained, load_trained
from limerank.serving.state import syncing
from limerank.serving.state.entries import Entry, EntryCache, Mark, MarkedIndex, catalogue_of
from limerank.serving.state.stage import UserStage
from limerank.serving.state.stored import Rows
from limerank.serving.state.syncing import EntrySync
from limerank.serving.state.updating import Mode, Updater
from limerank.serving.state.user_features import UserFeatureCache
from limerank.serving.stores import EventStore, Version
from limerank.storage.arguments import READ, with_uris

STATE_BYTES = 256 << 20
"""Bytes of the states in memory, unless another bound is given."""
STRIPES = 64
"""Locks of users; some users share one."""


class Ready(NamedTuple):
    """A user's state for one request.

    Attributes:
        state: of one request, as the ranker's ``encode_users`` returns it.
        seen: index rows of the items that the user has seen, ascending, i64.
        known: whether the store has the user.
        events: events in the state.
        version: of the user; None for an unknown user.
    """

    state: Any
    seen: Rows
    known: bool
    events: int
    version: Version | None


class UserStates:
    """The states of all users of an event store, for one model and index.

    Safe to use from several threads; several processes may share the store. An event appended
    anywhere is in the next state: each call asks the store for the user's version.

    Args:
        trained: the model, or its run folder or URI.
        index: the index with the item vectors of histories, or its folder or URI;
            :meth:`use_index` replaces it by a newer version.
        store: the event store.
        mode: ``window`` or ``streaming``; see the module's docstring.
        length: window: events of a history, at most; the run's own when not given.
        memory: bytes of states in memory, about; the least recently used ones leave.
        keep: whether states are also written to the store, so that another process, or this one
            after a restart, need not compute them again.

    Raises:
        SpecError: the model cannot stream.
        FingerprintError: the index was built by another model.
    """

    @with_uris(trained=READ, index=READ)
    def __init__(
        self,
        trained: Trained | str | os.PathLike[str],
        index: Index | str | os.PathLike[str],
        store: EventStore,
        *,
        mode: Mode = "window",
        length: int | None = None,
        memory: int = STATE_BYTES,
        keep: bool = False,
    ) -> None:
        if isinstance(trained, (str, os.PathLike)):
            trained = load_trained(trained)
        if isinstance(index, (str, os.PathLike)):
            index = Index.open(index, fingerprint=trained.fingerprint, verify=None)
        ranker = trained.ranker
        check_choice("mode", mode, get_args(Mode))
        if mode == "streaming" and not ranker.streams:
            raise SpecError(
                f"{ranker.config.model} has no streaming state (lime-mha has one): serve it with "
                "the mode window"
            )
        if length is not None and length < 1:
            raise SpecError(f"the length of histories is {length}, expected 1 or more")
        self.trained, self.store, self.mode = trained, store, mode
        self.form = EventForm(trained.manifest, trained.path)
        self.length = trained.history if length is None else length
        self._ranker: Any = ranker
        self._device = next(ranker.parameters()).device
        self.user_features = UserFeatureCache(trained)
        self._stage = UserStage(trained, self.form, self.length, self.user_features)
        self._updater = Updater(mode, self._stage)
        self._cache = EntryCache(memory)
        self._sync = EntrySync(
            trained, store, self._updater, self.user_features, self._cache, keep=keep
        )
        self._stripes = [threading.Lock() for _ in range(STRIPES)]
        self.use_index(index)

    def use_index(self, index: Index) -> None:
        """Use another version of the index, or another index of the same model.

        States that depend on item vectors which differ are computed again when they are next used.
        """
        self.use(self.marked(index))

    def use(self, marked: MarkedIndex) -> None:
        """The same for a version from :meth:`marked`."""
        self._catalogue = marked

    def marked(self, index: Index) -> MarkedIndex:
        """A version of the index for requests to name. Requests of several versions may run at the
        same time, each with states of the version that it scores."""
        if index.fingerprint != self.trained.fingerprint:
            raise FingerprintError(
                f"{index.path} was built by the model {index.fingerprint}, not by "
                f"{self.trained.fingerprint}; build an index with this run"
            )
        return MarkedIndex(index, Mark(catalogue_of(index), index.base))

    @property
    def index(self) -> Index:
        """The index in use."""
        return self._catalogue.index

    @property
    def made(self) -> dict[str, int]:
        """How often user stages were computed, states rebuilt from all events, and updated."""
        return {
            "stages": self._stage.computed,
            "rebuilds": self._sync.rebuilds,
            "updates": self._sync.updates,
        }

    # States of requests

    def check(self, event: Event) -> None:
        """Refuse an event that the run cannot read, by UnknownError or DataError. An item that the
        index lacks is not an error: it counts as an item without features."""
        self.form.check(event)

    def ready(
        self,
        user: Any,
        *,
        now: int | None = None,
        context: Mapping[str, Any] | None = None,
        index: MarkedIndex | None = None,
    ) -> Ready:
        """The state of a user; of an unknown user, the state without events and features.

        Args:
            user: external id; None for an unknown user.
            now: when the request is made; only events before it count. When not given, all events
                count, and the time is the clock's or that of the newest event, whichever is later,
                since a client's clock may be ahead of this one.
            context: context feature -> value; unknown where not given.
            index: the version of the index, see :meth:`marked`; the one in use when not given.

        Raises:
            UnknownError: a context feature is unknown.
            DataError: the time is years off the log.
            StoreError, FormatError: from the store.
        """
        user = None if user is None else external_id("user", user)
        catalogue = index or self._catalogue
        with self._stripe(user):
            entry = self._sync.entry(user, catalogue)
            if now is None or self._is_before(user, entry, now):
                return self._ready(user, entry, catalogue, now, context)
        return self._as_of(user, catalogue, self._now(now), context or {})

    def ready_at_once(
        self,
        user: Any,
        *,
        now: int | None = None,
        context: Mapping[str, Any] | None = None,
        index: MarkedIndex | None = None,
    ) -> Ready | None:
        """:meth:`ready` where that takes about a millisecond and waits for no other thread; None
        otherwise. For an event loop, with a store that answers at once.

        The user has to be in memory (or unknown), with few changes since, a short history and few
        seen items; and no other thread may be working on the user's state.
        """
        user = None if user is None else external_id("user", user)
        lock = self._stripe(user)
        if not lock.acquire(blocking=False):
            return None
        try:
            catalogue = index or self._catalogue
            entry = self._sync.entry_at_once(user, catalogue)
            if entry is None or len(entry.seen) > syncing.BRIEF_SEEN:
                return None
            if now is not None and not self._is_before(user, entry, now):
                return None
            if entry.stage is None and entry.stored.events > syncing.BRIEF_HISTORY:
                return None
            return self._ready(user, entry, catalogue, now, context)
        finally:
            lock.release()

    def _ready(
        self,
        user: int | str | None,
        entry: Entry,
        catalogue: MarkedIndex,
        now: int | None,
        context: Mapping[str, Any] | None,
    ) -> Ready:
        state = self._stage.state(entry, catalogue.index, self._now(now), context or {})
        self._cache.put(user, entry)
        version = entry.version
        return Ready(state, entry.seen, version is not None, entry.stored.events, version)

    def _is_before(self, user: int | str | None, entry: Entry, now: int) -> bool:
        """Whether all events of an entry are before a time. It asks the store for the newest event,
        since an entry lacks events that histories leave out; the version shows that no event was
        added between the two reads."""
        if user is None:
            return True
        newest = self.store.latest(user, 1)
        if newest and newest[0].time >= now:
            return False
        return self.store.version(user) == entry.version

    def _as_of(
        self,
        user: int | str | None,
        catalogue: MarkedIndex,
        now: int,
        context: Mapping[str, Any],
    ) -> Ready:
        """A user's state at a past time, from the events before it. All events are read from the
        store, and the state is not cached."""
        held = None if user is None else self.store.held(user)
        events = [] if held is None else [event for event in held.events if event.time < now]
        encoded = self.user_features.of({} if held is None else held.features)
        made = self._updater.updated(
            user or 0, self._updater.empty(user or 0), events, encoded, catalogue.index
        )
        assert made is not None
        seen = made.seen.rows(catalogue.index)
        version = None if held is None else held.version
        entry = Entry(version, encoded, made, catalogue.mark, seen, None)
        state = self._stage.computed_state(entry, catalogue.index, now, context)
        return Ready(state, seen, held is not None, made.events, version)

    def given(
        self,
        history: Iterable[Any],
        *,
        features: Mapping[str, Any] | None = None,
        now: int | None = None,
        context: Mapping[str, Any] | None = None,
        index: MarkedIndex | None = None,
    ) -> Ready:
        """The state of a user whose events are given here, as for ``Recommender.rank``. The latest
        N events count, in either mode; nothing is stored or cached."""
        events = self.form.given(self.form.entries(history), now)
        log, at = self.form.log(events, now), self._now(now)
        opened = (index or self._catalogue).index
        past = self._stage.past(
            log, self.user_features.of(features or {}), at, context or {}, opened
        )
        with torch.inference_mode():
            state = self._ranker.encode_users(past.users, past.vectors)
        return Ready(state, seen_rows(opened, log), False, int(past.users.lengths[0]), None)

    def past(
        self,
        user: Any,
        *,
        now: int | None = None,
        context: Mapping[str, Any] | None = None,
        index: MarkedIndex | None = None,
    ) -> Past:
        """The user's latest N events, those before ``now`` where it is given, for explanations."""
        version = None if user is None else self.store.version(user)
        # Where histories contain every event, only the latest ones need to be read.
        recent = self.form.keep is None
        held = None if version is None else self.store.held(user, version if recent else None)
        events = [] if held is None else list(filter(self.form.retained, held.events))
        if held is not None and not held.complete:
            events = self.store.latest(user, self.length, before=now)
        elif now is not None:
            events = [event for event in events if event.time < now]
        encoded = self.user_features.of({} if held is None else held.features)
        log = self.form.log(events[-self.length :])
        opened = (index or self._catalogue).index
        return self._stage.past(log, encoded, self._now(now), context or {}, opened)

    def past_given(
        self,
        history: Iterable[Any],
        *,
        now: int | None = None,
        context: Mapping[str, Any] | None = None,
        index: MarkedIndex | None = None,
    ) -> Past:
        """The same for events that are given here, as for :meth:`given`."""
        events = self.form.given(self.form.entries(history), now)
        log, at = self.form.log(events, now), self._now(now)
        opened = (index or self._catalogue).index
        return self._stage.past(log, self.user_features.of({}), at, context or {}, opened)

    def forget(self, user: Any) -> bool:
        """Delete a user from the store and from memory; False: the store did not have the user."""
        user = external_id("user", user)
        with self._stripe(user):
            try:
                found = self.store.delete_user(user)
            finally:  # where this raises, the user may be deleted all the same
                self._cache.remove(user)
        return found

    @property
    def kind(self) -> str:
        """The kind of these states in the store, see :meth:`EventStore.state`. Models have states
        of their own, as have builds of an index."""
        return self._sync.kind(self._catalogue.mark)

    def rebuild(self, users: Iterable[Any] | None = None) -> int:
        """Compute the stored states of users, or of all users; returns how many were written.

        With the states of a model that is not served yet, servers that load it afterwards find
        them (:mod:`limerank.serving.rebuilding`).
        """
        users = self.store.users() if users is None else users
        return sum(self.rebuild_user(user) for user in users)

    def rebuild_user(self, user: Any) -> bool:
        """Compute the stored state of a user; False where it is up to date, or the user is unknown.

        Raises:
            StoreError, FormatError: from the store.
        """
        user, catalogue = external_id("user", user), self._catalogue
        with self._stripe(user):
            held = self.store.state(user, self._sync.kind(catalogue.mark))
            entry = self._sync.entry(user, catalogue, keep=False)
            if entry.version is None or (
                held is not None
                and held.version == entry.version
                and held.fingerprint == self._sync.fingerprint(entry.encoded, entry.mark)
            ):
                return False
            return self._sync.write(user, entry)

    def _now(self, now: int | None) -> int:
        if now is None:
            return int(clock.time() * 1000)
        self.form.check_time(now)
        return now

    def _stripe(self, user: int | str | None) -> threading.Lock:
        return self._stripes[hash(user) % STRIPES]

    @property
    def users_in_memory(self) -> tuple[int, int]:
        """The number of users in memory, and about how many bytes they take."""
        return self._cache.size()
