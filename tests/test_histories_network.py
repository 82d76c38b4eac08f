"""What connects the machines of a history, its stores, and the faults that are done to them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from histories import __main__ as command
from histories import namespaces
from histories.clients import Book
from histories.exporting import Exporter
from histories.nemesis import KINDS, OF_SERVERS, Nemesis
from histories.network import Proxies
from histories.record import Fault
from histories.running import FAULTS, draw
from histories.stores import ClusterOfStores, OneStore, Promoted
from histories.world import World
from limerank.data.events import event_of
from limerank.data.exposures import exposure_of
from limerank.serving.stores import SqliteStore
from tests.valkey_server import needs_server


@contextlib.asynccontextmanager
async def echoing(network, machine):
    """A machine that answers with its name and what it was sent."""

    writers = []

    async def answer(reader, writer):
        writers.append(writer)
        while data := await reader.read(100):
            writer.write(machine.encode() + b":" + data)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    network.listens(machine, server.sockets[0].getsockname()[1])
    yield
    server.close()
    for one in writers:
        one.transport.abort()
    await asyncio.sleep(0)


class Asker:
    """A connection of a machine to a name; each question has another answer."""

    def __init__(self, address):
        self.address, self.count, self.streams = address, 0, None

    async def answer(self, seconds=5.0):
        """Who answered; None: nobody did in time, or the connection was closed."""
        self.count += 1
        try:
            async with asyncio.timeout(seconds):
                if self.streams is None:
                    self.streams = await asyncio.open_connection(*self.address)
                reader, writer = self.streams
                writer.write(b"%d;" % self.count)
                text = b""
                while not text.endswith(b"%d;" % self.count):
                    part = await reader.read(100)
                    if not part:
                        raise EOFError
                    text += part
                return text.partition(b":")[0].decode()
        except TimeoutError:
            return None
        except (OSError, EOFError):
            self.close()
            return None

    def close(self):
        if self.streams is not None:
            self.streams[1].transport.abort()
            self.streams = None


def on_proxies(case):
    """Run a case with two stores that answer, and a server that asks."""

    async def run():
        network = Proxies()
        await network.start(["server 0", "store 0", "store 1"])
        async with echoing(network, "store 0"), echoing(network, "store 1"):
            network.give("store", "store 0")
            asker = Asker(await network.address("server 0", "store"))
            try:
                await case(network, asker)
            finally:
                asker.close()
                await network.close()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["cut", "hold", "hold requests", "hold answers"])
def test_a_connection_is_disturbed_and_healed(how):
    async def case(network, asker):
        assert await asker.answer() == "store 0"
        network.disturb("server 0", "store", how)
        assert await asker.answer(0.1) is None
        network.heal("server 0", "store")
        while await asker.answer() is None:  # a closed connection is opened again
            pass

    on_proxies(case)


def test_a_service_leads_to_another_machine():
    async def case(network, asker):
        assert await asker.answer() == "store 0"
        network.give("store", "store 1")
        assert [await asker.answer(), await asker.answer()] == [None, "store 1"]

    on_proxies(case)


def test_an_isolated_machine_is_reached_by_no_name():
    async def case(network, asker):
        named = Asker(await network.address("store 1", "store 0"))
        network.isolate("store 0")
        assert [await asker.answer(0.1), await named.answer(0.1)] == [None, None]
        network.rejoin("store 0")
        assert [await asker.answer(), await named.answer()] == ["store 0", "store 0"]
        named.close()

    on_proxies(case)


def test_namespaces_are_separated_and_joined():
    why = namespaces.missing()
    assert "machines in namespaces answer" not in why  # they can be, and are not right
    if why:
        pytest.skip(why)
    code = (
        "from histories.namespaces import Namespaces; found = Namespaces().disturbances\n"
        "assert found[:4] == ('cut', 'hold', 'hold requests', 'hold answers')"
    )
    subprocess.run(namespaces.entered(["-c", code]), check=True)


def test_the_network_is_that_which_works(monkeypatch, capsys):
    assert command.network_of("proxies") == "proxies"
    monkeypatch.setattr(command, "missing", lambda: "")
    assert command.network_of("auto") == command.network_of("namespaces") == "namespaces"
    monkeypatch.setattr(command, "missing", lambda: "there is no program ip")
    assert command.network_of("auto") == "proxies"
    assert "there are no namespaces: there is no program ip" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no program ip; expected --network proxies here"):
        command.network_of("namespaces")


def test_the_machine_says_why_there_are_no_namespaces(monkeypatch):
    monkeypatch.setattr(namespaces.shutil, "which", lambda name: None if name == "ip" else name)
    assert "there is no program ip" in namespaces.missing.__wrapped__()
    monkeypatch.setattr(namespaces, "sys", SimpleNamespace(platform="darwin"))
    assert "this is darwin" in namespaces.missing.__wrapped__()


# Faults


@dataclass
class Undone:
    """A system of machines that records which faults have no end."""

    servers: int = 2
    now: float = 0.0
    clocks: bool = True
    pairs: bool = True
    disturbances: tuple[str, ...] = Proxies.disturbances
    machines: tuple[str, ...] = ("store 0", "store 1")
    open: set[object] = field(default_factory=set)
    seen: set[object] = field(default_factory=set)
    asked: int = 0

    @property
    def network(self):
        return self

    stores = network

    def _begin(self, *what):
        assert what not in self.open
        self.open.add(what)
        self.seen.add(what)

    def stop_server(self, server):
        self._begin("server", server)

    def resume_server(self, server):
        self.open.remove(("server", server))

    def kill_server(self, server):
        self._begin("server", server)
        return True

    restart_server = resume_server

    def jump(self, server, seconds):
        self.seen.add(("clock", server))

    def stop(self, machine):
        self._begin(machine)

    def resume(self, machine):
        self.open.remove((machine,))

    async def restart(self, machine, seconds):
        self.seen.add((machine,))

    def links(self, asker):
        return [(asker, one) for one in self.machines]

    def targets(self):
        return self.machines

    def disturb(self, asker, name, how):
        self._begin(asker, name)

    def heal(self, asker, name):
        self.open.remove((asker, name))

    def isolate(self, machine):
        self._begin("alone", machine)

    def rejoin(self, machine=None):
        if machine is None:
            return asyncio.sleep(0)
        return self.open.remove(("alone", machine))

    async def lag(self, seconds):
        self._begin("replica")

    async def fail_over(self):
        self.open.remove(("replica",))
        return "the replica is promoted"

    async def promoted(self):
        self.asked += 1
        return Promoted()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_ends_before_the_next_begins(kind):
    system = Undone()
    nemesis = Nemesis(system, 0, [kind])

    async def some():
        for _ in range(5):
            await nemesis.one(kind, 0.0, asyncio.Event())
            assert not system.open

    asyncio.run(some())
    assert system.seen and {one.kind for one in nemesis.faults} >= {kind}
    assert bool(system.asked) == (kind not in OF_SERVERS)


def test_a_split_separates_a_store_and_a_server_from_all_others():
    system = Undone(servers=3)
    asyncio.run(Nemesis(system, 0, ["split"]).one("split", 0.0, asyncio.Event()))
    stores = {one for one, _ in system.seen if one.startswith("store")}
    servers = {one for one, _ in system.seen if one.startswith("server")}
    assert len(stores) == len(servers) == 1
    others = {"server 0", "server 1", "server 2", "store 0", "store 1", "exporter"}
    assert {other for _, other in system.seen} == others - stores - servers


def test_a_promotion_that_nobody_asked_for_is_a_failover():
    system = Undone()
    nemesis = Nemesis(system, 0, ["split"])

    async def took_over():
        return Promoted(("store 4",), (1,), 2.0)

    system.promoted, system.now = took_over, 9.0
    asyncio.run(nemesis.one("split", 0.0, asyncio.Event()))
    assert nemesis.faults[1:] == [Fault("failover", "store 4 took over", 9.0, 7.0, (1,))]


def test_faults_are_those_that_stores_and_networks_know():
    one = draw(0, seconds=1)
    assert set(one.faults) == {*FAULTS, "stop store", "kill store"}
    assert {"replica"} < set(draw(0, seconds=1, failover="bounded").faults) < set(KINDS)
    cluster = draw(0, seconds=1, store="cluster")
    assert set(cluster.faults) == {*one.faults, "replica"}  # proxies separate no pairs


# Stores


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one", "cluster"])
def test_a_replica_takes_over(kind, tmp_path):
    async def run():
        network = Proxies()
        if kind == "one":
            stores = OneStore(network, tmp_path, "bounded")
        else:
            stores = ClusterOfStores(network, tmp_path, 0)
        await network.start(["server 0", *stores.machines])
        try:
            await stores.start()
            url, before = await stores.url("server 0"), set(stores.targets())
            await stores.lag(0.1)
            what = await stores.fail_over()
            await stores.rejoin()
            found = await stores.promoted()
            assert await stores.url("server 0") == url  # clients need not know
            if kind == "one":
                assert what and not found.machines and before.isdisjoint(stores.targets())
            else:
                assert not what
                ((new,), (shard,), ago) = found
                old = f"store {shard}"
                assert new == f"store {shard + 3}" and {old, new} <= before and ago >= 0
                shards = await stores.shards([f"u{number}" for number in range(50)])
                assert set(shards.values()) == {0, 1, 2}
            assert not (await stores.promoted()).machines
        finally:
            stores.kill()
            await network.close()

    asyncio.run(run())


# Exports


@pytest.mark.slow
def test_a_killed_export_that_is_called_again_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "events.db"
    with SqliteStore(path) as store:
        store.append([event_of({"user": f"u{n % 9}", "item": n, "time": n}) for n in range(90)])
        store.show([exposure_of("u1", 50, "r1", [1, 2])])
    book = Book(0)
    world = World(tmp_path, 0, {})
    exporter = Exporter(book, world, tmp_path / "exports", str(path), [], 0)
    monkeypatch.setattr("histories.exporting.WRITING", 0.0)
    asyncio.run(exporter._killed())
    asyncio.run(exporter.one())
    assert exporter.faults
    (call,) = book.calls
    assert call.status == "ok" and call.answer["beside"] == []
    assert call.answer["rankings"] == ["r1"]
    assert sorted(call.answer["events"]) == sorted([f"u{n % 9}", n] for n in range(90))
