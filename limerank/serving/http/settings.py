"""How a server is run: keys, limits, times."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from limerank.validation import Frozen

Access = Literal["read", "write", "admin"]
VARIABLES: dict[Access, str] = {
    "read": "LIMERANK_READ_KEYS",
    "write": "LIMERANK_WRITE_KEYS",
    "admin": "LIMERANK_ADMIN_KEYS",
}
"""Environment variables that hold keys, separated by commas."""
LEAST_KEY = 16
"""Characters of a key."""


class Settings(Frozen):
    """What a server is given beside a run, an index and a store."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)
    """0: any free one."""
    keys: dict[Access, tuple[str, ...]] = Field(default_factory=dict)
    """Keys for ranking ("read"), for events and users ("write") and for items and reloading
    ("admin"). One that may write may read, one that may administer may do all."""
    open: bool = False
    """No keys at all. Only on a loopback address, and not for the pages of others."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of reverse proxies. What they say of a client's address
    (X-Forwarded-For) is believed, and their connections are not counted by address."""
    body_bytes: int = Field(8 << 20, ge=1024)
    """Of a request, at most; more is 413."""
    body_seconds: float = Field(10.0, gt=0)
    """In which a request's body has to arrive; else 408."""
    bodies_bytes: int = Field(64 << 20, ge=1 << 20)
    """Of all bodies that are under way, but for the first 64 KiB of each; more are 503."""
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Requests that are computed at a time."""
    store_threads: int = Field(16, ge=1)
    """As ``threads``, with a store on another machine: most of the time they wait for it, which
    needs no core."""
    waiting: int = Field(256, ge=1)
    """Requests that wait to be computed, at most; more are 503."""
    seconds: float = Field(10.0, gt=0)
    """In which a request has to be answered, waiting included; else 503."""
    admin_threads: int = Field(2, ge=1)
    """Administrators' requests that are under way at a time: they have threads of their own."""
    admin_waiting: int = Field(16, ge=1)
    """Administrators' requests that wait, at most; more are 503."""
    admin_seconds: float = Field(120.0, gt=0)
    """In which an administrator's request has to be answered: reloading opens whole indexes."""
    connections: int = Field(1000, ge=16)
    """Open at a time; fewer where the process may open fewer files. For one more the connection
    that has waited longest without a request is closed, of the address that has most of them."""
    address_connections: int = Field(256, ge=4)
    """Of one address, open at a time; for one more its longest waiting one is closed."""
    header_seconds: float = Field(10.0, gt=0)
    """In which a request's headers have to arrive; else 408."""
    idle_seconds: float = Field(30.0, gt=0)
    """For which a connection may wait for its next request."""
    write_seconds: float = Field(30.0, gt=0)
    """In which a client has to take an answer; else its connection is closed."""
    rate: float | None = Field(None, gt=0)
    """Requests per second and key (or address, without keys), over some seconds; more are 429."""
    drain_seconds: float = Field(20.0, ge=0)
    """In which the process ends when it is told to: requests under way get three quarters of it."""

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if self.open and not is_loopback(self.host):
            raise ValueError(
                f"a server without keys may listen on a loopback address alone; got {self.host!r}. "
                "Set keys, or host 127.0.0.1"
            )
        if not self.open and not any(self.keys.values()):
            raise ValueError(
                "a server needs keys: set "
                + ", ".join(VARIABLES.values())
                + " (or a key file), or say --no-keys to serve without keys on this machine alone"
            )
        for proxy in self.proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError(
                    f"the proxy {proxy!r} is no address or network; expected such as 10.0.0.2 or "
                    "10.0.0.0/24"
                ) from None
        for access, keys in self.keys.items():
            for key in keys:
                if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                    raise ValueError(
                        f"a {access} key is too short or has unprintable characters; make one of "
                        f"at least {LEAST_KEY} printable ASCII ones, such as "
                        f"{secrets.token_urlsafe(24)}"
                    )
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keys_of_environment(file: Path | None = None) -> dict[Access, tuple[str, ...]]:
    """Keys from the environment, and from a file of lines such as ``read KEY`` or ``admin KEY``.

    Raises:
        ValueError: a line of the file is something else.
    """
    found: dict[Access, list[str]] = {
        access: [key.strip() for key in os.environ.get(name, "").split(",") if key.strip()]
        for access, name in VARIABLES.items()
    }
    lines = [] if file is None else file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in VARIABLES:
            raise ValueError(f"{file}, line {number}: expected read, write or admin, and a key")
        found[words[0]].append(words[1])
    return {access: tuple(keys) for access, keys in found.items() if keys}
