"""What is to be prepared: the arguments of a call, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from limerank.data.canonical import milliseconds
from limerank.data.prepare.earlier import Earlier, EarlierEvents
from limerank.data.prepare.inputs import Description, Input, Inputs, inputs_of
from limerank.errors import DataError, SpecError
from limerank.validation import memory_bytes

LIBRARY_BYTES = 320 << 20
"""What Python and the libraries take before any work is done."""
BATCH_BYTES = 24 << 20
"""Bytes of a file that are read at once, at most."""


@dataclass(frozen=True)
class Asked:
    """What is to be prepared.

    Attributes:
        inputs: the description and its rows.
        earlier: the dataset whose codes are used; None: codes are new.
        events: the events of that dataset, where it is extended; None: it is not.
        since: earlier events are left out, milliseconds since 1970; None: none are.
        memory: bytes that the process may use.
    """

    inputs: Inputs
    earlier: Earlier | None
    events: EarlierEvents | None
    since: int | None
    memory: int

    @property
    def room(self) -> int:
        """Bytes that all data may take."""
        return max(self.memory - LIBRARY_BYTES, self.memory // 8)

    @property
    def batch_bytes(self) -> int:
        """Bytes of a file that are read at once, about."""
        return min(max(self.room // 64, 1 << 20), BATCH_BYTES)

    @property
    def table_limit(self) -> int:
        """Codes in a smaller range are counted in tables."""
        return max(self.memory >> 8, 1 << 16)


def asked_of(
    spec: Description,
    base: str | os.PathLike[str] | None = None,
    *,
    events: Input | Sequence[Input | None] | None = None,
    items: Input | None = None,
    users: Input | None = None,
    extend: str | os.PathLike[str] | None = None,
    encoding: str | os.PathLike[str] | None = None,
    since: int | str | datetime | None = None,
    memory: int | str = 2 << 30,
) -> Asked:
    """These arguments of :func:`~limerank.data.prepare.prepare`; it names the errors."""
    limit = memory_bytes(memory)
    inputs = inputs_of(spec, base, events=events, items=items, users=users)
    if extend is not None and encoding is not None:
        raise SpecError("give extend, which uses the encoding of a dataset as well, or encoding")
    source = extend if encoding is None else encoding
    earlier = None if source is None else Earlier(Path(source))
    known = None
    if earlier is not None:
        if earlier.manifest["clock"] != inputs.spec.clock:
            raise DataError(
                f"{earlier.path} has {'times' if earlier.manifest['clock'] else 'only an order'}, "
                f"the description {'times' if inputs.spec.clock else 'only an order'}"
            )
        known = None if extend is None else EarlierEvents(earlier, inputs.spec)
    start = None if since is None else milliseconds(since)
    return Asked(inputs, earlier, known, start, limit)
