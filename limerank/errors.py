"""Everything that limerank raises on purpose.

    LimerankError
    ├── SpecError          a dataset description or a configuration is wrong
    ├── DataError          a log, a table or an array has values that cannot be used
    ├── FormatError        a folder on disk is unfinished, damaged, foreign or too new
    │   └── FingerprintError   two folders that do not belong together
    ├── StoreError         an event store cannot be reached, is full or is too busy
    ├── ShardError         a server that ranks a part of the catalogue does not answer
    ├── StorageError       the storage of a URI cannot be reached, or refuses what is asked
    └── UnknownError       an unknown user, item or task

Each message names the value given, the value expected and what to do. Where a message may reach the
client of a server, ``detail`` has more for the operator.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral

ALIKE = 0.7
"""Similarity of two names, from 0 to 1, from which one is proposed in place of the other."""
LONGEST = 64
"""Characters of a name that are compared, at most."""
SHOWN = 20
"""Names that a message lists, at most."""


class LimerankError(Exception):
    """Base of all errors that a user of limerank can cause and can correct.

    Args:
        message: ``str`` of the error.
        detail: the message for the operator of the process, with addresses and paths that the
            message leaves out; the message itself when not given. Neither contains a password.

    Attributes:
        detail: see above; logs and the command line show it.
    """

    def __init__(self, message: str = "", *, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = message if detail is None else detail


class SpecError(LimerankError):
    """A dataset description, a configuration or a command's options contradict themselves."""


class DataError(LimerankError):
    """Input data cannot be used: a missing column, too many bad rows, a NaN that is not allowed."""


class FormatError(LimerankError):
    """A dataset, run or index folder is unfinished, damaged or of another format version."""


class FingerprintError(FormatError):
    """Two folders do not belong together, such as an index built by another model."""


class StoreError(LimerankError):
    """An event store did not complete an operation; nothing that it acknowledged is lost.

    The data of the operation may or may not be stored: writing it again is safe. The message of an
    open store names neither its address nor its path, so that a server may show it to a client;
    ``detail`` names them.
    """


class ShardError(LimerankError):
    """A server that ranks one shard of the catalogue did not answer, or answered with an error.

    The message names the shard by its number; ``detail`` has its address.
    """


class StorageError(LimerankError):
    """The storage behind a URI, such as ``s3://``, cannot be reached or refuses what is asked.

    The message never contains a key or a secret.
    """


class UnknownError(LimerankError):
    """A user, item or task id is required to be known, and is not."""


def with_article(noun: str) -> str:
    """``"an int"``, ``"a list"``: a noun after its indefinite article, by its first letter."""
    return f"{'an' if noun[:1].lower() in set('aeiou') else 'a'} {noun}"


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """``"; did you mean 'click'?"`` where a known name is similar to ``name``, else ``""``."""
    names = {str(one).casefold(): str(one) for one in known}
    found = difflib.get_close_matches(str(name)[:LONGEST].casefold(), names, n=1, cutoff=ALIKE)
    return f"; did you mean {names[found[0]]!r}?" if found else ""


def check_names(what: str, given: Iterable[object], known: Iterable[object]) -> None:
    """Refuse names that are not among those known.

    Args:
        what: the kind of name, such as "task".
        given: the names to check.
        known: the valid names.

    Raises:
        UnknownError: it lists the unknown and the known names, and proposes the most similar one.
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


def check_integer(name: str, given: object, least: int) -> None:
    """Refuse a count that is not an integer, or too small; True and 2.0 are not integers.

    Raises:
        SpecError: it names the argument, the value given and the values expected.
    """
    integer = isinstance(given, Integral) and not isinstance(given, bool)
    if not integer or int(given) < least:  # type: ignore[call-overload]
        raise SpecError(f"{name} is {given!r:.80}, expected an integer, at least {least}")


def check_choice(what: str, given: object, known: Iterable[object]) -> None:
    """Refuse a setting whose value is not one of the possible ones.

    Raises:
        SpecError: it lists the possible values, and proposes the most similar one.
    """
    names = list(known)
    if given not in names:
        raise SpecError(
            f"no {what} {given!r}; expected one of {', '.join(map(str, names))}"
            f"{did_you_mean(given, names)}"
        )
