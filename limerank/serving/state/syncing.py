"""Keeps users' entries in memory up to date with the event store."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from limerank.errors import FormatError
from limerank.runs.model import Trained
from limerank.serving.state.entries import Entry, EntryCache, Mark, MarkedIndex
from limerank.serving.state.stored import STREAM_VERSION, WINDOW_VERSION, Seen, Stream, Window
from limerank.serving.state.updating import Updater
from limerank.serving.state.user_features import EncodedUser, UserFeatureCache
from limerank.serving.stores import EventStore, Held, State, Version

KEEP = 32
"""A state in the store is replaced after so many changes of its user."""
BRIEF_CHANGES, BRIEF_HISTORY, BRIEF_SEEN = 16, 1024, 4096
"""Limits of a user whose state takes about a millisecond, see :meth:`UserStates.ready_at_once`:
changes since the state in memory, events of the history, and seen items."""


class _Earlier(NamedTuple):
    """A state that was computed before, in memory or in the store."""

    stored: Window | Stream
    version: Version
    fingerprint: bytes
    written: Version | None


class EntrySync:
    """Entries of users as of the store's present events and features.

    Methods that take a user need the user's lock, which the caller holds.

    Args:
        trained: the model.
        store: the event store.
        updater: merges events into windows or streams.
        user_features: the encodings of users' features.
        cache: the entries in memory.
        keep: whether states are also written to the store.
    """

    def __init__(
        self,
        trained: Trained,
        store: EventStore,
        updater: Updater,
        user_features: UserFeatureCache,
        cache: EntryCache,
        *,
        keep: bool,
    ) -> None:
        self.trained, self.store, self.keep = trained, store, keep
        self.mode, self.form, self.length = updater.mode, updater.form, updater.length
        self.user_features = user_features
        self.rebuilds = self.updates = 0
        """How often states were computed from all events, and from new events alone."""
        self._updater, self._cache = updater, cache

    def entry(
        self, user: int | str | None, catalogue: MarkedIndex, keep: bool | None = None
    ) -> Entry:
        """A user's entry, up to date with the store."""
        version = None if user is None else self.store.version(user)
        if user is None or version is None:
            return self._unknown(catalogue)
        entry = self._cache.get(user)
        if entry is not None and entry.version == version and self._still(entry, catalogue):
            return entry
        earlier = self._earlier(user, entry, catalogue.mark)
        held = self.store.held(user, None if earlier is None else earlier.version)
        if held is None:  # deleted in between
            return self._unknown(catalogue)
        encoded, fresh = self.user_features.of(held.features), None
        if (
            earlier is not None
            and not held.complete
            and self._is_valid(earlier, encoded, catalogue)
        ):
            fresh = self._updater.updated(
                user, earlier.stored, held.events, encoded, catalogue.index
            )
        if fresh is not None:
            written = None if earlier is None else earlier.written
            self.updates += bool(held.events)
        else:
            if not held.complete:
                held = self.store.held(user)
                if held is None:
                    return self._unknown(catalogue)
                encoded = self.user_features.of(held.features)
            empty = self._updater.empty(user)
            fresh = self._updater.updated(user, empty, held.events, encoded, catalogue.index)
            assert fresh is not None
            written = None
            self.rebuilds += 1
        entry = self._next(entry, held, encoded, fresh, catalogue, written)
        if self.keep if keep is None else keep:
            behind = KEEP if written is None else held.version.changes - written.changes
            if behind >= KEEP:
                self.write(user, entry)
        return entry

    def entry_at_once(self, user: int | str | None, catalogue: MarkedIndex) -> Entry | None:
        """The same where few events have to be read and little has to be computed; else None."""
        entry = self._cache.get(user)
        version = None if user is None else self.store.version(user)
        if version is None:
            entry = self._unknown(catalogue)
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
        # A store that drops old events may return all its events as those since a version.
        if not few or self.store.most is not None or entry.stored.events > BRIEF_HISTORY:
            return None
        held = self.store.held(user, entry.version)
        if held is None or held.complete or not self.user_features.knows(held.features):
            return None
        encoded, before = self.user_features.of(held.features), entry.encoded
        if isinstance(entry.stored, Stream) and encoded.digest != before.digest:
            return None  # the entire carry depends on the features
        fresh = self._updater.updated(user, entry.stored, held.events, encoded, catalogue.index)
        if fresh is None:
            return None
        self.updates += bool(held.events)
        return self._next(entry, held, encoded, fresh, catalogue, entry.written)

    def _next(
        self,
        entry: Entry | None,
        held: Held,
        encoded: EncodedUser,
        fresh: Window | Stream,
        catalogue: MarkedIndex,
        written: Version | None,
    ) -> Entry:
        """The entry that replaces a user's previous one."""
        if entry is not None and entry.mark is catalogue.mark and not held.complete:
            more = Seen().add([event.item for event in held.events]).rows(catalogue.index)
            seen = np.union1d(entry.seen, more)
        else:
            seen = fresh.seen.rows(catalogue.index)
        return Entry(held.version, encoded, fresh, catalogue.mark, seen, written)

    def _still(self, entry: Entry, catalogue: MarkedIndex) -> bool:
        """Whether an entry is valid for this version of the index. Most changes of an index change
        no item that the user has seen: then the seen items are still in the same rows."""
        if entry.mark is catalogue.mark:
            return True
        if entry.mark.base != catalogue.mark.base or not np.array_equal(
            entry.seen, entry.stored.seen.rows(catalogue.index)
        ):
            return False
        if isinstance(entry.stored, Stream):
            entry.stored = replace(entry.stored, index_rows=len(catalogue.index))
        before = self.fingerprint(entry.encoded, entry.mark)
        if before != self.fingerprint(entry.encoded, catalogue.mark):
            entry.written = None  # the stored state has another fingerprint now
        entry.mark = catalogue.mark
        return True

    def _earlier(self, user: int | str, entry: Entry | None, mark: Mark) -> _Earlier | None:
        """The user's earlier state, from memory or from the store."""
        if entry is not None and entry.version is not None:
            fingerprint = self.fingerprint(entry.encoded, entry.mark)
            return _Earlier(entry.stored, entry.version, fingerprint, entry.written)
        state = self.store.state(user, self.kind(mark))
        if state is None:
            return None
        kind: type[Window | Stream] = Window if self.mode == "window" else Stream
        try:
            stored = kind.unpack(state.data)
        except (FormatError, ValueError, struct.error):
            return None  # damaged, or of another format: it is computed again
        return _Earlier(stored, state.version, state.fingerprint, state.version)

    def _is_valid(self, earlier: _Earlier, encoded: EncodedUser, catalogue: MarkedIndex) -> bool:
        """Whether this model, index and features would compute the same state."""
        if earlier.fingerprint != self.fingerprint(encoded, catalogue.mark):
            return False
        if isinstance(earlier.stored, Stream):
            # An item that was unknown may be known now.
            return not earlier.stored.unknown or earlier.stored.index_rows == len(catalogue.index)
        return True

    def write(self, user: int | str, entry: Entry) -> bool:
        """Write the state of an entry to the store; False where the user has changed since."""
        assert entry.version is not None
        fingerprint = self.fingerprint(entry.encoded, entry.mark)
        state = State(fingerprint, entry.version, entry.stored.pack())
        done = self.store.put_state(user, self.kind(entry.mark), state)
        if done:
            entry.written = entry.version
        return done

    def kind(self, mark: Mark) -> str:
        """The kind of states in the store: those of several models, or of several builds of an
        index, exist side by side, so that states of a new one can be computed before it is
        served."""
        parts: list[Any] = [self.length, self.form.keep]
        if self.mode == "streaming":
            parts = [self.trained.fingerprint, mark.base]
        return f"{self.mode}:{_digest(parts, 8).hex()}"

    def fingerprint(self, encoded: EncodedUser, mark: Mark) -> bytes:
        """Identifies the model, index and features that a state was computed with."""
        parts: list[Any]
        if self.mode == "window":  # raw events, which any model reads
            parts = [WINDOW_VERSION, self.mode, self.length, self.form.keep]
        else:
            parts = [STREAM_VERSION, self.mode]
            parts += [self.trained.fingerprint, mark.print, encoded.digest.hex()]
        return _digest(parts, 16)

    def _unknown(self, catalogue: MarkedIndex) -> Entry:
        entry = self._cache.get(None)
        if entry is None or not self._still(entry, catalogue):
            rows = np.zeros(0, np.int64)
            entry = Entry(
                None, self.user_features.of({}), self._updater.empty(0), catalogue.mark, rows, None
            )
        return entry


def _digest(parts: list[Any], size: int) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=size).digest()
