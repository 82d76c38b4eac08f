"""The event store in a cluster: slots that move, servers that fail, addresses. The contract of all
stores runs on a cluster in ``tests/test_stores.py``."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from limerank.errors import SpecError, StoreError
from limerank.serving.stores import ValkeyStore, open_store
from limerank.serving.stores.valkey_layout import SLOTS, slot_of
from tests.stores import event, exposure
from tests.valkey_server import cluster, free_ports, needs_server, server

USERS = 40


def slots_of(store):
    """Slots of the buckets, ascending."""
    return sorted(slot_of(store._layout.of_bucket(part, "names")[0]) for part in range(store.parts))


def move(running, slot, source, target):
    """Move a slot key by key, as the commands of an operator do."""
    names = {
        port: running.client(port).execute_command("CLUSTER", "MYID") for port in (source, target)
    }
    giver, taker = running.client(source), running.client(target)
    taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
    giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
    while keys := giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 3):
        giver.execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
        time.sleep(0.001)
    for client in (taker, giver):
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])
        client.close()


@needs_server
def test_slots_that_move_lose_no_event():
    with cluster() as running, open_store(running.url) as store:
        store.append([event(user, at=0, id="first") for user in range(USERS)])
        source, target, _ = running.primaries
        done, errors, written = threading.Event(), [], []

        def post(number):
            at = 0
            while not done.is_set():
                at += 1
                some = [event(user, at=at, id=f"{number}-{at}") for user in range(USERS)]
                try:
                    assert store.append(some) == ["accepted"] * USERS
                    assert store.held(at % USERS).events[-1].time >= at
                except Exception as error:  # noqa: BLE001
                    errors.append(error)
                    return
                written.append(len(some))

        threads = [threading.Thread(target=post, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        mine = [slot for slot in slots_of(store) if slot < SLOTS // 3]
        for slot in mine[:25]:
            move(running, slot, source, target)
        done.set()
        for thread in threads:
            thread.join()
        assert not errors and written
        assert store.counts() == (USERS, USERS + sum(written))
        held = sum(len(store.held(user).events) for user in range(USERS))
        assert held == USERS + sum(written)
        with open_store(running.url) as other:  # which learns the present map
            assert other.counts() == store.counts()


@needs_server
def test_a_user_half_moved_is_waited_for(monkeypatch):
    """A slot whose keys are in two servers: commands for keys of both wait until all have moved."""
    with cluster() as running, open_store(running.url, buckets=1) as store:
        store.append([event(7, at=1), event(8, at=1)])
        (slot,) = slots_of(store)
        source = running.primaries[slot * 3 // SLOTS]
        target = next(port for port in running.primaries if port != source)
        giver, taker = running.client(source), running.client(target)
        ids = [client.execute_command("CLUSTER", "MYID") for client in (giver, taker)]
        taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        moved = store._layout.of_user(7, "u")
        giver.execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *moved)
        assert store.version(7) is not None and store.version(8) is not None
        monkeypatch.setattr("limerank.serving.stores.valkey_cluster.SECONDS", 0.2)
        with pytest.raises(StoreError, match=r"changing its servers now: nothing .* is lost"):
            store.append([event(7, at=2)])
        monkeypatch.setattr("limerank.serving.stores.valkey_cluster.SECONDS", 30.0)
        promise = store.appending([event(7, at=2)])
        keys = giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        giver.execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
        assert promise.result(30) == ["accepted"]
        for client in (taker, giver):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        assert [one.time for one in store.held(7).events] == [1, 2]


@needs_server
def test_a_replica_takes_over_from_a_killed_primary():
    with cluster(3, 1) as running, open_store(running.url) as store:
        events = [event(user, at=at, id=f"{at}") for at in range(3) for user in range(USERS)]
        store.append(events)
        store.show([exposure(user) for user in range(USERS)])
        for port in running.primaries:
            running.client(port).execute_command("WAIT", 1, 5000)
        assert store.check() == []
        running.kill(running.primaries[0])
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(StoreError):
                store.append([event(user, at=9, id="after") for user in range(USERS)])
                break
            time.sleep(0.1)
        assert store.counts() == (USERS, 4 * USERS)
        assert all(len(store.held(user).events) == 4 for user in range(USERS))
        assert all(store.exposure_count(user) == 1 for user in range(USERS))
        (problem,) = store.check()
        assert problem.startswith("1 servers of the event store's cluster have failed; start them")


@needs_server
def test_a_cluster_without_a_part_of_its_slots():
    with cluster() as running, open_store(running.url) as store:
        store.append([event(user, at=1) for user in range(USERS)])
        running.kill(running.primaries[2])
        with pytest.raises(StoreError, match="cannot be reached"):
            store.counts()
        running.start(running.primaries[2])
        running.wait()
        assert store.counts() == (USERS, USERS)


@needs_server
def test_settings_of_all_servers_are_checked():
    with cluster() as running, open_store(running.url) as store:
        assert store.check() == []
        client = running.client(running.primaries[1])
        client.config_set("appendfsync", "everysec")
        (problem,) = store.check()
        assert "may lose acknowledged events: it has appendfsync everysec" in problem
        with pytest.raises(StoreError, match="may lose acknowledged events"):
            open_store(running.url)
        with ValkeyStore(running.url, durable=False) as other:
            assert other.check() == []
        with pytest.raises(StoreError, match=r"write its address as valkey\+cluster://"):
            open_store(f"valkey://127.0.0.1:{running.primaries[0]}")


@needs_server
def test_one_server_is_no_cluster():
    with pytest.raises(StoreError, match="cannot be reached"):
        open_store("valkey+cluster://127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(SpecError, match=r"one such as valkey\+cluster://USER"):
        open_store("valkey+cluster://")
    (port,) = free_ports(1)
    with (
        server("--port", str(port), "--bind", "127.0.0.1"),
        pytest.raises(StoreError, match="is not a cluster; write its address as valkey://"),
    ):
        open_store(f"valkey+cluster://127.0.0.1:{port}")
