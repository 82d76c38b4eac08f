"""A real Valkey or Redis server for a test, on a socket of its own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from histories.cluster import cluster, free_ports

__all__ = ["Server", "cluster", "free_ports", "needs_server", "server"]

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
