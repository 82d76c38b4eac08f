"""Admission: keys, request rates, and the origin of requests to a server without keys."""

from __future__ import annotations

import functools
import hmac
import ipaddress
import re
import time
from collections import OrderedDict

from starlette.requests import Request

from limerank.serving.http.problems import Problem
from limerank.serving.http.settings import Access, Settings, is_loopback

ALLOWS: dict[Access, tuple[Access, ...]] = {
    "read": ("read", "write", "admin"),
    "write": ("write", "admin"),
    "admin": ("admin",),
}
BURST_SECONDS = 2.0
"""A key may send the requests of so many seconds at once."""
WRONG_RATE, WRONG_BURST = 1.0, 20.0
"""Wrong or missing keys per second and address, and at once; further ones are answered with 429.
Right keys always pass: otherwise one client that guesses would block all others behind the same
address."""
MOST_PACED = 10_000
"""Keys or addresses whose rate is tracked; the least recently used is dropped first."""
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:@\[\]]+))(?::[0-9]{0,5})?")
"""An address in brackets or a name, and perhaps a port."""


class Pace:
    """Limits the requests per second of each of many keys or addresses (a token bucket)."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, who: str) -> float:
        """Count a request; 0 where it is within the rate, else the seconds until one will be."""
        now = time.monotonic()
        left, last = self._left.pop(who, (self.burst, now))
        left = min(self.burst, left + (now - last) * self.rate)
        late = left < 1
        self._left[who] = (left if late else left - 1, now)
        if len(self._left) > MOST_PACED:
            self._left.popitem(last=False)
        return (1 - left) / self.rate if late else 0.0


class Admission:
    """Keys, rates and origins of all requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._keys = [
            (key.encode(), access) for access, keys in settings.keys.items() for key in keys
        ]
        rate = settings.rate
        self._pace = None if rate is None else Pace(rate, max(1.0, rate * BURST_SECONDS))
        self._wrong = Pace(WRONG_RATE, WRONG_BURST)

    def admit(self, access: Access | None, request: Request) -> None:
        """Admit a request, or raise a Problem.

        Args:
            access: the access that its key needs; None: it needs no key.
            request: the request; its body is not read.
        """
        who = address_of(request.client.host if request.client else "?")
        if self.settings.open:
            self._check_origin(request)
        elif access is not None:
            who = self._key(access, request, who)
        if self._pace is not None and access is not None:
            wait = self._pace.wait(who)
            if wait:
                raise _paced(f"more than {self._pace.rate:g} requests a second", wait)

    def check_access(self, access: Access, request: Request) -> None:
        """Refuse an admitted request whose body needs more access than its route; raises a
        Problem."""
        if not self.settings.open:
            self._key(access, request, address_of(request.client.host if request.client else "?"))

    def _key(self, access: Access, request: Request, address: str) -> str:
        """The key of a request, in the form that the server holds."""
        scheme, _, given = request.headers.get("authorization", "").strip().partition(" ")
        given = given.strip()
        what = "the key is unknown"
        if scheme.lower() != "bearer" or not given:
            what = "no key was given; send the header Authorization: Bearer KEY"
        # Every key is compared, in constant time.
        found = [
            (key, allows)
            for key, allows in self._keys
            if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), key)
        ]
        if not found or what != "the key is unknown":
            wait = self._wrong.wait(address)
            if wait:
                raise _paced("too many wrong keys came from this address", wait)
            raise Problem(401, what, {"WWW-Authenticate": "Bearer"})
        if not any(allows in ALLOWS[access] for _, allows in found):
            raise Problem(403, f"this needs a key that may {access}; yours may {found[0][1]}")
        return found[0][0].decode()

    def _check_origin(self, request: Request) -> None:
        """Without keys the server answers programs on this machine and its own page. Requests that
        other web pages make a browser send are refused."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not is_loopback(_name(hosts[0])):
            raise Problem(
                403,
                "without keys the server answers to this machine's names alone: expected the "
                "header Host: localhost or 127.0.0.1",
            )
        for origin in request.headers.getlist("origin"):
            if origin.lower() != f"{request.url.scheme}://{hosts[0].lower()}":
                raise Problem(
                    403, "without keys the server answers its own page alone: Origin is another"
                )
        if request.headers.get("sec-fetch-site", "none") == "cross-site" and (
            request.headers.get("sec-fetch-mode") != "navigate"
        ):
            raise Problem(403, "without keys the server answers its own page alone")

    def check_type(self, request: Request) -> None:
        """Without keys a body needs the JSON content type: another web page cannot set it without
        the browser asking the server first."""
        if not self.settings.open:
            return
        given = request.headers.get("content-type", "")
        if given.partition(";")[0].strip().lower() != "application/json":
            raise Problem(
                415,
                f"the body's type is {given[:80]!r}; expected the header "
                "Content-Type: application/json",
            )


@functools.lru_cache(maxsize=4096)
def address_of(host: str) -> str:
    """The address that limits count: for IPv6 its /64 network, which belongs to one client."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


def _name(host: str) -> str:
    """The name in a Host header, without its port; "" where the header is broken."""
    found = _HOST.fullmatch(host.strip().lower())
    return "" if found is None else found[1] or found[2]


def _paced(what: str, wait: float) -> Problem:
    return Problem(429, f"{what}; try again later", {"Retry-After": str(max(1, round(wait)))})
