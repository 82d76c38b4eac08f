"""What a cluster loses when a replica takes over from a primary.

Four threads append events to a store in a cluster of three primaries with a replica each, one event
at a time. A primary is killed; the others promote its replica. *Acknowledged* are events of the
users of this primary that were appended before it was killed; *lost* are those of them that are not
stored afterwards. *Unavailable* are the seconds until an event of these users is stored again
(servers declare a primary failed after one second without an answer). With the link cut, the
replica had no connection to the primary for the last half of a second before that. Reproduce with
``python -m benchmarks.failover``.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.rows import write_row
from histories.cluster import cluster
from limerank.data.events import event_of
from limerank.errors import StoreError
from limerank.serving.stores import EventStore, open_store
from limerank.serving.stores.valkey_layout import SLOTS, slot_of

THREADS, USERS, SECONDS, CUT, PATIENCE = 4, 64, 2.0, 0.5, 60.0
"""Writers, users, seconds of writing, seconds without the link, seconds until it has to go on."""


class Failover(NamedTuple):
    """One failover: events acknowledged and lost, and seconds without service."""

    acknowledged: int
    lost: int
    unavailable_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    for link in ("up", "cut"):
        found = [measured(link == "cut") for _ in range(given.repeats)]
        columns: dict[str, Sequence[Any]] = {
            name: [getattr(one, name) for one in found] for name in Failover._fields
        }
        row = write_row(
            "failover",
            {"primaries": 3, "replicas": 1, "link": link},
            {name: round(statistics.median(of), 2) for name, of in columns.items()},
            repeats=given.repeats,
            spread={name: [round(min(of), 2), round(max(of), 2)] for name, of in columns.items()},
            packages=("valkey",),
        )
        print(row["case"], row["metrics"], row["spread"], flush=True)


def measured(cut: bool) -> Failover:
    """One failover under load."""
    with cluster(3, 1) as running, open_store(running.url) as store:
        first = running.primaries[0]
        mine = [user for user in range(USERS) if is_of_first(user, store)]
        stored: set[tuple[int, bytes]] = set()
        ended = threading.Event()
        threads = [
            threading.Thread(target=write, args=(store, mine[number::THREADS], stored, ended))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS)
        replica = running.processes[running.ports[3]]
        if cut:
            replica.send_signal(signal.SIGSTOP)
            client = running.client(first)
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            client.close()
            time.sleep(CUT)
        running.kill(first)
        killed = time.monotonic()
        if cut:
            replica.send_signal(signal.SIGCONT)
        ended.set()
        for thread in threads:
            thread.join()
        waited = until_stored(store, mine[0]) - killed
        held = {(user, one.id) for user in mine for one in store.latest(user, 1 << 30)}
        return Failover(len(stored), len(stored - held), waited)


def is_of_first(user: int, store: EventStore) -> bool:
    """Whether the first primary has a user: it has the first third of the slots."""
    layout = store._layout  # type: ignore[attr-defined]
    return slot_of(layout.of_user(user, "u")[0]) < SLOTS // 3


def write(
    store: EventStore, users: Sequence[int], stored: set[tuple[int, bytes]], ended: threading.Event
) -> None:
    """Append events to users until one fails, or the end."""
    number = 0
    while not ended.is_set():
        number += 1
        user = users[number % len(users)]
        one = event_of({"user": user, "item": 1, "time": number, "id": f"{users[0]}-{number}"})
        try:
            store.append([one])
        except StoreError:
            return
        stored.add((user, one.id))


def until_stored(store: EventStore, user: int) -> float:
    """When an event of a user is stored again."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            store.append([event_of({"user": user, "item": 1, "time": 1 << 40, "id": "after"})])
            return time.monotonic()
        except StoreError:
            time.sleep(0.05)
    raise TimeoutError(f"no replica took over within {PATIENCE:g} s")


if __name__ == "__main__":
    main()
