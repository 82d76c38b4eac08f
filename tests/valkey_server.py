"""A real Valkey or Redis server for a test, on a socket of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")
needs_server = pytest.mark.skipif(
    PROGRAM is None,
    reason="neither valkey-server nor redis-server is installed: apt-get install redis-server",
)


class Server:
    """A server that can be killed and started again with its data."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.url = f"unix://{folder}/socket"
        self.start()

    def start(self) -> None:
        assert PROGRAM is not None
        settings = {
            "port": "0",
            "unixsocket": f"{self.folder}/socket",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [PROGRAM, *arguments, *self.options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "eady to accept connections" in line:
                return
        raise AssertionError(f"{PROGRAM} did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def server(*options: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="limerank-valkey-") as folder:
        running = Server(Path(folder), *options)
        try:
            yield running
        finally:
            running.kill()


class Cluster:
    """Servers of a cluster on loopback: each primary has an equal part of the slots.

    Their map is written before they start, so that they need not find each other.
    """

    def __init__(self, folder: Path, primaries: int, replicas: int = 0, *options: str) -> None:
        self.folder, self.options = folder, options
        self.ports = free_ports(primaries * (1 + replicas))
        self.primaries = self.ports[:primaries]
        self.processes: dict[int, subprocess.Popen[str]] = {}
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
        for port in self.ports:
            self.start(port)
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.primaries)
        self.url = f"valkey+cluster://{hosts}"
        self.wait()

    def start(self, port: int) -> None:
        """Start the server of a port."""
        assert PROGRAM is not None
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
            [PROGRAM, *arguments, *self.options], stdout=subprocess.DEVNULL
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
    with tempfile.TemporaryDirectory(prefix="limerank-cluster-") as folder:
        running = None
        try:
            running = Cluster(Path(folder), primaries, replicas, *options)
            yield running
        finally:
            for port in list(running.processes) if running is not None else []:
                running.kill(port)
