"""A server that takes the place of a store's server, without its latest changes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil

import pytest

from histories.processes import Store
from limerank.data.events import event_of
from limerank.serving.engine import Serving
from limerank.serving.messages import Rank
from limerank.serving.stores import State, ValkeyStore, Version
from limerank.serving.stores.contract import origin
from limerank.serving.stores.successions import TRIES, Lineage, Successions, in_epoch
from limerank.serving.stores.valkey_cluster import ValkeyCluster
from limerank.serving.stores.valkey_layout import SLOTS
from tests.catalogues import shop
from tests.running import START
from tests.valkey_server import needs_server, server

COLUMNS = {"group": "g1", "tags": "t1|t2", "length": 12.0}


def event(item):
    return event_of({"user": 1, "item": item, "time": START + item, "labels": {"click": 1}})


@contextlib.contextmanager
def older_copy(running):
    """The server loses, when this ends, what changes meanwhile."""
    running.kill()
    copy = running.folder / "copy"
    shutil.copytree(running.folder / "appendonlydir", copy)
    running.start()
    yield
    running.kill()
    shutil.rmtree(running.folder / "appendonlydir")
    copy.rename(running.folder / "appendonlydir")
    running.start()


@needs_server
@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_a_state_of_events_that_were_lost_is_not_used(tmp_path, mode):
    """The number of the user's changes is the same before and after."""
    of = shop("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")

    def seen():
        answer = engine.rank(Rank(user=1, k=90))
        ranked = {one["item"] for one in answer["items"]}
        return answer["events"], [item for item in (1, 2, 3) if item not in ranked]

    with server() as running, ValkeyStore(running.url) as store:
        engine = Serving(of.run.path, tmp_path / "index", store, mode=mode)
        store.append([event(1)])
        with older_copy(running):
            store.append([event(2)])
            assert seen() == (2, [1, 2])
        store.append([event(3)])
        assert seen() == (2, [1, 3])


@needs_server
def test_a_state_of_events_that_were_lost_is_not_stored():
    with server() as running, ValkeyStore(running.url) as store:
        store.append([event(1)])
        with older_copy(running):
            store.append([event(2)])
            state = State(b"f", store.version(1), b"of the events 1 and 2")
            assert store.put_state(1, "window", state) and store.state(1, "window") == state
        store.append([event(3)])
        assert not store.put_state(1, "window", state)
        assert store.state(1, "window") is None
        held = store.held(1, state.version)
        assert held.complete and [one.item for one in held.events] == [1, 3]
        now = State(b"f", held.version, b"of the events 1 and 3")
        assert store.put_state(1, "window", now) and store.state(1, "window") == now


@needs_server
def test_a_server_that_only_starts_again_loses_no_live_item_of_an_index():
    with server() as running, ValkeyStore(running.url) as store:
        before = store.identity()
        running.kill()
        running.start()
        assert store.identity() == before
        assert not store._server.lineage("").promoted


@needs_server
def test_an_index_gets_the_items_that_follow_a_promotion(tmp_path):
    """Item 901 has the number of the change that was lost, which the index contains."""
    asyncio.run(promotion(tmp_path))


async def promotion(tmp_path):
    primary, replica = (Store(tmp_path / name) for name in ("primary", "replica"))
    of = shop("lime-mha")
    shutil.copytree(of.index.path, tmp_path / "index")
    try:
        await primary.start()
        await replica.start("--replicaof", f"127.0.0.1 {primary.port}")
        while not await replica.replicates():
            await asyncio.sleep(0.01)
        with ValkeyStore(f"valkey://127.0.0.1:{primary.port}/0") as store:
            engine = Serving(of.run.path, tmp_path / "index", store)
            before = store.identity()
            while (await replica.ask("GET limerank:{all}identity")) != before:
                await asyncio.sleep(0.01)
            replica.stop()
            engine.put_items([{"item_id": item, **COLUMNS} for item in (900, 902)])
            engine.remove_item("902")
            primary.kill()
            replica.resume()
            assert await replica.ask("REPLICAOF NO ONE") == "+OK"
            pool = store._server.client.connection_pool  # as if its address led to the replica
            pool.disconnect()
            pool.connection_kwargs["port"] = replica.port
            pool.reset()
            engine.put_items([{"item_id": 901, **COLUMNS}])
            engine.put_items([{"item_id": 902, **COLUMNS}])
            assert store.identity() != before and origin(store.identity()) == before
            assert engine.item("901")["rankable"] and engine.item("902")["rankable"]
    finally:
        primary.kill()
        replica.kill()


def test_epochs():
    successions = Successions()
    version = Version(5, 7)
    successions.saw(Lineage(b"a", False))
    successions.saw(Lineage(b"a", False))
    assert successions.epoch == 0 and in_epoch(version, 0) == version
    successions.saw(Lineage(b"b", True))
    first = successions.epoch
    assert first and in_epoch(in_epoch(version, first), first) == version
    successions.saw(Lineage(b"a", False))  # the old one is reached again
    assert successions.epoch not in (0, first)

    epochs = []

    def read(epoch):
        epochs.append(epoch)
        if len(epochs) < 3:
            successions.begin()
        return epoch

    assert successions.read(read) == successions.epoch == epochs[-1] and len(epochs) == 3
    epochs.clear()
    successions.read(lambda epoch: successions.begin() or epochs.append(epoch))
    assert len(set(epochs)) == TRIES + 1 and successions.epoch not in epochs and min(epochs) >= 0


def test_a_replica_that_owns_slots_of_a_cluster_begins_an_epoch():
    cluster = ValkeyCluster("valkey+cluster://h:1")
    first, second, replica = ([b"h", port] for port in (1, 2, 3))
    cluster._learn([[0, 99, first, replica], [100, SLOTS - 1, second]], "h:1")
    cluster._learn([[0, 199, first, replica], [200, SLOTS - 1, second]], "h:1")  # slots moved
    assert cluster.successions.epoch == 0
    cluster._learn([[0, 199, replica, first], [200, SLOTS - 1, second]], "h:1")
    promoted = cluster.successions.epoch
    assert promoted
    cluster._learn([[0, 199, replica, first], [200, SLOTS - 1, second]], "h:1")
    assert cluster.successions.epoch == promoted
