"""States of users, computed before a run is served: no user is then computed again at a request.

A store holds the states of several runs side by side
(:data:`~limerank.serving.stores.contract.MOST_STATES`). So the states of the next run can be
computed while servers answer from the present one, and events may arrive meanwhile: a server that
loads the run later reads each state, and the events since.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from limerank.errors import FormatError
from limerank.parts import Part
from limerank.progress import Bar
from limerank.serving.current import Current
from limerank.serving.served import Loader
from limerank.serving.state import Mode, UserStates
from limerank.serving.stores import EventStore, Id

log = logging.getLogger("limerank.serving")


class Rebuilt(NamedTuple):
    """The result of :func:`rebuild_states`.

    Attributes:
        users: users of the part.
        written: states that were computed and written; the others were up to date, or their users
            changed meanwhile.
        damaged: users who could not be read.
    """

    users: int
    written: int
    damaged: int


def loaded_states(store: EventStore, run: Path, index: Path, mode: Mode) -> UserStates:
    """The states that a server of this run and index uses. Live items of the store are written into
    the index first, as that server would do: states belong to the items as they are then.

    Raises:
        SpecError: the index is a shard, whose server has no states.
    """
    served = Current(Loader(store, mode=mode, memory=0), run, index).served
    served.index.expect_all()
    return served.states


def rebuild_states(states: UserStates, part: Part | None = None, *, quiet: bool = True) -> Rebuilt:
    """Compute the stored states of all users, or of a part of them, where they are not up to date.

    One user is in memory at a time. A call that was ended early goes on when it is repeated, since
    states that are up to date are only read.

    Args:
        states: of the run, such as :func:`loaded_states`.
        part: the k-th of n parts, by a checksum of the user's id; several processes may compute one
            part each.
        quiet: show no progress.

    Raises:
        StoreError: the store cannot be reached.
    """
    users = written = damaged = 0
    total = states.store.counts().users
    with Bar("computing states", total=total, unit="users", quiet=quiet) as bar:
        for user in states.store.users():
            bar.advance(1)
            if part is not None and not _is_of(user, part):
                continue
            users += 1
            try:
                written += states.rebuild_user(user)
            except FormatError as error:
                damaged += 1
                log.error("the state of a user is left out: %s", error)
    return Rebuilt(users, written, damaged)


def drop_states(
    store: EventStore, kinds: Collection[str], part: Part | None = None, *, quiet: bool = True
) -> int:
    """Delete the states of all users but these kinds; returns how many there were.

    Args:
        store: the event store.
        kinds: :attr:`UserStates.kind` of what is served.
        part: see :func:`rebuild_states`.
        quiet: show no progress.
    """
    dropped = 0
    with Bar("dropping states", total=store.counts().users, unit="users", quiet=quiet) as bar:
        for user in store.users():
            bar.advance(1)
            if part is None or _is_of(user, part):
                dropped += store.drop_states(user, kinds)
    return dropped


def _is_of(user: Id, part: Part) -> bool:
    return zlib.crc32(str(user).encode()) % part.of == part.number - 1
