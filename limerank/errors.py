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
