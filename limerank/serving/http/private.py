"""Texts that are hidden: passwords never leave the server, paths never reach a client."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

_login = re.compile(r"(\w+://)[^\s/'\"]*@")
_password = re.compile(r"(?i)((?:password|passwd|secret|token)=)[^&\s'\"]+")
_address = re.compile(r"\b(?:(?:valkeys?|rediss?)(?:\+cluster)?|kafkas?|unix|file)://[^\s'\"]+")
_path = re.compile(r"(?<![\w/.:])(?:~|\.{0,2})/(?:[^\s/'\":;,()]+/)*[^\s/'\":;,()]+")
LEAST_SECRET = 4
"""Characters of a hidden text, at least: shorter texts are parts of words."""


class Private:
    """Texts that are hidden.

    Args:
        secrets: passwords and keys: hidden in answers and logs.
        paths: paths and addresses of the server's configuration: hidden in answers.
    """

    def __init__(self, secrets: Iterable[str] = (), paths: Iterable[str] = ()) -> None:
        self._secrets = _longest(secrets)
        self._paths = _longest(paths)

    @classmethod
    def of_store(cls, store: str, secrets: Iterable[str], paths: Iterable[str]) -> Private:
        """With the password in a store's address among the secrets."""
        more = []
        parts = None
        with contextlib.suppress(ValueError):  # a path has no password
            parts = urlsplit(store)
        if parts is not None and parts.scheme and parts.netloc:
            login = parts.netloc.rpartition("@")[0]
            given = login.partition(":")[2]
            query = [v for k, v in parse_qsl(parts.query) if "pass" in k.lower()]
            more = [text for raw in (given, *query) for text in (raw, unquote(raw))]
        return cls([*secrets, *more], [*paths, store])

    def logged(self, text: str) -> str:
        """A text for the log: without passwords and keys."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _password.sub(r"\1***", _login.sub(r"\1***@", text))

    def hidden(self, text: str) -> str:
        """A text for clients: without passwords, keys, addresses of stores and paths."""
        text = self.logged(text)
        for path in self._paths:
            text = text.replace(path, "...")
        return _path.sub("...", _address.sub("...", text))


def _longest(texts: Iterable[str]) -> list[str]:
    """The longest first, since one may contain another."""
    return sorted({text for text in texts if len(text) >= LEAST_SECRET}, key=len, reverse=True)
