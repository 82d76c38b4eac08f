"""Latency of honest clients while hostile ones load the server, on the same cores.

    python -m benchmarks.hostile --seconds 10

The server has an index of random items, a model with random weights, and an SQLite store with users
of 200 events each and one user of 200,000. One process runs the honest clients: four connections
that rank 512 candidates for warm users, 200 requests a second in all, and a fifth that reads
``/healthz``. A second process runs one kind of hostile client at a time, then all of them:

- *wrong bodies*: eight megabytes each, one after another, on two connections;
- *silent connections*: 1,500, reopened when the server closes them, half of them with half a
  header;
- *slow headers*: 200 connections that send one byte of a header every half second;
- *wrong keys*: requests with unknown keys, on two connections;
- *a large user*: events, rankings and reads of the user with 200,000 events;
- *administration*: items are removed and the run is reloaded, one after another.

A request of an honest client fails when it has no 200 within ten seconds. *Load before* is the
machine's load average when the honest clients started: other work on its cores makes all of these
times longer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index import catalogue, random_run
from benchmarks.rows import write_row
from benchmarks.serving import START, _ready, fill
from limerank.data.dataset import Dataset
from limerank.data.events import event_of
from limerank.index.building import build_index
from limerank.models.config import ModelConfig
from limerank.runs.folder import load_run
from limerank.serving.stores import open_store

HONEST, RATE = 4, 200.0
"""Connections that rank, and their requests a second in all."""
LARGE = "the large user"
LARGE_EVENTS = 200_000
SILENT, SLOW = 1_500, 200
PATIENCE = 10.0
KEY = os.environ.setdefault("LIMERANK_HOSTILE_KEY", secrets.token_urlsafe(24))
"""The key of the servers under test; child processes inherit it."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--model", default="lime-mha")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--kinds", nargs="+", default=["none", *HOSTILE, "all"])
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="limerank-hostile-") as held:
        folder = Path(held)
        dataset = Dataset(catalogue(folder, given.items))
        random_run(folder / "run", dataset, ModelConfig(model=given.model))
        build_index(load_run(folder / "run"), folder / "index", data=dataset)
        fill(folder / "events.db", given.users, given.items, 200)
        fill_large(folder / "events.db", given.items)
        for kind in given.kinds:
            with server(folder) as (port, pid):
                measure(kind, port, pid, given)


def fill_large(path: Path, items: int) -> None:
    """A user with ``LARGE_EVENTS`` events."""
    with open_store(str(path)) as store:
        for first in range(0, LARGE_EVENTS, 5_000):
            store.append(
                [
                    event_of({"user": LARGE, "item": k % items, "time": START + 1000 * k,
                              "labels": {"click": k % 2}, "id": f"{k:07d}"})
                    for k in range(first, first + 5_000)
                ]
            )  # fmt: skip


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[int, int]]:
    """Start a server with keys from the command line; yields its port and process id."""
    port = 8700 + os.getpid() % 200
    (folder / "keys").write_text(f"admin {KEY}\n", encoding="utf-8")
    command = [sys.executable, "-m", "limerank", "serve", "--port", str(port)]
    command += ["--keys", str(folder / "keys"), "--run", str(folder / "run")]
    command += ["--index", str(folder / "index"), "--store", str(folder / "events.db")]
    with open(folder / "log", "w", encoding="utf-8") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            asyncio.run(_ready(port, process))
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def request(method: str, path: str, body: Any = None, key: str = KEY) -> bytes:
    """An HTTP request as bytes."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def response_status(reader: asyncio.StreamReader) -> int:
    """Read a response; returns its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(size)
    return int(head.split(b" ", 2)[1])


# Honest clients


def honest(port: int, given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each ranking and of each ``/healthz``, and the number of failures."""
    rng = np.random.default_rng(0)
    bodies = [
        request("POST", "/v1/rank", {
            "user": int(rng.integers(given.users)), "k": 20,
            "candidates": rng.choice(given.items, 512, replace=False).tolist(),
        })
        for _ in range(500)
    ]  # fmt: skip
    found: dict[str, Any] = {"rank": [], "health": [], "failed": 0}

    async def one(name: str, requests: list[bytes], pause: float, until: float) -> None:
        writer, at, due = None, 0, time.perf_counter()
        while time.perf_counter() < until:
            due = max(due + pause, time.perf_counter() - 0.5)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            started = time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE):
                    if writer is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(requests[at % len(requests)])
                    if await response_status(reader) != 200:
                        raise ConnectionError
                found[name].append(1e3 * (time.perf_counter() - started))
            except (OSError, EOFError, TimeoutError):
                found["failed"] += 1
                if writer is not None:
                    writer.close()
                writer = None
            at += 1
        if writer is not None:
            writer.close()

    async def all_of_them() -> None:
        warm = time.perf_counter() + 1.0
        await one("rank", bodies, 0.0, warm)
        found.update(rank=[], health=[], failed=0)
        until = time.perf_counter() + given.seconds
        share = len(bodies) // HONEST
        await asyncio.gather(
            *(one("rank", bodies[k * share : (k + 1) * share], HONEST / RATE, until)
              for k in range(HONEST)),
            one("health", [request("GET", "/healthz")], 0.02, until),
        )  # fmt: skip

    asyncio.run(all_of_them())
    return found


# Hostile clients


async def repeat(port: int, made: Callable[[int], bytes], connections: int, pause: float) -> None:
    """Send one request after another and ignore the responses."""

    async def one(position: int) -> None:
        at = position
        while True:
            with contextlib.suppress(OSError, EOFError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    while True:
                        writer.write(made(at))
                        at += connections
                        await response_status(reader)
                        await asyncio.sleep(pause)
                finally:
                    writer.close()
            await asyncio.sleep(0.05)

    await asyncio.gather(*(one(position) for position in range(connections)))


async def wrong_bodies(port: int, given: argparse.Namespace) -> None:
    most = (8 << 20) - 100
    wide = b",".join(b'"%d":[]' % k for k in range(70))
    event = b'{"user":[],"item":[],"time":[],"features":{%s}}' % wide
    bodies = [
        request("POST", path, head + b",".join([unit] * ((most - 99) // (len(unit) + 1))) + tail)
        for path, head, unit, tail in (
            ("/v1/rank", b'{"candidates":[', b"[]", b"]}"),
            ("/v1/rank", b'{"candidates":[', b"1", b"]}"),
            ("/v1/rank", b'{"history":[', b'{"item":[],"labels":{%s}}' % wide, b"]}"),
            ("/v1/events", b'{"events":[', event, b"]}"),
        )
    ]
    await repeat(port, lambda at: bodies[at % len(bodies)], 2, 0.0)


async def wrong_keys(port: int, given: argparse.Namespace) -> None:
    await repeat(port, lambda at: request("GET", "/v1/model", key=f"{at:030d}"), 2, 0.0)


async def silent(port: int, given: argparse.Namespace) -> None:
    async def one(position: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                if position % 2:
                    writer.write(b"POST /v1/rank HTTP/1.1\r\nHost: ")
                await reader.read()
                writer.close()
            await asyncio.sleep(0.5)

    await asyncio.gather(*(one(position) for position in range(SILENT)))


async def slow(port: int, given: argparse.Namespace) -> None:
    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.1\r\nX: ")
                while not writer.is_closing():
                    writer.write(b"y")
                    await writer.drain()
                    await asyncio.sleep(0.5)
            await asyncio.sleep(0.5)

    await asyncio.gather(*(one() for _ in range(SLOW)))


async def large_user(port: int, given: argparse.Namespace) -> None:
    path = "/v1/users/" + LARGE.replace(" ", "%20")
    kinds: list[Callable[[int], bytes]] = [
        lambda at: request("POST", "/v1/events", {
            "user": LARGE, "item": at % given.items, "time": START + 10**10 + at}),
        lambda at: request("POST", "/v1/rank", {"user": LARGE, "k": 20}),
        lambda at: request("GET", path),
    ]  # fmt: skip
    await repeat(port, lambda at: kinds[at % len(kinds)](at), 2, 0.0)


async def administration(port: int, given: argparse.Namespace) -> None:
    def made(at: int) -> bytes:
        if at % 10 == 9:
            return request("POST", "/v1/admin/reload", {})
        return request("DELETE", f"/v1/items/{given.items // 2 + at}")

    await repeat(port, made, 2, 0.0)


HOSTILE: dict[str, Callable[[int, argparse.Namespace], Awaitable[None]]] = {
    "wrong bodies": wrong_bodies,
    "silent connections": silent,
    "slow headers": slow,
    "wrong keys": wrong_keys,
    "a large user": large_user,
    "administration": administration,
}


def hostile(port: int, given: argparse.Namespace, kinds: list[str]) -> None:
    """Run until the process is terminated."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def all_of_them() -> None:
        await asyncio.gather(*(HOSTILE[kind](port, given) for kind in kinds))

    asyncio.run(all_of_them())


def measure(kind: str, port: int, pid: int, given: argparse.Namespace) -> None:
    kinds = {"none": [], "all": list(HOSTILE)}.get(kind, [kind])
    load = os.getloadavg()[0]
    context = multiprocessing.get_context("spawn")
    beside = context.Process(target=hostile, args=(port, given, kinds), daemon=True)
    if kinds:
        beside.start()
        time.sleep(2.0)
    with context.Pool(1) as pool:
        found = pool.apply(honest, (port, given))
    if kinds:
        beside.terminate()
        beside.join()
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    rank, health = sorted(found["rank"]), sorted(found["health"])
    row = write_row(
        "hostile",
        {"model": given.model, "items": given.items, "hostile clients": kind},
        {
            "requests": len(rank),
            "failed": found["failed"],
            "ms_p50": statistics.median(rank),
            "ms_p99": rank[int(0.99 * len(rank))],
            "health_ms_p99": health[int(0.99 * len(health))],
            "health_ms_most": health[-1],
            "peak_mib": peak,
            "load_before": load,
        },
        repeats=len(rank),
    )
    print(kind, {name: round(value, 2) for name, value in row["metrics"].items()}, flush=True)


if __name__ == "__main__":
    main()
