"""Servers, stores and replicas as processes that can be stopped, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SECONDS = 60.0
"""Seconds that a process may take to start."""
SOURCE = Path(__file__).with_name("clock.c")
KEY = "histories-of-clients"
"""The key of all clients."""
BUILT = Path(__file__).parents[1] / "build" / "histories"


def store_program() -> str | None:
    """The path of a Valkey or Redis server, if one is installed."""
    return shutil.which("valkey-server") or shutil.which("redis-server")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Process:
    """A process with a log, and its faults.

    Args:
        folder: its own folder; created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def begin(self, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Start the command; its errors go to the log."""
        with open(self.folder / "log", "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                list(command),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=os.environ | environment,
            )
        return self._process

    def stop(self) -> None:
        """SIGSTOP: it does nothing until it continues."""
        if self.alive:
            os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self.alive:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            self._process = None

    def log(self) -> str:
        """The last lines of the log."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8")[-2000:] if path.exists() else ""


class Store(Process):
    """A Valkey or Redis server that loses nothing that it acknowledged.

    Args:
        folder: its own folder.
        bound: host and port at which it listens; a free port of this machine if not given.
        prefix: words before the command, which run it on another machine.

    Attributes:
        port: of the server; it stays.
    """

    def __init__(
        self, folder: Path, bound: tuple[str, int] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        super().__init__(folder)
        self.host, self.port = bound or ("127.0.0.1", free_port())
        self._prefix = list(prefix)

    async def start(self, *options: str) -> None:
        """Start, with its data; further options, such as ``--replicaof``."""
        program = store_program()
        assert program is not None
        settings = {
            "port": str(self.port),
            "bind": "* -::*" if self._prefix else self.host,
            "protected-mode": "no",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "repl-diskless-sync-delay": "0",
            "repl-timeout": "5",
            "logfile": "store.log",
        }
        given = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self.begin([*self._prefix, program, *given, *options])
        limit = asyncio.get_running_loop().time() + SECONDS
        while await self.ask("PING") != "+PONG":
            if asyncio.get_running_loop().time() > limit or not self.alive:
                raise RuntimeError(f"{program} does not start: see {self.folder}/store.log")
            await asyncio.sleep(0.02)

    async def ask(self, command: str) -> str:
        """The first line of the answer to a command, or of several for INFO; empty: no answer."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    writer.write(command.encode() + b"\r\n")
                    first = (await reader.readline()).decode().strip()
                    if first.startswith("$") and first != "$-1":  # -1: no value
                        return (await reader.readexactly(int(first[1:]))).decode()
                    return first
                finally:
                    writer.transport.abort()
        return ""

    async def replicates(self) -> bool:
        """Whether this replica has the data of its primary, up to what is on its way."""
        return "master_link_status:up" in await self.ask("INFO replication")


class Clock:
    """The wall clock of a server, that can be ahead of the machine's or behind it.

    Args:
        path: a file, which the process of the server maps.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.jump(0.0)

    def jump(self, seconds: float) -> None:
        """Be so many seconds ahead, from now on."""
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.write(struct.pack("=q", int(1e9 * seconds)))

    def environment(self) -> dict[str, str]:
        """What the process needs; nothing where no C compiler is installed."""
        library = clock_library()
        return {} if library is None else {"LD_PRELOAD": str(library),
                                           "LIMERANK_CLOCK": str(self.path)}  # fmt: skip


def clock_library() -> Path | None:
    """The library that changes clocks, compiled where its source has changed; None where that is
    not possible."""
    found = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or found is None:
        return None
    target = BUILT / f"clock-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not target.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        flags = ["-O1", "-fPIC", "-shared"]
        subprocess.run([found, *flags, "-o", str(partial), str(SOURCE), "-ldl"], check=True)
        partial.replace(target)
    return target


class Server(Process):
    """A ``limerank serve`` process.

    Args:
        folder: its own folder.
        options: of the command.
        bound: host and port at which it listens; port 0: another one after each start.
        prefix: words before the command, which run it on another machine.

    Attributes:
        port: on which it listens. None: it does not run.
        clock: its wall clock.
    """

    def __init__(
        self, folder: Path, options: Sequence[str], bound: tuple[str, int], prefix: Sequence[str]
    ) -> None:
        super().__init__(folder)
        self.options = ["--host", bound[0], "--port", str(bound[1]), *options]
        self._prefix = list(prefix)
        self.clock = Clock(folder / "clock")
        self.port: int | None = None

    async def start(self) -> bool:
        """Start; returns whether it serves. It does not where its store cannot be reached."""
        command = [*self._prefix, sys.executable, "-m", "limerank", "serve", *self.options]
        process = self.begin(
            command, OMP_NUM_THREADS="1", LIMERANK_ADMIN_KEYS=KEY, **self.clock.environment()
        )
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        found = re.search(r"http://[^:]+:(\d+)", line)
        if found is None:
            await asyncio.to_thread(self.kill)
            return False
        self.port = int(found[1])
        return True

    def kill(self) -> None:
        self.port = None
        super().kill()
