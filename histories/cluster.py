"""A Valkey or Redis cluster as processes on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histories.processes import store_program


@dataclass(frozen=True)
class Node:
    """A server of a cluster.

    Attributes:
        port: at which it listens. Other servers of the cluster use the port 10,000 above it.
        host: the same.
        announced: host and port at which clients and replicas find it; the above if not given.
        prefix: words before the command, which run it on another machine.
    """

    port: int
    host: str = "127.0.0.1"
    announced: tuple[str, int] | None = None
    prefix: tuple[str, ...] = ()

    @property
    def address(self) -> tuple[str, int]:
        return self.announced or (self.host, self.port)


class Cluster:
    """Servers of a cluster: each primary has an equal part of the slots.

    Their map is written before they start, so that they need not find each other.

    Args:
        folder: of their files.
        primaries: servers that own slots.
        replicas: of each primary.
        options: for every server.
        nodes: the primaries, then the replicas; servers on loopback if not given.
    """

    def __init__(
        self,
        folder: Path,
        primaries: int,
        replicas: int = 0,
        *options: str,
        nodes: Sequence[Node] = (),
    ) -> None:
        self.folder, self.options = folder, options
        found = nodes or [Node(port) for port in free_ports(primaries * (1 + replicas))]
        self.nodes = {one.port: one for one in found}
        self.ports = list(self.nodes)
        self.primaries = self.ports[:primaries]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for port in self.ports:
            home = folder / str(port)
            home.mkdir(parents=True)
            lines = [self._line(at, one, port) for at, one in enumerate(self.ports)]
            lines.append(f"vars currentEpoch {primaries} lastVoteEpoch 0")
            (home / "nodes.conf").write_text("\n".join(lines) + "\n")
        hosts = ",".join(":".join(map(str, self.nodes[one].address)) for one in self.primaries)
        self.url = f"valkey+cluster://{hosts}"

    def _line(self, at: int, port: int, reader: int) -> str:
        """What the map of a server says of the server ``at``."""
        primaries = len(self.primaries)
        of = self.primaries[at % primaries]
        role = "master" if port == of else "slave"
        flags = f"myself,{role}" if port == reader else role
        slots = ""
        if port == of:
            first, last = (16384 * (at + k) // primaries for k in (0, 1))
            slots = f" {first}-{last - 1}"
        host, shown = self.nodes[port].address
        return (
            f"{name_of(port)} {host}:{shown}@{port + 10_000} {flags} "
            f"{'-' if port == of else name_of(of)} 0 0 {at % primaries + 1} connected{slots}"
        )

    def begin(self) -> None:
        """Start all servers, and wait until they are a cluster."""
        for port in self.ports:
            self.start(port)
        self.wait()

    def start(self, port: int) -> None:
        """Start the server of a port."""
        program = store_program()
        assert program is not None, "no server is installed"
        node = self.nodes[port]
        settings = {
            "port": str(port),
            "bind": node.host,
            "protected-mode": "no",
            "dir": str(self.folder / str(port)),
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": "1000",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        if node.announced is not None:
            host, shown = node.announced
            settings |= {
                "cluster-announce-ip": host,
                "cluster-announce-port": str(shown),
                "cluster-announce-bus-port": str(port + 10_000),
            }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self.processes[port] = subprocess.Popen(
            [*node.prefix, program, *arguments, *self.options], stdout=subprocess.DEVNULL
        )

    def client(self, port: int) -> Any:
        """A client of one server."""
        import valkey

        return valkey.Valkey(
            host=self.nodes[port].host, port=port, socket_timeout=10, socket_connect_timeout=2
        )

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until all servers that run see the cluster as complete, and replicas follow."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(Exception):
                if all(
                    map(self.is_ready, [p for p, one in self.processes.items() if not one.poll()])
                ):
                    return
            time.sleep(0.05)
        raise AssertionError("the cluster is not complete")

    def is_ready(self, port: int) -> bool:
        """Whether a server sees the cluster as complete, and follows its primary if it has one."""
        client = self.client(port)
        info = client.info("replication")
        state = client.execute_command("CLUSTER", "INFO")
        client.close()
        linked = info["role"] == "master" or info["master_link_status"] == "up"
        return linked and b"cluster_state:ok" in state

    def kill(self, port: int) -> None:
        """Kill the server of a port."""
        process = self.processes.pop(port)
        process.kill()
        process.wait()


def name_of(port: int) -> str:
    """The name of the server of a port in its cluster."""
    return f"{port:040x}"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free, as are those 10,000 above, which servers of a cluster use
    among themselves."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 10_000, 40_000):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for one in (port, port + 10_000):
                held.enter_context(socket.socket()).bind(("127.0.0.1", one))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@contextlib.contextmanager
def cluster(primaries: int = 3, replicas: int = 0, *options: str) -> Iterator[Cluster]:
    """A cluster in a folder of its own, which ends with the block.

    Args:
        primaries: servers that own slots.
        replicas: of each primary.
        options: for every server.
    """
    with tempfile.TemporaryDirectory(prefix="limerank-cluster-") as folder:
        running = Cluster(Path(folder), primaries, replicas, *options)
        try:
            running.begin()
            yield running
        finally:
            for port in list(running.processes):
                running.kill(port)
