"""Live events -> user state: what the scorer needs of a user, at most computed once per change.

Two modes, of what of a user's events the model sees:

- ``window``, any model: the latest N events, as in evaluation. Kept as one packed list of events,
  from which the user stage is computed anew when an event arrives.
- ``streaming``, LIME-MHA: all events, however many. What links read of them is kept as a
  :class:`~limerank.kernels.prefix.Carry` of constant size, into which an event is merged in
  O(l d + d^2): no event is read twice. It is what training with ``exact = true`` sees. Where a user
  has no more than N events, both modes say the same.

A state is a function of the events that the store holds, of the user's features and of the model:
never of the order of arrival. It carries a *fingerprint* of all else that made it, and one that is
not what it should be is made anew from the events.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time as clock
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limerank.data.batch import Features, Items, Users
from limerank.data.canonical import DAY_MS, external_id
from limerank.data.event_log import EventForm, EventLog
from limerank.data.events import Event
from limerank.data.features import FeatureTable
from limerank.data.history import latest
from limerank.data.packing import pack_list, unpack_list
from limerank.errors import FingerprintError, FormatError, SpecError, check_choice
from limerank.index import Index
from limerank.kernels.prefix import Carry, carry_of, merged
from limerank.models.layers import split_heads
from limerank.models.lime import LinkState
from limerank.ranking.explain import Past
from limerank.ranking.request import item_vectors, past_of, seen_rows
from limerank.runs.model import Trained
from limerank.serving.state.stored import VERSION, Rows, Seen, Stream, Window
from limerank.serving.state.user_features import EncodedUser, UserFeatureCache
from limerank.serving.stores import EventStore, Held, State, Version

KEEP = 32
"""A state in the store is replaced when its user has come so many changes further."""
CHUNK = 1024
"""Events that are merged into a carry at once."""
STRIPES = 64
"""Locks of users: two users share one now and then."""
ENTRY_BYTES = 12 << 10
"""Of a user in memory besides arrays, as measured: objects, and gaps between allocations."""
BRIEF_CHANGES, BRIEF_HISTORY, BRIEF_SEEN = 16, 1024, 4096
"""At most so many changes that came since, events of a history and seen items has a user whose
state takes about a millisecond: see :meth:`UserStates.ready_at_once`."""

Mode = Literal["window", "streaming"]


class Ready(NamedTuple):
    """A user, ready to be scored.

    Attributes:
        state: what the ranker's ``encode_users`` returns, one request.
        seen: index rows of the items that the user has met, ascending, i64.
        known: whether the store holds the user.
        events: events that the state is made of.
        version: of the user; None for one that the store does not hold.
    """

    state: Any
    seen: Rows
    known: bool
    events: int
    version: Version | None


@dataclass(frozen=True, eq=False)
class _Mark:
    """One version of the index. ``print`` tells whether the vectors of all its items are those of
    another; ``base``, whether its rows are (:attr:`limerank.index.Index.base`)."""

    print: str
    base: str


@dataclass(frozen=True)
class MarkedIndex:
    """A version of the index, as :meth:`UserStates.marked` gives it. Only requests under way hold
    it, no user in memory does: an index that changes all day would leave every version open that
    some user once met."""

    index: Index
    mark: _Mark


class _Asked(NamedTuple):
    """LIME: the state of a request, which is that of all with the same context that are made from
    ``since`` on and before ``until``."""

    context: Mapping[str, Any]
    since: int
    until: float
    state: LinkState


@dataclass
class _Entry:
    """What is in memory of a user.

    ``stage`` is what was computed of it, and for which request context; of LIME, whose links depend
    on none, the time of the newest event, and the links. ``asked`` is the state of the request
    before this one: most requests of a user have the same.
    ``written`` is the version last kept in the store.
    """

    version: Version | None
    person: EncodedUser
    stored: Window | Stream
    mark: _Mark
    seen: Rows
    written: Version | None
    stage: tuple[Any, Any] | None = None
    asked: _Asked | None = None

    @property
    def nbytes(self) -> int:
        stage = () if self.stage is None else self.stage[1]
        of_stage = sum(getattr(part, "nbytes", 0) for part in stage)
        return ENTRY_BYTES + self.stored.nbytes + self.seen.nbytes + of_stage


class _Made(NamedTuple):
    """A state that was made before, of which version and by what."""

    stored: Window | Stream
    version: Version
    fingerprint: bytes
    written: Version | None


class UserStates:
    """The states of all users of an event store, for one model and index.

    Safe to use from several threads; several processes may share the store. An event appended
    anywhere is in the next state: each call asks the store for the user's version.

    Args:
        trained: the model.
        index: the catalogue, whose item vectors histories are made of. :meth:`use_index` replaces
            it by a newer version of itself.
        store: of events.
        mode: ``window`` or ``streaming``; see the module's text.
        length: window: events of a history, at most; the run's own when not given.
        memory: bytes of states in memory, about; the least recently used ones leave.
        keep: whether states are kept in the store, too, so that a process that starts, or another
            one, need not make them anew.

    Raises:
        SpecError: the model cannot stream.
        FingerprintError: the index was built by another model.
    """

    def __init__(
        self,
        trained: Trained,
        index: Index,
        store: EventStore,
        *,
        mode: Mode = "window",
        length: int | None = None,
        memory: int = 256 << 20,
        keep: bool = False,
    ) -> None:
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
        self.memory, self.keep = memory, keep
        self.made = {"stages": 0, "rebuilds": 0, "updates": 0}
        """How often user stages were computed, states rebuilt, and brought up to date."""
        self._ranker: Any = ranker
        self._device = next(ranker.parameters()).device
        self._entries: OrderedDict[int | str | None, _Entry] = OrderedDict()
        self.user_features = UserFeatureCache(trained)
        self._sizes: dict[int | str | None, int] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self._stripes = [threading.Lock() for _ in range(STRIPES)]
        self.use_index(index)

    def use_index(self, index: Index) -> None:
        """Go on with another version of the index, or a new one of the same model.

        States made of item vectors that have changed since are made anew when they are asked for.
        """
        self.use(self.marked(index))

    def use(self, marked: MarkedIndex) -> None:
        """The same for a version that :meth:`marked` gave."""
        self._catalogue = marked

    def marked(self, index: Index) -> MarkedIndex:
        """A version of the index for requests to name. Requests of several versions may be under
        way at a time, each with states of the very version that it scores."""
        if index.fingerprint != self.trained.fingerprint:
            raise FingerprintError(
                f"{index.path} was built by the model {index.fingerprint}, not by "
                f"{self.trained.fingerprint}; build an index with this run"
            )
        return MarkedIndex(index, _Mark(catalogue_of(index), index.base))

    @property
    def index(self) -> Index:
        """The index in use."""
        return self._catalogue.index

    # What a server asks

    def check(self, event: Event) -> None:
        """Refuse an event that the run cannot read: UnknownError or DataError. An item that the
        index does not hold is no error: it is one of which nothing is known yet."""
        self.form.check(event)

    def ready(
        self,
        user: Any,
        *,
        now: int | None = None,
        context: Mapping[str, Any] | None = None,
        index: MarkedIndex | None = None,
    ) -> Ready:
        """The state of a user of the store; of one that it does not hold, that of nobody.

        Args:
            user: external id, or None for nobody.
            now: when the request is made; only events before it count. When not given: the clock's
                time, or that of the newest event where it is later, and all events count, for a
                client's clock may be ahead of this one.
            context: context feature -> value; unknown where not given.
            index: the version of the index, see :meth:`marked`; the one in use when not given.

        Raises:
            UnknownError: a context feature is unknown.
            DataError: the time is years off the log.
            StoreError, FormatError: as the store does.
        """
        user = None if user is None else external_id("user", user)
        catalogue = index or self._catalogue
        if self._after(user, now):
            return self._as_of(user, catalogue, self._now(now), context or {})
        with self._stripe(user):
            entry = self._entry(user, catalogue)
            return self._ready(user, entry, catalogue, now, context)

    def ready_at_once(
        self,
        user: Any,
        *,
        now: int | None = None,
        context: Mapping[str, Any] | None = None,
        index: MarkedIndex | None = None,
    ) -> Ready | None:
        """What :meth:`ready` gives, where that takes about a millisecond and waits for no other
        thread; else None. For an event loop, over a store that answers at once.

        The user has to be in memory (or unknown), with few changes since, a short history and few
        seen items; and nobody else may be at work on the user's state.
        """
        user = None if user is None else external_id("user", user)
        lock = self._stripe(user)
        if self._after(user, now) or not lock.acquire(blocking=False):
            return None
        try:
            catalogue = index or self._catalogue
            entry = self._entry_at_once(user, catalogue)
            if entry is None or len(entry.seen) > BRIEF_SEEN:
                return None
            if entry.stage is None and entry.stored.events > BRIEF_HISTORY:
                return None
            return self._ready(user, entry, catalogue, now, context)
        finally:
            lock.release()

    def _ready(
        self,
        user: int | str | None,
        entry: _Entry,
        catalogue: MarkedIndex,
        now: int | None,
        context: Mapping[str, Any] | None,
    ) -> Ready:
        state = self._stage(entry, catalogue.index, self._now(now), context or {})
        self._remember(user, entry)
        version = entry.version
        return Ready(state, entry.seen, version is not None, entry.stored.events, version)

    def _after(self, user: int | str | None, now: int | None) -> bool:
        """Whether the store holds events of a user that a request made at ``now`` must not see."""
        if user is None or now is None:
            return False
        newest = self.store.latest(user, 1)
        return bool(newest) and newest[0].time >= now

    def _as_of(
        self,
        user: int | str | None,
        catalogue: MarkedIndex,
        now: int,
        context: Mapping[str, Any],
    ) -> Ready:
        """The state that a user had at a time in the past: of the events before it, read anew;
        nothing of it is kept."""
        held = None if user is None else self.store.held(user)
        events = [] if held is None else [event for event in held.events if event.time < now]
        person = self.user_features.of({} if held is None else held.features)
        made = self._updated(user or 0, self._empty(user or 0), events, person, catalogue.index)
        assert made is not None
        seen = made.seen.rows(catalogue.index)
        version = None if held is None else held.version
        entry = _Entry(version, person, made, catalogue.mark, seen, None)
        state = self._computed(entry, catalogue.index, now, context)
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
        """The state of a user whose events are given here, as for ``Recommender.rank``; nothing is
        kept. The latest N events count, in either mode."""
        events = self.form.given(self.form.entries(history), now)
        log, at = self.form.log(events, now), self._now(now)
        opened = (index or self._catalogue).index
        past = self._past(log, self.user_features.of(features or {}), at, context or {}, opened)
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
        # Where histories hold every event, the latest ones are all that is to be read.
        recent = self.form.keep is None
        held = None if version is None else self.store.held(user, version if recent else None)
        events = [] if held is None else list(filter(self.form.retained, held.events))
        if held is not None and not held.complete:
            events = self.store.latest(user, self.length, before=now)
        elif now is not None:
            events = [event for event in events if event.time < now]
        person = self.user_features.of({} if held is None else held.features)
        log = self.form.log(events[-self.length :])
        opened = (index or self._catalogue).index
        return self._past(log, person, self._now(now), context or {}, opened)

    def past_given(
        self,
        history: Iterable[Any],
        *,
        now: int | None = None,
        context: Mapping[str, Any] | None = None,
        index: MarkedIndex | None = None,
    ) -> Past:
        """The same of events that are given here, as for :meth:`given`."""
        events = self.form.given(self.form.entries(history), now)
        log, at = self.form.log(events, now), self._now(now)
        opened = (index or self._catalogue).index
        return self._past(log, self.user_features.of({}), at, context or {}, opened)

    def forget(self, user: Any) -> bool:
        """Delete a user from the store and from memory; False: the store did not hold it."""
        user = external_id("user", user)
        with self._stripe(user):
            try:
                found = self.store.delete_user(user)
            finally:  # it may be gone from the store, too, where that raises
                with self._lock:
                    self._drop(user)
        return found

    def rebuild(self, users: Iterable[Any] | None = None) -> int:
        """Bring the kept states of users, or of all, up to date; returns how many were written.

        After a new model is loaded this may run beside the server, which makes states anew when
        they are asked for, in any case.
        """
        written = 0
        for user in self.store.users() if users is None else users:
            user = external_id("user", user)
            with self._stripe(user):
                held = self.store.state(user, self.mode)
                entry = self._entry(user, self._catalogue, keep=False)
                if entry.version is None or (
                    held is not None
                    and held.version == entry.version
                    and held.fingerprint == self._fingerprint(entry.person, entry.mark)
                ):
                    continue
                written += self._keep(user, entry)
        return written

    # From the store to an entry

    def _entry(
        self, user: int | str | None, catalogue: MarkedIndex, keep: bool | None = None
    ) -> _Entry:
        """What is to be known of a user, up to date. Under the user's lock."""
        version = None if user is None else self.store.version(user)
        if user is None or version is None:
            return self._nobody(catalogue)
        with self._lock:
            entry = self._entries.get(user)
        if entry is not None and entry.version == version and self._still(entry, catalogue):
            return entry
        made = self._made(user, entry)
        held = self.store.held(user, None if made is None else made.version)
        if held is None:  # deleted in between
            return self._nobody(catalogue)
        person, fresh = self.user_features.of(held.features), None
        if made is not None and not held.complete and self._holds(made, person, catalogue):
            fresh = self._updated(user, made.stored, held.events, person, catalogue.index)
        if fresh is not None:
            written = None if made is None else made.written
            self.made["updates"] += bool(held.events)
        else:
            if not held.complete:
                held = self.store.held(user)
                if held is None:
                    return self._nobody(catalogue)
                person = self.user_features.of(held.features)
            empty = self._empty(user)
            fresh = self._updated(user, empty, held.events, person, catalogue.index)
            assert fresh is not None
            written = None
            self.made["rebuilds"] += 1
        entry = self._next(entry, held, person, fresh, catalogue, written)
        if self.keep if keep is None else keep:
            behind = KEEP if written is None else held.version.changes - written.changes
            if behind >= KEEP:
                self._keep(user, entry)
        return entry

    def _entry_at_once(self, user: int | str | None, catalogue: MarkedIndex) -> _Entry | None:
        """The same, where the store need not be read but for a few events, and little is to be
        computed; else None. Under the user's lock."""
        with self._lock:
            entry = self._entries.get(user)
        version = None if user is None else self.store.version(user)
        if version is None:
            entry = self._nobody(catalogue)
            return entry if entry.stage is not None else None
        if user is None or entry is None or entry.version is None:
            return None
        if len(entry.seen) > BRIEF_SEEN:
            return None
        if not self._still(entry, catalogue):
            return None
        if entry.version == version:
            return entry
        few = version.born == entry.version.born and (
            0 <= version.changes - entry.version.changes <= BRIEF_CHANGES
        )
        # Of a store that drops old events, what came since may be all that it holds.
        if not few or self.store.most is not None or entry.stored.events > BRIEF_HISTORY:
            return None
        held = self.store.held(user, entry.version)
        if held is None or held.complete or not self.user_features.knows(held.features):
            return None
        person, before = self.user_features.of(held.features), entry.person
        if isinstance(entry.stored, Stream) and person.digest != before.digest:
            return None  # all that links have read depends on it
        fresh = self._updated(user, entry.stored, held.events, person, catalogue.index)
        if fresh is None:
            return None
        self.made["updates"] += bool(held.events)
        return self._next(entry, held, person, fresh, catalogue, entry.written)

    def _next(
        self,
        entry: _Entry | None,
        held: Held,
        person: EncodedUser,
        fresh: Window | Stream,
        catalogue: MarkedIndex,
        written: Version | None,
    ) -> _Entry:
        """An entry of what was made of a user just now, in place of the one before."""
        if entry is not None and entry.mark is catalogue.mark and not held.complete:
            more = Seen().add([event.item for event in held.events]).rows(catalogue.index)
            seen = np.union1d(entry.seen, more)
        else:
            seen = fresh.seen.rows(catalogue.index)
        return _Entry(held.version, person, fresh, catalogue.mark, seen, written)

    def _still(self, entry: _Entry, catalogue: MarkedIndex) -> bool:
        """Whether what is in memory is right for this version of the index. Most changes of a
        catalogue change no item that a user has met: then each is still found in the same row."""
        if entry.mark is catalogue.mark:
            return True
        if entry.mark.base != catalogue.mark.base or not np.array_equal(
            entry.seen, entry.stored.seen.rows(catalogue.index)
        ):
            return False
        if isinstance(entry.stored, Stream):
            entry.stored = replace(entry.stored, index_rows=len(catalogue.index))
        before = self._fingerprint(entry.person, entry.mark)
        if before != self._fingerprint(entry.person, catalogue.mark):
            entry.written = None  # what the store keeps is another's now
        entry.mark = catalogue.mark
        return True

    def _made(self, user: int | str, entry: _Entry | None) -> _Made | None:
        """What was made of the user before: in memory, or in the store."""
        if entry is not None and entry.version is not None:
            fingerprint = self._fingerprint(entry.person, entry.mark)
            return _Made(entry.stored, entry.version, fingerprint, entry.written)
        state = self.store.state(user, self.mode)
        if state is None:
            return None
        kind: type[Window | Stream] = Window if self.mode == "window" else Stream
        try:
            stored = kind.unpack(state.data)
        except (FormatError, ValueError, struct.error):
            return None  # damaged, or of another format: it is made anew
        return _Made(stored, state.version, state.fingerprint, state.version)

    def _holds(self, made: _Made, person: EncodedUser, catalogue: MarkedIndex) -> bool:
        """Whether what was made before is what this model, index and user would make."""
        if made.fingerprint != self._fingerprint(person, catalogue.mark):
            return False
        if isinstance(made.stored, Stream):
            # An item that was unknown may be known now.
            return not made.stored.unknown or made.stored.index_rows == len(catalogue.index)
        return True

    def _keep(self, user: int | str, entry: _Entry) -> bool:
        assert entry.version is not None
        fingerprint = self._fingerprint(entry.person, entry.mark)
        state = State(fingerprint, entry.version, entry.stored.pack())
        done = self.store.put_state(user, self.mode, state)
        if done:
            entry.written = entry.version
        return done

    def _fingerprint(self, person: EncodedUser, mark: _Mark) -> bytes:
        """Of all but the events that a state is made of."""
        parts: list[Any] = [VERSION, self.mode]
        if self.mode == "window":  # events as they are: any model reads them
            parts += [self.length, self.form.keep]
        else:
            parts += [self.trained.fingerprint, mark.print, person.digest.hex()]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()

    def _empty(self, user: int | str) -> Window | Stream:
        return Window(pack_list(user, []), 0, Seen()) if self.mode == "window" else Stream()

    def _nobody(self, catalogue: MarkedIndex) -> _Entry:
        with self._lock:
            entry = self._entries.get(None)
        if entry is None or not self._still(entry, catalogue):
            rows = np.zeros(0, np.int64)
            entry = _Entry(
                None, self.user_features.of({}), self._empty(0), catalogue.mark, rows, None
            )
        return entry

    def _updated(
        self,
        user: int | str,
        stored: Window | Stream,
        events: Sequence[Event],
        person: EncodedUser,
        index: Index,
    ) -> Window | Stream | None:
        """With more events; None where it must be made of all of them."""
        seen = stored.seen.add([event.item for event in events]) if events else stored.seen
        events = [event for event in events if self.form.retained(event)]
        if isinstance(stored, Stream):
            return self._streamed(replace(stored, seen=seen), events, person, index)
        if not events:
            return replace(stored, seen=seen)
        try:
            held = stored.open or unpack_list(stored.packed)[1]
        except FormatError:
            return None
        # What fell out of a full window is older than all that is in it.
        every = sorted([*held, *events], key=_by_time)[-self.length :]
        return Window(pack_list(user, every), len(every), seen, tuple(every))

    def _streamed(
        self, stored: Stream, events: Sequence[Event], person: EncodedUser, index: Index
    ) -> Stream | None:
        if not events:
            return replace(stored, index_rows=len(index))
        events = sorted(events, key=_by_time)
        if not self.form.clock and stored.events and _by_time(events[0]) < stored.newest:
            return None  # ages are places here, and an event in between changes those of older ones
        found, carry, count, unknown = stored.newest, stored.carry, stored.events, stored.unknown
        rate_hl = self._ranker.reading.log_rate.exp()
        for at in range(0, len(events), CHUNK):
            some = events[at : at + CHUNK]
            log = self.form.log(some)
            vectors, missing = self._vectors_of(index, log.ids)
            unknown += int(missing[log.columns["item"]].sum())
            fresh = self._carry(log, vectors, count + len(some), person)
            if carry is not None:
                fresh = merged(carry, fresh, rate_hl)
            carry, count = fresh, count + len(some)
        return Stream(
            carry,
            count,
            unknown,
            len(index),
            max(found, _by_time(events[-1])) if stored.events else _by_time(events[-1]),
            stored.seen,
        )

    @torch.inference_mode()
    def _carry(self, log: EventLog, vectors: Tensor, count: int, person: EncodedUser) -> Carry:
        """What links read of some events; ``count``: how many there are by now."""
        n = len(log.rows)
        zero, end = np.zeros(1, np.int64), np.array([n])
        history = latest(log.columns, self.form.encoder, zero, end, n, log.rows)
        users = Users.from_history(
            history,
            items=history.items,
            features=person.features,
            context=torch.zeros((1, 0), dtype=torch.int64),
        ).to(self._device)
        kv_bnd = self._ranker.event_tower.through(self._ranker.reading.key_value, users, vectors)
        k_bhne, v_bhne = (
            split_heads(part, self._ranker.config.heads) for part in kv_bnd.chunk(2, -1)
        )
        at = int(history.newest[0]) / DAY_MS if self.form.clock else float(count)
        time = torch.tensor(at, dtype=torch.float64, device=self._device)
        rate_hl, queries = self._ranker.reading.log_rate.exp(), self.user_features.links(person)[1]
        return carry_of(queries, k_bhne[0], v_bhne[0], rate_hl, users.age[0], time)

    # From an entry to a state

    def _stage(self, entry: _Entry, index: Index, now: int, context: Mapping[str, Any]) -> Any:
        """The user's state for a request."""
        asked = entry.asked
        if asked is not None and asked.since <= now < asked.until and asked.context == context:
            return asked.state
        return self._computed(entry, index, now, context)

    @torch.inference_mode()
    def _computed(self, entry: _Entry, index: Index, now: int, context: Mapping[str, Any]) -> Any:
        """The same, of the entry's stage what is not there yet."""
        if not self._ranker.late_context:
            past = self._past_of(entry, index, now, context)
            key, stage = tuple(past.users.context[0].tolist()), entry.stage
            if stage is None or stage[0] != key:
                stage = key, self._ranker.encode_users(past.users, past.vectors)
                self.made["stages"] += 1
                entry.stage = stage
            return stage[1]
        stage = entry.stage
        if stage is None:
            if isinstance(entry.stored, Stream):
                links, newest = self._read(entry.stored, entry.person), entry.stored.newest[0]
            else:
                past = self._past_of(entry, index, now, context)
                links = self._ranker.encode_users(past.users, past.vectors).links
                newest = int(past.times[-1]) if len(past.times) else 0
            stage = newest, (links,)
            self.made["stages"] += 1
            entry.stage = stage
        (newest, (links,)), count = stage, entry.stored.events
        at = max(now, newest) if count else now
        tokens = self._context(newest, count, at, context)
        c_bd = self._ranker.user_tower.contexts(tokens.to(self._device))
        state = LinkState(links, self._ranker.head.from_request(entry.person.u, c_bd))
        until = self.form.encoder.context_until(at, newest, count)
        # A copy: the caller may change its own.
        entry.asked = _Asked(dict(context), now, until, state)
        return state

    def _past_of(self, entry: _Entry, index: Index, now: int, context: Mapping[str, Any]) -> Past:
        assert isinstance(entry.stored, Window)
        events = entry.stored.open or unpack_list(entry.stored.packed)[1]
        entry.stored = replace(entry.stored, open=None)
        log = self.form.log(events)
        return self._past(log, entry.person, now, context, index)

    def _read(self, stored: Stream, person: EncodedUser) -> Tensor:
        """Personalised links [1, l, d] of a streaming state."""
        links_bld, queries_hle = self.user_features.links(person)
        read_hle = torch.zeros_like(queries_hle) if stored.carry is None else stored.carry.mean
        count = torch.tensor([stored.events], device=self._device)
        read_bhle = read_hle.to(self._device)[None]
        personal: Tensor = self._ranker.norm(
            self._ranker.reading.absorb(links_bld, read_bhle, count)
        )
        return personal

    def _context(self, newest: int, count: int, now: int, context: Mapping[str, Any]) -> Tensor:
        tokens = self.form.encoder.context(
            self.form.context(context), np.array([now]), np.array([newest]), np.array([count])
        )
        return torch.from_numpy(tokens)

    def _past(
        self,
        log: EventLog,
        person: EncodedUser,
        now: int,
        context: Mapping[str, Any],
        index: Index,
    ) -> Past:
        """Events as histories hold them. A request is not made before its newest event, whatever
        the clocks of clients and of this machine say."""
        times = log.columns["time"][log.rows]
        now = max(now, int(times[-1])) if len(times) else now
        return past_of(
            log,
            self.form,
            self.length,
            lambda count: _times(person.features, count),
            lambda ids, codes: self._vectors_of(index, ids[codes])[0],
            now,
            context,
        )

    def _vectors_of(self, index: Index, ids: Any) -> tuple[Tensor, NDArray[np.bool_]]:
        """Vectors of items [U, d], and which of them the index lacks."""
        vectors, lacking = item_vectors(index, ids, self._device)
        if lacking.any():
            vectors[torch.from_numpy(lacking)] = self._blank
        return vectors, lacking

    @cached_property
    def _blank(self) -> Tensor:
        """The vector of an item of which nothing is known, [1, d]."""
        content = FeatureTable.unknown(self.trained.manifest["encoding"]["items"])
        items = Items(
            ids=torch.zeros(1, dtype=torch.int64), content=content.take(np.zeros(1, np.int64))
        )
        with torch.inference_mode():
            vector: Tensor = self._ranker.item_vectors(items.to(self._device))
        return vector

    def _now(self, now: int | None) -> int:
        if now is None:
            return int(clock.time() * 1000)
        self.form.check_time(now)
        return now

    # Memory

    def _stripe(self, user: int | str | None) -> threading.Lock:
        return self._stripes[hash(user) % STRIPES]

    def _remember(self, user: int | str | None, entry: _Entry) -> None:
        with self._lock:
            self._drop(user)
            if entry.version is None and user is not None:
                user = None  # all who are not known share one
                self._drop(user)
            self._entries[user] = entry
            self._bytes += entry.nbytes
            self._sizes[user] = entry.nbytes
            while self._bytes > self.memory and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))

    def _drop(self, user: int | str | None) -> None:
        if self._entries.pop(user, None) is not None:
            self._bytes -= self._sizes.pop(user)

    @property
    def users_in_memory(self) -> tuple[int, int]:
        """How many users are in memory, and about how many bytes they take."""
        with self._lock:
            return len(self._entries), self._bytes


def catalogue_of(index: Index) -> str:
    """Changes whenever a vector of an item that the index holds may have: its files were written
    anew, or an item was updated. Adding items changes nothing."""
    return f"{index.base} {index.superseded}"


def _times(features: Features, count: int) -> Features:
    """One row of features, so many times."""
    size = int(features.offsets[-1])
    return Features(
        tokens=features.tokens.repeat(count),
        weights=features.weights.repeat(count),
        offsets=torch.arange(count + 1, device=features.offsets.device) * size,
        numeric=features.numeric.expand(count, -1),
    )


def _by_time(event: Event) -> tuple[int, bytes]:
    return event.time, event.id
