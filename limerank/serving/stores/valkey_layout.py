"""Where a Valkey event store keeps what: the names of its keys.

Keys, after the prefix (``USER`` is the external id, ``{TAG}`` the tag of the user's bucket)::

    format, buckets          version of this layout; number of buckets
    {TAG}names               sorted set: the bucket's users, in the order of their text
    {TAG}sums                hash: users, events, shown (exposures ever stored) of the bucket
    {TAG}shown               sorted set: RANKING|USER by the change that stored it
    {TAG}u:USER              hash: born, count, dropped, features (JSON), from, listed, stated
    {TAG}t:USER, {TAG}e:USER sorted set: event id by time; hash: event id -> COUNT|packed event
    {TAG}c:USER              list: COUNT|event id, in the order of the changes since ``from``
    {TAG}x:USER, {TAG}y:USER sorted set: ranking by time; hash: ranking -> packed exposure
    {TAG}s:USER              hash: kind -> NUMBER|born, count, length of fingerprint, fingerprint,
                             state; NUMBER counts the user's states, as ``stated`` does
    {all}items, {all}changes hash: item -> JSON, empty where removed; sorted set: item by change
    {all}change              number of changes of items
    {all}erase               when a user was first deleted after the servers last rewrote their logs
    {all}identity            random text that differs between stores, and after a promotion
    {all}lineage             the server that had the identity last

A cluster keeps keys of one tag in one place, so that a script can change all that belongs to a
user. Users are spread over buckets by a checksum of their ids, and buckets evenly over the slots of
a cluster: no key is read or written for all users.

``c:USER`` contains all events accepted since the change ``from`` if ``listed`` equals ``count``.
Otherwise it begins again.
"""

from __future__ import annotations

import functools
import zlib
from binascii import crc_hqx
from dataclasses import dataclass

from limerank.errors import SpecError

FORMAT = 2
MIGRATING = b"1 to 2"
"""Stands for the format while keys of format 1 are moved."""
BUCKETS = 256
"""Buckets of a new store. A server of a cluster has about as many as any other, so that the load is
even up to some dozens of servers; counts and searches ask all of them."""
SLOTS = 16384
"""Of every cluster."""
_ALL = "all"


def slot_of(key: str | bytes) -> int:
    """The slot of a key: the CRC-16 (XMODEM) of what stands in its first braces, if anything does,
    else of the key, modulo :data:`SLOTS`."""
    data = key.encode() if isinstance(key, str) else key
    start = data.find(b"{")
    end = data.find(b"}", start + 1) if start >= 0 else -1
    return crc_hqx(data[start + 1 : end] if end > start + 1 else data, 0) % SLOTS


@functools.cache
def tags(buckets: int) -> tuple[str, ...]:
    """The tags of buckets: the b-th lies in the b-th of equally large ranges of slots."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < buckets:
        tag = f"b{number:x}"
        found.setdefault(slot_of(tag) * buckets // SLOTS, tag)
        number += 1
    return tuple(found[bucket] for bucket in range(buckets))


@dataclass(frozen=True)
class Layout:
    """The keys of one store.

    Attributes:
        prefix: the beginning of all keys.
        buckets: the number of buckets.
    """

    prefix: str
    buckets: int

    def __post_init__(self) -> None:
        if "{" in self.prefix or "}" in self.prefix:
            raise SpecError(f"the prefix {self.prefix!r} contains braces; leave them out")
        if not 1 <= self.buckets <= SLOTS:
            raise SpecError(f"{self.buckets} buckets, expected 1 to {SLOTS:,}")

    def bucket(self, user: int | str) -> int:
        """The bucket of a user."""
        return zlib.crc32(str(user).encode()) % self.buckets

    def of_user(self, user: int | str, names: str) -> list[str]:
        """Keys of a user: one for each letter of ``names``."""
        beginning = self._beginning(self.bucket(user))
        return [f"{beginning}{name}:{user}" for name in names]

    def of_bucket(self, bucket: int, *names: str) -> list[str]:
        """Keys of a bucket."""
        beginning = self._beginning(bucket)
        return [f"{beginning}{name}" for name in names]

    def of_all(self, *names: str) -> list[str]:
        """Keys of the store."""
        return [f"{self.prefix}{{{_ALL}}}{name}" for name in names]

    def _beginning(self, bucket: int) -> str:
        return f"{self.prefix}{{{tags(self.buckets)[bucket]}}}"
