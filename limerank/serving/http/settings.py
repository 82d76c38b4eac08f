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
    """Settings of a server besides its run, index and store."""

    host: str = "127.0.0.1"
    """Address to listen on. Behind a reverse proxy on the same machine, keep the default."""
    port: int = Field(8000, ge=0, lt=65536)
    """TCP port; 0 chooses a free one."""
    keys: dict[Access, tuple[str, ...]] = Field(default_factory=dict)
    """API keys by access: "read" may rank, "write" may also add events and users, "admin" may also
    change items and reload."""
    open: bool = False
    """Whether the server runs without keys. It is allowed on a loopback address only, and requests
    from pages of other origins are refused."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of reverse proxies. The server trusts their X-Forwarded-For header and
    does not limit their connections by address."""
    body_bytes: int = Field(8 << 20, ge=1024)
    """Largest request body in bytes; a larger one is answered with 413. Raise it for large batches
    of events or items."""
    body_seconds: float = Field(10.0, gt=0)
    """Time limit for receiving a request body; after it the answer is 408."""
    bodies_bytes: int = Field(64 << 20, ge=1 << 20)
    """Largest total of all bodies being received, not counting the first 64 KiB of each; beyond it
    the answer is 503."""
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Requests computed at the same time. By default the number of cores; lower it if other
    programs share the machine."""
    store_threads: int = Field(16, ge=1)
    """The same if the event store is on another machine: such requests mostly wait for the store
    and need no core."""
    waiting: int = Field(256, ge=1)
    """Requests that may wait to be computed; beyond it the answer is 503. A long queue adds
    latency, a short one rejects bursts."""
    seconds: float = Field(10.0, gt=0)
    """Time limit of a request, waiting included; after it the answer is 503."""
    admin_threads: int = Field(2, ge=1)
    """Administrative requests computed at the same time, in threads of their own."""
    admin_waiting: int = Field(16, ge=1)
    """Administrative requests that may wait; beyond it the answer is 503."""
    admin_seconds: float = Field(120.0, gt=0)
    """Time limit of an administrative request. Reloading opens a complete index, so allow for its
    size."""
    connections: int = Field(1000, ge=16)
    """Open connections in total; fewer if the process may open fewer files. For a further one, the
    server closes the connection that has been idle longest, of the address with the most
    connections."""
    address_connections: int = Field(256, ge=4)
    """Open connections per client address. For a further one, the server closes the address's
    connection that has been idle longest."""
    header_seconds: float = Field(10.0, gt=0)
    """Time limit for receiving a request's headers; after it the answer is 408."""
    idle_seconds: float = Field(30.0, gt=0)
    """Time after which a connection without a request is closed. Keep it above the keep-alive time
    of your load balancer."""
    write_seconds: float = Field(30.0, gt=0)
    """Time limit for a client to receive a response; after it the connection is closed."""
    rate: float | None = Field(None, gt=0)
    """Requests per second and key (or address, without keys), averaged over some seconds; beyond it
    the answer is 429."""
    outcome_seconds: float = Field(3600.0, gt=0)
    """Time after a ranking was shown in which events count as its outcomes, for the live numbers of
    arms and the counters of items. Rankings are counted when it is over."""
    wave_seconds: float = Field(0.0, ge=0, le=86_400)
    """Time within which servers load a change of what they watch (`--watch`), each at a moment that
    follows from its host name, its port and the change, so that not all do at once. 0: at once."""
    watch_seconds: float = Field(10.0, ge=0.1, le=86_400)
    """Time between two looks at what is watched under a URI (`--watch s3://...`). Folders and files
    of the machine are looked at every two seconds."""
    keep_states: bool = False
    """Whether states of users are also written to the event store, after every 32 changes of a
    user. A server that starts then reads them, and not all events of each user."""
    state_bytes: int = Field(256 << 20, ge=1 << 20)
    """Bytes of states of users in memory, about, of each model; the least recently used ones leave
    and are computed again, or read from the event store."""
    shard_seconds: float = Field(2.0, gt=0)
    """Time limit of the answers of shards (`--shards`). A shard that does not answer in time makes
    a ranking fail, or be partial if the request allows that."""
    log_seconds: float = Field(5.0, gt=0)
    """Time limit in which the brokers of an event log (`--log`) acknowledge a change; after it the
    answer is 503. Keep it below `seconds`."""
    drain_seconds: float = Field(20.0, ge=0)
    """Time limit for shutting down after SIGTERM. Running requests get three quarters of it. Set
    the limit of your process manager higher."""

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
