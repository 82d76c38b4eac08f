"""A Valkey or Redis cluster as processes on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from histories.processes import store_program


class Cluster:
    """Servers of a cluster on loopback: each primary has an equal part of the slots.

    Their map is written before they start, so that they need not find each other.
    """

    def __init__(self, folder: Path, primaries: int, replicas: int = 0, *options: str) -> None:
        self.folder, self.options = folder, options
        self.ports = free_ports(primaries * (1 + replicas))
        self.primaries = self.ports[:primaries]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        names = {port: f"{port:040x}" for port in self.ports}
        for port in self.ports:
            home = folder / str(port)
            home.mkdir()
            lines = []
            for at, other in enumerate(self.ports):
                of = self.primaries[at % primaries]
                role = "master" if other == of else "slave"
                flags = f"myself,{role}" if other == port else role
                slots = ""
                if other == of:
                    first, last = (16384 * (at + k) // primaries for k in (0, 1))
                    slots = f" {first}-{last - 1}"
                lines.append(
                    f"{names[other]} 127.0.0.1:{other}@{other + 10_000} {flags} "
                    f"{'-' if other == of else names[of]} 0 0 {at % primaries + 1} connected{slots}"
                )
            lines.append(f"vars currentEpoch {primaries} lastVoteEpoch 0")
            (home / "nodes.conf").write_text("\n".join(lines) + "\n")
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.primaries)
        self.url = f"valkey+cluster://{hosts}"

    def begin(self) -> None:
        """Start all servers, and wait until they are a cluster."""
        for port in self.ports:
            self.start(port)
        self.wait()

    def start(self, port: int) -> None:
        """Start the server of a port."""
        program = store_program()
        assert program is not None, "no server is installed"
        settings = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self.folder / str(port)),
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": "1000",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self.processes[port] = subprocess.Popen(
            [program, *arguments, *self.options], stdout=subprocess.DEVNULL
        )

    def client(self, port: int) -> Any:
        """A client of one server."""
        import valkey

        return valkey.Valkey(host="127.0.0.1", port=port)

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until all servers that run see the cluster as complete, and replicas follow."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(Exception):
                if all(
                    map(self._ready, [p for p, one in self.processes.items() if not one.poll()])
                ):
                    return
            time.sleep(0.05)
        raise AssertionError("the cluster is not complete")

    def _ready(self, port: int) -> bool:
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
