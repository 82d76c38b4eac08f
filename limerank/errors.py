"""Everything that limerank raises on purpose.

    LimerankError
    ├── SpecError          a dataset description or a configuration is wrong
    ├── DataError          a log, a table or an array holds what it must not
    ├── FormatError        a folder on disk is unfinished, damaged, foreign or too new
    │   └── FingerprintError   two folders that do not belong together
    ├── StoreError         an event store cannot be reached, is full or is too busy
    └── UnknownError       a user, an item or a task that nobody has heard of

Each message says what was got, what was expected and what to do. Where a message may reach the
client of a server, ``detail`` says more to whoever operates it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ALIKE = 0.7
"""How alike two names have to be, from 0 to 1, for one to be proposed in place of the other."""
LONGEST = 64
"""Characters of a name that are compared, at most."""
SHOWN = 20
"""Names that a message lists, at most."""


class LimerankError(Exception):
    """Base of all errors that a user of limerank can cause and can mend.

    Args:
        message: what ``str`` of the error says.
        detail: the same for whoever operates the process, with addresses and paths that the message
            leaves out; the message itself when not given. Neither ever holds a password.

    Attributes:
        detail: see above; what logs and the command line show.
    """

    def __init__(self, message: str = "", *, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = message if detail is None else detail


class SpecError(LimerankError):
    """A dataset description, a configuration or a command's options contradict themselves."""


class DataError(LimerankError):
    """Input data cannot be used: a missing column, too many bad rows, NaN where none may be."""


class FormatError(LimerankError):
    """A dataset, run or index folder is unfinished, damaged or of another format version."""


class FingerprintError(FormatError):
    """Two folders do not belong together, such as an index built by another model."""


class StoreError(LimerankError):
    """An event store did not do what it was asked for; nothing that it acknowledged is lost.

    What was to be written may or may not be there: writing it again is safe. The message of a store
    that is open names neither its address nor its path, so that a server may show it to a client;
    ``detail`` does.
    """


class UnknownError(LimerankError):
    """A user, item or task id is not known where it must be."""


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """``"; did you mean 'click'?"`` where one of the known names is like ``name``, else ``""``."""
    names = {str(one).casefold(): str(one) for one in known}
    found = difflib.get_close_matches(str(name)[:LONGEST].casefold(), names, n=1, cutoff=ALIKE)
    return f"; did you mean {names[found[0]]!r}?" if found else ""


def check_names(what: str, given: Iterable[object], known: Iterable[object]) -> None:
    """Refuse names that are not among those known.

    Args:
        what: what the names are of, such as "task".
        given: the names to check.
        known: the names that there are.

    Raises:
        UnknownError: it lists what is unknown and what is known, and proposes the nearest name.
    """
    names = list(known)
    unknown = [name for name in given if name not in names]
    if unknown:
        listed = ", ".join(map(repr, names[:SHOWN])) or "none"
        listed += f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        given_names = ", ".join(map(repr, unknown[:SHOWN]))
        raise UnknownError(
            f"no {what} is called {given_names}; known: {listed}{did_you_mean(unknown[0], names)}"
        )


def check_choice(what: str, given: object, known: Iterable[object]) -> None:
    """Refuse a setting that is none of its possible values.

    Raises:
        SpecError: it lists the possible values, and proposes the nearest one.
    """
    names = list(known)
    if given not in names:
        raise SpecError(
            f"no {what} {given!r}; expected one of {', '.join(map(str, names))}"
            f"{did_you_mean(given, names)}"
        )
